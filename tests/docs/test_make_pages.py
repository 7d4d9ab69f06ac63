"""The pages of the site: all are in its menu, and every link between them leads somewhere."""

import re
import shutil
import subprocess
import sys
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


@pytest.mark.slow
@pytest.mark.skipif(not ZENSICAL.exists(), reason="zensical is not installed: the extra docs")
@pytest.mark.parametrize("link", ["index.md#install", "index.md#nowhere", "nowhere.md"])
def test_a_broken_link_ends_the_build(link: str, tmp_path: Path) -> None:
    write_pages(tmp_path / "build/site-source")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "build/typing").symlink_to(make_links(tmp_path))
    with open(tmp_path / "build/site-source/tutorial.md", "a") as page:
        page.write(f"\n[a link]({link})\n")
    command = [str(ZENSICAL), "build", "--strict"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode == 0) == (link == "index.md#install"), ended.stderr
    if ended.returncode == 0:
        html = (tmp_path / "build/docs/reference/python.html").read_text("utf-8")
        assert "MedusaSession" in html and "tokens_per_s" in html
        loaded = re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="(https?:[^"]+)', html)
        assert not loaded


def make_links(folder: Path) -> Path:
    """The tree of links that `make links` makes."""
    package = folder / "links/medusa_trt"
    package.mkdir(parents=True)
    tops = {path.parent for path in ROOT.glob("*/__init__.py")} - {ROOT / "medusa_trt"}
    for path in [*tops, *(ROOT / "medusa_trt").iterdir()]:
        (package / path.name).symlink_to(path)
    return folder / "links"
