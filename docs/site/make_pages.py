"""Writes the pages of the site: those of docs/, and those that the code itself describes.

    python docs/site/make_pages.py FOLDER

FOLDER is made anew. `make docs` calls this, and zensical then makes HTML of the folder.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from drawings import draw_mask, draw_timeline, draw_tree, plot_step_times, read_figures

from medusa_trt.cli import main as cli
from medusa_trt.cli.verb_table import HELP, verb_from_name
from medusa_trt.export.heads.formats import FORMATS
from medusa_trt.export.targets import TARGETS
from medusa_trt.tree_configs import load_tree

ROOT = Path(__file__).parents[2]
DRAWN_TREE = "smollm2_135m_8"

COPIED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the top level, and what they are called in the site."""

EXAMPLES_INTRODUCTION = """# Examples

Each file runs as it stands, on a bundle such as the one that `make demo` writes. The tests run
them on a tiny bundle.
"""


def write_pages(folder: Path) -> None:
    """Writes all pages and drawings to a folder, and replaces it if it exists."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("site", "__pycache__"))
    for name, page in COPIED.items():
        text = (ROOT / name).read_text("utf-8")
        (folder / page).write_text(text.replace("](docs/", "]("), "utf-8")
    for path in folder.rglob("*.md"):
        path.write_text(fill_page(path.read_text("utf-8")), "utf-8")
    (folder / "reference/command_line.md").write_text("".join(describe_verbs()), "utf-8")
    (folder / "reference/examples.md").write_text("".join(show_examples()), "utf-8")
    write_drawings(folder / "drawings")


def fill_page(text: str) -> str:
    """Puts tables of the code where a page asks for them, and links to pages that were copied."""
    text = text.replace("{{HEAD_FORMATS}}", "\n".join(list_head_formats()))
    text = text.replace("{{TARGETS}}", "\n".join(list_targets()))
    for name, page in COPIED.items():
        text = text.replace(f"](../../{name}", f"](../{page}").replace(f"](../{name}", f"]({page}")
    return text


def list_head_formats() -> Iterator[str]:
    """A table of the formats of heads."""
    yield "| `--to` | what it is | file | unembedding | maps | token map |"
    yield "|---|---|---|---|---|---|"
    for row in FORMATS.values():
        has = ["yes" if value else "no" for value in (row.has_extra_maps, row.has_token_map)]
        unembeddings = " or ".join(row.unembeddings)
        yield (
            f"| `{row.name}` | {row.description} | `{row.file}` | {unembeddings} "
            f"| {has[0]} | {has[1]} |"
        )


def list_targets() -> Iterator[str]:
    """A table of the targets: precisions, the default first, and formats of a plan."""
    yield "| `--target` | `--precision`, the default first | formats of a plan |"
    yield "|---|---|---|"
    for target in TARGETS.values():
        precisions = ", ".join(precision.name for precision in target.precisions)
        yield f"| `{target.name}` | {precisions} | {', '.join(target.formats)} |"


def describe_verbs() -> Iterator[str]:
    """The page of the command line: the help of each verb, as the verb itself prints it."""
    yield "# Command line\n\nThis page is made from the `-h` of each command.\n"
    yield _block("medusa-trt", cli.make_listing("").format_help())
    groups = {name.split()[0] for name in HELP if " " in name}
    for name, line in HELP.items():
        command = f"medusa-trt {name}"
        is_group = name in groups
        parser = cli.make_listing(name) if is_group else verb_from_name(name).make_parser(command)
        yield f"\n## {command}\n\n{line[0].upper()}{line[1:]}.\n"
        yield _block(command, parser.format_help())


def show_examples() -> Iterator[str]:
    """The page of the examples: each file as it is, below its name."""
    yield EXAMPLES_INTRODUCTION
    for path in sorted((ROOT / "examples").glob("*.py")):
        yield f"\n## {path.name}\n\n```python\n{path.read_text('utf-8')}```\n"
    notebook = sorted((ROOT / "examples").glob("*.ipynb"))
    yield "\nNotebooks: " + ", ".join(f"`examples/{path.name}`" for path in notebook) + ".\n"


def write_drawings(folder: Path) -> None:
    """Draws the tree, its mask, a step's timeline and the step times as SVG."""
    folder.mkdir()
    tree, figures = load_tree(DRAWN_TREE), read_figures()
    drawings = {
        "tree": draw_tree(tree),
        "mask": draw_mask(tree),
        "timeline": draw_timeline(figures["parts_of_a_step"]),
        "step_times": plot_step_times(figures["step_times"]),
    }
    for name, svg in drawings.items():
        (folder / f"{name}.svg").write_text(svg, "utf-8")


def _block(command: str, text: str) -> str:
    return f"\n```console\n$ {command} -h\n{text.rstrip()}\n```\n"


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
