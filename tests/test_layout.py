"""Each module has a test at its path, and files and folders stay small."""

import subprocess
from collections import Counter
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
CODE = "benchmarks calibration export medusa_trt native runtime serving tests training tree_configs"
MAX_LINES, MAX_FILES = 400, 16


@pytest.fixture(scope="module")
def files() -> list[PurePosixPath]:
    """The tracked files of the code's folders."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", *CODE.split()]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    paths = map(PurePosixPath, filter(None, listed.stdout.split("\0")))
    return [path for path in paths if (ROOT / path).is_file()]


def test_every_module_has_a_test_at_its_path(files: list[PurePosixPath]) -> None:
    """It is test_NAME.py, test_NAME_ASPECT.py or a folder NAME, in the mirrored folder."""
    tests = [path for path in files if path.parts[0] == "tests" and path.match("test_*.py")]
    missing = []
    for path in files:
        if path.suffix != ".py" or path.parts[0] == "tests" or path.name == "__init__.py":
            continue
        folder, name = PurePosixPath("tests", path.parent), path.stem.strip("_")
        if not any(
            (test.parent == folder and f"{test.stem}_".startswith(f"test_{name}_"))
            or test.parent == folder / name
            for test in tests
        ):
            missing.append(str(path))
    assert not missing


def test_no_file_is_long(files: list[PurePosixPath]) -> None:
    sources = [path for path in files if path.suffix in {".py", ".cpp", ".h", ".js"}]
    lengths = {str(path): len((ROOT / path).read_bytes().splitlines()) for path in sources}
    assert not {path: length for path, length in lengths.items() if length > MAX_LINES}


def test_no_folder_is_full(files: list[PurePosixPath]) -> None:
    """The folder of the published trees, which are data, is the exception."""
    sizes = Counter(str(path.parent) for path in files)
    assert {folder for folder, size in sizes.items() if size > MAX_FILES} <= {"tree_configs"}
