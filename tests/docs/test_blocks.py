"""The Python blocks of the pages run as they are, on a tiny bundle."""

import re
from pathlib import Path

import pytest

from medusa_trt.runtime.bundle import Bundle

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
BUNDLES = re.compile(r'"(?:build/)?(?:smollm2-135m|my-bundle)"')


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def read_blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text("utf-8"))


@pytest.mark.parametrize(
    "page", [*filter(read_blocks, PAGES)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_blocks_run(
    page: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, object] = {}
    for block in read_blocks(page):
        exec(BUNDLES.sub(repr(str(tiny_bundle.path)), block), names)
    printed = capsys.readouterr().out
    assert printed
    for shown in re.findall(r"It prints `([^`]+)`", page.read_text("utf-8")):
        assert shown in printed
