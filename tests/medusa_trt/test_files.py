"""Files and folders appear whole or not at all, and leftovers of killed processes are removed."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from medusa_trt.errors import ExportError, MedusaError, TrainingError
from medusa_trt.files import (
    check_output,
    check_space,
    check_writable,
    make_folder,
    read_text,
    replace_file,
    replace_files,
    text_from_bytes,
)
from medusa_trt.runtime.tensors import MANIFEST_FILE


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replace_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with (
        pytest.raises(MedusaError, match="cannot write"),
        replace_file(tmp_path / "no" / "x") as t,
    ):
        t.write_text("new")


def test_a_file_replaces_the_old_one_and_leftovers_of_killed_processes(tmp_path: Path) -> None:
    path, leftover = tmp_path / "a.png", tmp_path / f".a.partial-{1 << 30}.png"
    for file in (path, leftover):
        file.write_text("old")
    with replace_file(path) as temporary:
        assert temporary.suffix == ".png" and temporary.parent == tmp_path
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exists", [False, True])
def test_replaced_files_keep_the_other_files_of_a_folder(exists: bool, tmp_path: Path) -> None:
    output = tmp_path / "out"
    if exists:
        (output / "bundle").mkdir(parents=True)
        (output / "start.sh").write_text("old")
    with pytest.raises(KeyboardInterrupt), replace_files(output) as folder:
        (folder / "start.sh").write_text("half")
        raise KeyboardInterrupt
    assert output.exists() == exists
    with replace_files(output) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").touch()
        (folder / "start.sh").write_text("new")
    assert (output / "start.sh").read_text() == "new" and (output / "deep" / "file").exists()
    assert (output / "bundle").exists() == exists
    assert list(tmp_path.iterdir()) == [output]


def test_the_caller_chooses_the_class_of_the_error(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "x"
    with (
        pytest.raises(TrainingError, match="cannot write"),
        replace_file(missing, TrainingError) as file,
    ):
        file.write_text("new")
    for write in (replace_files, lambda path, error: make_folder(path, False, error)):
        with pytest.raises(TrainingError) as refused, write(missing, TrainingError):
            pass
        assert str(refused.value).startswith(f"cannot write {missing}: ")
        assert str(refused.value).endswith("No such file or directory")
        assert "partial" not in str(refused.value), "the user knows no temporary names"


def test_a_file_that_is_missing_inside_the_block_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(MedusaError, match=r"cannot write .*/out: .*/source: No such file"),
        replace_files(tmp_path / "out", MedusaError),
    ):
        (tmp_path / "source").read_bytes()


def test_text_that_is_no_utf_8_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfa\nb\xff\n")
    with pytest.raises(MedusaError, match=r"text is not UTF-8 text at byte 6, in line 2: convert"):
        read_text(path)
    path.write_bytes("\ufeffé\r\n".encode())
    assert read_text(path) == "é\r\n"
    with pytest.raises(TrainingError, match=r"cannot read .*: No such file"):
        read_text(tmp_path / "none", TrainingError)


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    for path in (tmp_path / "new", tmp_path / "file"):
        check_writable(path)
    check_writable(tmp_path, is_folder=True)
    check_writable(tmp_path / "a" / "b", is_folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for path in (tmp_path, tmp_path / "a" / "b", tmp_path / "file" / "b", Path("/proc/new")):
        with pytest.raises(TrainingError, match=f"cannot write {path}"):
            check_writable(path, TrainingError)
    for path in (tmp_path / "file", tmp_path / "file" / "b", Path("/proc/a/b")):
        with pytest.raises(MedusaError, match=f"cannot write {path} "):
            check_writable(path, is_folder=True)


def test_a_read_only_file_system_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There even the removal of a file that does not exist is refused."""

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(MedusaError, match="cannot write"), replace_file(tmp_path / "a" / "x"):
        pass


def test_a_full_disk_is_found_before_the_work(tmp_path: Path) -> None:
    free_bytes = shutil.disk_usage(tmp_path).free
    check_space(tmp_path / "bundle", 1)
    with pytest.raises(ExportError, match="GB free, the bundle needs about"):
        check_space(tmp_path / "bundle", 2 * free_bytes)


def test_sizes_have_units_in_which_they_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4_800_000))
    with pytest.raises(ExportError, match=r"has 4\.8 MB free, the bundle needs about 19\.5 MB:"):
        check_space(tmp_path / "bundle", 19_500_000)
    sizes = [text_from_bytes(size) for size in (999, 132_100, 1.25e9)]
    assert sizes == ["999 B", "132.1 kB", "1.2 GB"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_whichever_library_met_it(error: Exception, tmp_path: Path) -> None:
    for write in (replace_file, replace_files):
        with pytest.raises(MedusaError) as refused, write(tmp_path / "out"):
            raise error
        assert str(refused.value) == f"cannot write {tmp_path / 'out'}: No space left on device"
        with pytest.raises(RuntimeError, match="something else"), write(tmp_path / "out"):
            raise RuntimeError("something else")


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    dead = tmp_path / f".bundle.partial-{child}"
    alive = tmp_path / f".bundle.partial-{os.getppid()}"
    other = tmp_path / f".another.partial-{child}"
    for folder in (dead, alive, other):
        (folder / "deep").mkdir(parents=True)
    with make_folder(tmp_path / "bundle", overwrite=False) as folder:
        (folder / "file").touch()
    assert not dead.exists() and alive.exists() and other.exists()
    assert (tmp_path / "bundle" / "file").exists()


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_bundle_is_not_lost_where_its_replacement_was_killed(
    is_replaced: bool, tmp_path: Path
) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    output = tmp_path / "bundle"
    old = tmp_path / f".bundle.old-{child}"
    for folder, content in ((old, "old"), *([(output, "new")] if is_replaced else [])):
        folder.mkdir()
        (folder / MANIFEST_FILE).write_text(content)
    with pytest.raises(ExportError, match="exists: give another --output, or --overwrite"):
        check_output(output, overwrite=False, marker=MANIFEST_FILE)
    assert (output / MANIFEST_FILE).read_text() == ("new" if is_replaced else "old")
    with make_folder(output, overwrite=True) as folder:
        (folder / MANIFEST_FILE).write_text("newest")
    assert (output / MANIFEST_FILE).read_text() == "newest"
    assert list(tmp_path.iterdir()) == [output]
