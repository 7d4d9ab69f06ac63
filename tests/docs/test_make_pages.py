"""The pages of the site: all are in its menu, and every link between them leads somewhere."""

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from make_pages import write_pages

from medusa_trt.cli.verb_table import HELP
from medusa_trt.export.heads.formats import FORMATS
from medusa_trt.export.targets import TARGETS

ROOT = Path(__file__).parents[2]
CONFIG = (ROOT / "mkdocs.yml").read_text("utf-8")
ZENSICAL = Path(sys.executable).parent / "zensical"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "source"
    write_pages(folder)
    return folder


def list_entries(menu: Any) -> list[str]:
    """The files of a menu and of the menus in it."""
    if isinstance(menu, str):
        return [menu]
    values = menu if isinstance(menu, list) else menu.values()
    return [entry for value in values for entry in list_entries(value)]


def test_the_menu_has_every_page_once(pages: Path) -> None:
    entries = list_entries(yaml.safe_load(CONFIG)["nav"])
    written = {path.relative_to(pages).as_posix() for path in pages.rglob("*.md")}
    assert sorted(entries) == sorted(written)


def slugs(page: Path) -> set[str]:
    """The anchors of a page's titles."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_every_link_between_the_pages_leads_somewhere(pages: Path) -> None:
    num_links = 0
    for page in pages.rglob("*.md"):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
            if target.startswith(("http:", "https:")):
                continue
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.is_file() and linked.resolve().is_relative_to(pages), (page, target)
            assert not anchor or anchor in slugs(linked), (page, target)
            num_links += 1
    assert num_links > 50


def test_tables_and_help_come_from_the_code(pages: Path) -> None:
    verbs = (pages / "reference/command_line.md").read_text("utf-8")
    assert all(f"\n## medusa-trt {name}\n" in verbs for name in HELP)
    assert all(f"| `{name}` |" in (pages / "guides/targets.md").read_text() for name in TARGETS)
    formats = (pages / "reference/head_formats.md").read_text("utf-8")
    assert all(f"| `{name}` |" in formats for name in FORMATS)
    assert not any("{{" in text for text in (formats, verbs))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder in which the site can be built."""
    write_pages(tmp_path / "build/site-source")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "build/typing").symlink_to(make_links(tmp_path))
    return tmp_path


def build_site(folder: Path, page: str, text: str) -> "subprocess.CompletedProcess[str]":
    """Builds the site as `make docs` does, with a text at the end of a page."""
    with open(folder / "build/site-source" / page, "a", encoding="utf-8") as file:
        file.write(f"\n{text}\n")
    command = [str(ZENSICAL), "build", "--clean", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not ZENSICAL.exists(), reason="zensical is not installed: the extra docs")
def test_the_site_is_built_and_loads_nothing_from_elsewhere(site: Path) -> None:
    ended = build_site(site, "tutorial.md", "[a link](index.md#install)")
    assert ended.returncode == 0, ended.stderr
    html = (site / "build/docs/reference/python.html").read_text("utf-8")
    assert "MedusaSession" in html and "tokens_per_s" in html
    loaded = re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="(https?:[^"]+)', html)
    assert not loaded


@pytest.mark.slow
@pytest.mark.skipif(not ZENSICAL.exists(), reason="zensical is not installed: the extra docs")
@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("tutorial.md", "[a link](nowhere.md)"),
        ("tutorial.md", "[a link](index.md#nowhere)"),
        ("reference/python.md", "::: medusa_trt.runtime.session.NoSuchName"),
        ("reference/python.md", "::: medusa_trt.no_such_module.Name"),
    ],
    ids=["page", "anchor", "name", "module"],
)
def test_a_broken_link_or_an_unknown_name_ends_the_build(site: Path, page: str, text: str) -> None:
    assert build_site(site, page, text).returncode != 0


def test_every_name_of_the_api_exists() -> None:
    names = re.findall(
        r"^::: (\S+)$", (ROOT / "docs/reference/python.md").read_text(), re.MULTILINE
    )
    assert len(names) > 10
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), name


def make_links(folder: Path) -> Path:
    """The tree of links that `make links` makes."""
    package = folder / "links/medusa_trt"
    package.mkdir(parents=True)
    tops = {path.parent for path in ROOT.glob("*/__init__.py")} - {ROOT / "medusa_trt"}
    for path in [*tops, *(ROOT / "medusa_trt").iterdir()]:
        (package / path.name).symlink_to(path)
    return folder / "links"
