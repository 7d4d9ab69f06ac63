"""What verbs show in a narrow terminal."""

import pytest
from rich.table import Table

from medusa_trt.cli import main as cli
from medusa_trt.cli.terminal import make_table_console


def test_a_table_that_is_too_wide_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", "location", box=None)
    name, location = "a-long-name" * 3, "/a/very/long/path" * 4
    table.add_row(name, location)
    make_table_console(60).print(table)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    shown = "".join(lines).replace(" ", "")
    assert sorted(shown) == sorted("namelocation" + name + location)


@pytest.mark.parametrize("width", [60])
@pytest.mark.parametrize("verb", ["", "calibrate", "generate", "bench"])
def test_help_fits_a_narrow_terminal(
    verb: str, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = []
    for columns in (200, width):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit):
            cli.main([*verb.split(), "-h"])
        pages.append(capsys.readouterr().out)
    words = [word for word in pages[1].split() if len(word) > width - 2]
    assert max(map(len, pages[1].splitlines())) <= max([width, *map(len, words)])
    assert pages[0].split() == pages[1].split()
