"""The wheel holds the whole package, and the source archive holds what the wheel is built from."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest
import tomllib
import yaml

from medusa_trt import __version__

ROOT = Path(__file__).parents[1]
FOLDERS = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"medusa_trt"}
DATA = {".gz", ".sh", ".html", ".css", ".js", ".svg", ".json", ".jsonl", ".jinja", ".typed"}
DATA |= {".safetensors"}
CFFCONVERT = shutil.which("cffconvert")
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))

BUILD = """
import sys
from setuptools import build_meta
getattr(build_meta, sys.argv[1])(sys.argv[2])
"""
IMPORT = """
import sys
sys.path[0] = sys.argv[1]
import medusa_trt, medusa_trt.runtime.session, medusa_trt.tree_configs, medusa_trt.cli.main
from medusa_trt.tree_configs import load_tree
load_tree("plain")
assert medusa_trt.__file__.startswith(sys.argv[1]), medusa_trt.__file__
assert medusa_trt.runtime.session.__file__.startswith(sys.argv[1])
"""

OPERATORS = """
from medusa_trt.runtime.engines.operators import read_kernels_name, require_library
assert require_library().is_relative_to(sys.argv[1]), require_library()
assert read_kernels_name()
"""


class Archives(NamedTuple):
    """Paths of the built archives."""

    source_archive: Path
    wheel: Path
    wheel_of_source_archive: Path


def build(command: str, source: Path, output: Path) -> Path:
    """Builds without a compiler, which takes seconds instead of a minute, and without network."""
    environment = {**os.environ, "CC": "/bin/false", "CXX": "/bin/false"}
    output.mkdir()
    subprocess.run(
        [sys.executable, "-c", BUILD, command, str(output)],
        cwd=source,
        env=environment,
        check=True,
        capture_output=True,
    )
    (archive,) = output.iterdir()
    return archive


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    folder = tmp_path_factory.mktemp("packaging")
    names = (".*", "build", "dist", "*.egg-info", "__pycache__", "*.so")
    checkout = Path(
        shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(*names))
    )
    if (ROOT / ".ci").exists():
        shutil.copytree(ROOT / ".ci", checkout / ".ci")
    source_archive = build("build_sdist", checkout, folder / "source_archive")
    with tarfile.open(source_archive) as file:
        file.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    wheel = build("build_wheel", checkout, folder / "wheel")
    return Archives(source_archive, wheel, build("build_wheel", unpacked, folder / "second_wheel"))


def names_in_wheel(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


def sources(*patterns: str) -> set[str]:
    """Files of the checkout, with / between folders."""
    paths = (path.relative_to(ROOT) for pattern in patterns for path in ROOT.glob(pattern))
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts}


def test_the_source_archive_has_everything_that_a_checkout_needs(archives: Archives) -> None:
    with tarfile.open(archives.source_archive) as file:
        packed = {str(PurePosixPath(*Path(name).parts[1:])) for name in file.getnames()}
    needed = sources("native/**/*.*", "tests/**/*.py", "benchmarks/**/*.py", "docs/**/*.md")
    needed |= {"setup.py", "pyproject.toml", "Makefile", "MANIFEST.in", "README.md", "LICENSE"}
    needed |= {"CHANGELOG.md", "CITATION.cff", "SECURITY.md"}
    assert needed <= packed, needed - packed


def test_the_wheel_of_the_source_archive_is_that_of_the_checkout(archives: Archives) -> None:
    assert names_in_wheel(archives.wheel) == names_in_wheel(archives.wheel_of_source_archive)


def test_the_wheel_has_every_module_and_data_file(archives: Archives) -> None:
    packed = names_in_wheel(archives.wheel)
    needed = {
        name if folder == "medusa_trt" else f"medusa_trt/{name}"
        for folder in (*FOLDERS, "medusa_trt")
        for name in sources(f"{folder}/**/*")
        if Path(name).suffix in {".py", *DATA} or Path(name).name == "py.typed"
    }
    assert needed == {name for name in packed if ".dist-info/" not in name}


def test_the_wheel_works_outside_the_checkout(archives: Archives, tmp_path: Path) -> None:
    with zipfile.ZipFile(archives.wheel) as file:
        file.extractall(tmp_path / "site")
    script = tmp_path / "imports.py"
    script.write_text(IMPORT)
    # -E ignores PYTHONPATH, and the script puts the unpacked wheel first in the search path.
    run = subprocess.run(
        [sys.executable, "-E", str(script), str(tmp_path / "site")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_one_wheel_serves_every_version_of_python(archives: Archives) -> None:
    name, _, python, interface, platform = archives.wheel.stem.split("-")
    assert (name, python, interface) == ("medusa_trt", "py3", "none")
    assert platform != "any"  # It holds the operators, where they could be compiled.


def test_the_version_is_that_of_the_package_everywhere(archives: Archives) -> None:
    assert CONFIG["project"]["dynamic"] == ["version"] and "version" not in CONFIG["project"]
    assert archives.wheel.name.split("-")[1] == __version__
    assert archives.source_archive.name == f"medusa_trt-{__version__}.tar.gz"
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.findall(r"^## (\S+)", changes, re.MULTILINE)[0] in {"Unreleased", __version__}
    assert (ROOT / f"docs/releases/{__version__}.md").is_file()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (
        citation["version"] == __version__ and citation["license"] == CONFIG["project"]["license"]
    )


def test_the_citation_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    (paper,) = citation["references"]
    assert {"type": "other", "value": "arXiv:2401.10774"} in paper["identifiers"]


@pytest.mark.skipif(
    CFFCONVERT is None, reason="cffconvert is not installed: pip install cffconvert"
)
def test_the_citation_fits_the_schema() -> None:
    command = [CFFCONVERT or "", "--validate", "--infile", str(ROOT / "CITATION.cff")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_forms_for_issues_have_what_they_need() -> None:
    """What hosts of code demand of a form: a name, a description, and an id for each question."""
    for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")):
        form = yaml.safe_load(path.read_text("utf-8"))
        assert form["name"] and form["description"], path
        questions = [part for part in form["body"] if part["type"] != "markdown"]
        ids = [question["id"] for question in questions]
        assert len(set(ids)) == len(ids) and all(q["attributes"]["label"] for q in questions)


@pytest.mark.slow
def test_the_wheel_brings_the_operators_without_a_compiler(tmp_path: Path) -> None:
    checkout = shutil.copytree(
        ROOT, tmp_path / "checkout", ignore=shutil.ignore_patterns(".*", "build", "dist", "*.so")
    )
    subprocess.run(
        [sys.executable, "-c", BUILD, "build_wheel", str(tmp_path)], cwd=checkout, check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    script = tmp_path / "imports.py"
    script.write_text(IMPORT + OPERATORS)
    run = subprocess.run(
        [sys.executable, "-E", str(script), str(tmp_path / "site")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_every_list_of_folders_is_complete() -> None:
    tool = CONFIG["tool"]
    banned = tool["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert banned.keys() == FOLDERS
    assert set(tool["pyright"]["include"]) >= FOLDERS
    layers = tool["importlinter"]["contracts"][0]["layers"]
    assert {f"medusa_trt.{name}" for name in FOLDERS} <= set(layers)


def test_windows_accepts_every_path() -> None:
    """Windows refuses some characters and names, and does not tell capital letters apart."""
    listing = subprocess.run(
        ["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True
    )
    if listing.returncode != 0:
        pytest.skip("this is not a checkout")
    entries = [line.split(maxsplit=3) for line in listing.stdout.splitlines()]
    assert not [path for mode, _, _, path in entries if mode == "120000"], "symbolic links"
    paths = [path for *_, path in entries]
    assert len({path.lower() for path in paths}) == len(paths)
    refused = {"con", "prn", "aux", "nul", *(f"{p}{n}" for p in ("com", "lpt") for n in range(10))}
    for path in paths:
        assert not set(path) & set('<>:"|?*\\') and len(path) < 150, path
        for part in Path(path).parts:
            assert part.split(".")[0].lower() not in refused and part[-1] not in ". ", path
