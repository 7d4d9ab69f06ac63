"""The messages of the page of troubleshooting are those of the sources."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/guides/troubleshooting.md").read_text("utf-8")
PACKAGES = [path.parent for path in ROOT.glob("*/__init__.py")]

MESSAGES = [
    message
    for part in PAGE.split("\n## Messages")[1:]
    for message in re.findall(r"^\| `([^`]+)` \|", part, re.MULTILINE)
]


@cache
def read_texts() -> str:
    """All texts of the sources, each on a line; values that are filled in are "…"."""
    texts = []
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 40


@pytest.mark.parametrize("message", MESSAGES)
def test_the_message_is_one_of_the_sources(message: str) -> None:
    for part in re.split(r"\s*\(?…\)?\s*", message):
        assert len(part) < 5 or part in read_texts(), part
