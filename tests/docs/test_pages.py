"""The pages for newcomers: every path, name, command and link in them exists."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import tomllib

from medusa_trt.cli.verb_table import HELP, verb_from_name

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [*sorted((ROOT / "docs").glob("[gr]*/*.md")), ROOT / "docs/decisions/layout.md"]
LINKED = [ROOT / "README.md", *PAGES, *sorted((ROOT / "docs/decisions").glob("*.md"))]

PLACEHOLDER = re.compile(r"NAME|FILE|FAMILY|FOLDER|MODEL|BUNDLE|THING|<\w+>")
"""Words that stand for what the reader puts there."""

NOT_OURS = {"uptime"}
"""Names of other programs."""

PATH = re.compile(r"[\w.-]*/[\w./*-]*|[\w-]+\.(?:py|md|json|toml|h|cpp|inl|jinja)")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*(?:\(\))?")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def read_sources() -> str:
    """The text in which names are looked for."""
    names = ["pyproject.toml", "Makefile", "setup.py"]
    paths = [ROOT / name for name in names]
    for folder in ROOT.iterdir():
        if folder.is_dir() and not folder.name.startswith(".") and folder.name != "build":
            paths += [path for path in folder.rglob("*") if path.suffix in {".py", ".h", ".cpp"}]
    return "\n".join(path.read_text("utf-8") for path in paths if path != Path(__file__))


@cache
def known_words() -> frozenset[str]:
    """All words of the sources, and the names of files and folders without endings."""
    words = re.findall(r"\w+", read_sources())
    return frozenset([*words, *(path.stem for path in ROOT.glob("*/**/*.py"))])


def spans(page: Path) -> list[str]:
    """What stands between backticks, without code blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def commands(page: Path) -> Iterator[list[str]]:
    """Commands in code blocks and between backticks, as words."""
    blocks = re.findall(r"^ *```\n(.*?)^ *```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.splitlines()] + spans(page)
    lines += re.findall(r"^\$ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    for line in lines:
        if re.match(r"(?:[A-Z_]+=\S+ )*(?:make |medusa-|\.venv/)", line):
            words = shlex.split(line, comments=True)
            while "=" in words[0]:
                words.pop(0)
            yield words


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_every_path_exists(page: Path) -> None:
    missing = []
    for span in spans(page):
        if not PATH.fullmatch(span) or PLACEHOLDER.search(span) or span.startswith("build/"):
            continue
        if span.startswith("/") and f'"{span}"' in read_sources():
            continue  # A path of the server.
        places = [ROOT, page.parent]
        if "/" not in span:  # a file that the line before names with its folder
            is_there = any(ROOT.glob(f"**/{span}")) or span in known_words() or is_bundle_file(span)
        else:
            is_there = any(any(place.glob(span.strip("/"))) for place in places)
        if not is_there:
            missing.append(span)
    assert not missing


def is_bundle_file(name: str) -> bool:
    """Whether the sources name a file so that only bundles hold."""
    return f'"{name}"' in read_sources()


def test_every_name_is_one_of_the_sources(page: Path) -> None:
    names = [span for span in spans(page) if NAME.fullmatch(span) and not PATH.fullmatch(span)]
    unknown = [
        name
        for name in names
        if name not in NOT_OURS
        and not PLACEHOLDER.search(name)
        and not set(re.findall(r"\w+", name)) <= known_words()
    ]
    assert not unknown


def test_every_command_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for words in commands(page):
        if words[0] == "make":
            assert all(re.search(rf"^{word}:", makefile, re.MULTILINE) for word in words[1:])
        elif "medusa-" in words[0]:
            check_verb(words)
        elif words[0].endswith("python"):
            check_script(words[1:])


def check_verb(words: list[str]) -> None:
    """Checks that there is such a verb, and that it has these options."""
    arguments = ["export", *words[1:]] if words[0].endswith("medusa-export") else words[1:]
    if not arguments or arguments[0].startswith("-"):
        return
    name = next((" ".join(arguments[:n]) for n in (2, 1) if " ".join(arguments[:n]) in HELP), "")
    assert name, words
    flags = FLAG.findall(" ".join(words))
    if not any(other.startswith(f"{name} ") for other in HELP):
        page = verb_from_name(name).make_parser("medusa-trt").format_help()
        assert {flag for flag in flags if flag not in page} == set(), words


def check_script(words: list[str]) -> None:
    """Checks that a script of ours exists and has these options, or that pytest's files exist."""
    if words[0] == "-m":
        assert words[1] in ("pytest", "medusa_trt")
        paths = [word for word in words[2:] if "/" in word and not PLACEHOLDER.search(word)]
        assert all((ROOT / path).exists() for path in paths), words
        return
    script = ROOT / words[0]
    assert script.is_file(), words
    if script.name != "setup.py":
        command = [sys.executable, str(script), "-h"]
        page = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert {flag for flag in FLAG.findall(" ".join(words)) if flag not in page} == set(), words


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if target.startswith(("http:", "https:", "drawings/")):
            continue  # tests/docs/test_make_pages.py looks for the drawings.
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}


def test_paths_in_comments_and_docstrings_exist() -> None:
    tops = (
        "benchmarks|calibration|docs|export|medusa_trt|native|runtime|tests|training|tree_configs"
    )
    path = re.compile(rf"(?<![\w/.])(?:{tops})/[\w/-]*\w\.(?:py|h|cpp|inl|md|jinja)\b")
    missing = {name for name in path.findall(read_sources()) if not (ROOT / name).exists()}
    assert not missing


def test_every_folder_has_a_line_in_the_architecture() -> None:
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `([\w/]+)/` \|", page, re.MULTILINE))
    packages = {
        path.parent.relative_to(ROOT).as_posix()
        for path in ROOT.glob("[a-z]*/**/__init__.py")
        if path.parts[len(ROOT.parts)] != "build"
    }
    assert packages <= listed, packages - listed


def test_every_contract_of_the_imports_is_explained() -> None:
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    for contract in config["tool"]["importlinter"]["contracts"]:
        assert f"| {contract['name']} |" in page
