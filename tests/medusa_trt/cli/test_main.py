"""The command line as a whole: its help, its verbs, and one line for every mistake."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.terminal.command_line import refusal, run

from medusa_trt.cli import main as cli
from medusa_trt.cli.parser import Parser, Verb
from medusa_trt.cli.verb_table import HELP, verb_from_name

ROOT = Path(__file__).parents[3]
GROUPS = ["", *dict.fromkeys(name.split()[0] for name in HELP if " " in name)]
VERBS = [name for name in HELP if name not in GROUPS]
USAGE = "usage: medusa-trt VERB [options] (medusa-trt -h explains it)"
WITHOUT_DEFAULT = {"--model", "--quantization-plan", "--stop"}
"""Options without which a thing is not done; `--model` where a format may not need it."""


def pages() -> dict[str, Parser]:
    """The help page of each verb and of each list of verbs."""
    pages = {f"medusa-trt {name}".rstrip(): cli.make_listing(name) for name in GROUPS}
    for name in VERBS:
        pages[f"medusa-trt {name}"] = verb_from_name(name).make_parser(f"medusa-trt {name}")
    return pages


PAGES = pages()


@pytest.mark.parametrize("verb", [prog.split()[1:] for prog in PAGES], ids=" ".join)
def test_every_help_text_works(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*verb, "-h"])
    assert stopped.value.code == 0
    assert "usage: medusa-trt" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_every_help_page_explains_its_arguments_and_says_their_defaults(
    page: Parser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, page.format_help().splitlines())) <= 80
    assert "`" not in page.format_help()
    entries = re.split(r"\n(?=  \S)", page.format_help().split("\n\n", 1)[1])
    for action in page._actions:
        assert action.help
        names = ", ".join(action.option_strings)
        is_set = action.nargs == 0 or action.required or names in WITHOUT_DEFAULT
        if names and not is_set:
            (entry,) = [entry for entry in entries if entry.startswith(f"  {names} ")]
            assert " ".join(entry.split()).count("(default: ") == 1


def test_each_verb_is_listed_with_one_line() -> None:
    listed = []
    for name in GROUPS:
        shown = cli.make_listing(name).format_help()
        verbs = re.findall(r"^  (\w[\w-]*)  +\S", shown, re.MULTILINE)
        listed += [f"{name} {verb}".lstrip() for verb in verbs]
    assert sorted(listed) == sorted(HELP)


def test_the_whole_help_imports_no_verb_and_no_numpy() -> None:
    code = (
        "import sys\nfrom medusa_trt.cli.main import main\n"
        "try: main(['-h'])\nexcept SystemExit: pass\n"
        "sys.exit(sorted({'numpy', 'medusa_trt.cli.verbs.generate'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("command", ["medusa-trt", "medusa-export"])
def test_the_commands_are_installed(command: str) -> None:
    path = Path(sys.executable).parent / command
    help_ = subprocess.run([path, "-h"], capture_output=True, text=True, check=True)
    assert f"usage: {command}" in help_.stdout


def test_the_readmes_commands_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every medusa command that the README shows is accepted by the parsers."""
    seen: list[object] = []
    parse = Verb.parse

    def only_parse(verb: Verb[Any], command: str, words: list[str]) -> object:
        seen.append(parse(verb, command, words))
        raise KeyboardInterrupt

    monkeypatch.setattr(Verb, "parse", only_parse)
    lines = (ROOT / "README.md").read_text().splitlines()
    for line in lines:
        words = shlex.split(line, comments=True) if line.startswith("medusa-") else []
        if words:
            entry = cli.export_main if words[0] == "medusa-export" else cli.main
            assert entry(words[1:]) == 130
    assert len(seen) >= 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], f"error: give a verb; {USAGE}"),
        (["train"], f"error: give a verb; {USAGE.replace('medusa-trt', 'medusa-trt train')}"),
        (["genrate"], "error: there is no verb 'genrate': did you mean generate?"),
        (["calibrate", "tre"], "error: there is no verb 'tre': did you mean calibrate tree?"),
        (["gen"], "error: there is no verb 'gen': did you mean generate?"),
        (["fly"], "error: there is no verb 'fly': medusa-trt -h lists the verbs"),
        (["--verison"], f"error: there is no option --verison: did you mean --version? {USAGE}"),
    ],
)
def test_mistakes_in_the_verb(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(capsys, *words) == message


def test_verbose_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "generate", "/nowhere", "hi", "--verbose")
    assert code == 2 and "Traceback" in err and err.splitlines()[-1].startswith("error: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_standard_output_on_a_full_disk_is_one_line() -> None:
    command = [sys.executable, "-m", "medusa_trt", "completion", "bash"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.stderr == "error: cannot write standard output: No space left on device\n"
    assert ended.returncode == cli.EXIT_ERROR
