"""Writes files and folders whole or not at all, and names several of them in messages."""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

from medusa_trt.errors import ExportError, MedusaError
from medusa_trt.interrupts import count_interrupts, defer_interrupts, raise_swallowed


def join_names(keys: Iterable[str]) -> str:
    """Joins the first five names, in order, and counts the others."""
    shown = sorted(keys)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def decode_text(data: bytes, source: str, error_class: type[MedusaError] = MedusaError) -> str:
    """Decodes UTF-8; a byte order mark at the beginning is not part of the text.

    Raises:
        MedusaError: the bytes are not UTF-8; the message calls them `source`.
    """
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        num_before = data.count(b"\n", 0, error.start)
        line = f", in line {num_before + 1}" if num_before else ""
        raise error_class(
            f"{source} is not UTF-8 text at byte {error.start}{line}: convert it to UTF-8"
        ) from error


def read_text(path: Path, error_class: type[MedusaError] = MedusaError) -> str:
    """Reads a file of UTF-8 text, with or without a byte order mark.

    Raises:
        MedusaError: the file cannot be read, or is no such text.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise error_class(f"cannot read {path}: {reason}") from error
    return decode_text(data, str(path), error_class)


def find_write_reason(error: BaseException) -> str | None:
    """Finds the system's reason why a file was not written, as "No space left on device".

    Libraries that write files by Rust or C++ raise other errors than OSError.

    Returns:
        The reason; None if the error is about something else.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if match := re.search(r"\(os error (\d+)\)", str(error)):
        return os.strerror(int(match[1]))
    if "PytorchStreamWriter failed" in str(error) or "iostream error" in str(error):
        return "the disk is full, or the file may not grow"
    return None


def text_from_bytes(size_bytes: float) -> str:
    """Formats a size with its unit: 132.1 kB, 19.5 MB, 1.2 GB."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes:.0f} B"


@contextmanager
def replace_file(path: Path, error_class: type[MedusaError] = MedusaError) -> Iterator[Path]:
    """Gives a temporary path in the same folder; the file there is renamed to `path` at the end.

    If the block fails, `path` stays as it was and the temporary file is removed. The temporary
    name ends like `path`, because some libraries choose the file format by the suffix.

    Raises:
        MedusaError: the file cannot be written; `error_class` is its class.
    """
    temporary = _make_temporary_path(path, "partial")
    try:
        for leftover in _list_leftovers(path, "partial"):
            leftover.unlink(missing_ok=True)
        yield temporary
        temporary.replace(path)
    except Exception as error:
        if (reason := find_write_reason(error)) is None:
            raise
        raise error_class(f"cannot write {path}: {reason}") from error
    finally:
        # A read-only file system raises even where there is no such file.
        with defer_interrupts(), suppress(OSError):
            temporary.unlink()


def make_folder(
    output: Path, overwrite: bool, error_class: type[MedusaError] = ExportError
) -> AbstractContextManager[Path]:
    """Gives a temporary folder that is renamed to `output` at the end of the block.

    If the block fails, the temporary folder is removed.

    Args:
        output: path of the folder; its parent exists.
        overwrite: replace a folder that exists.
        error_class: class of the error for a folder that cannot be written.
    """
    return _temporary_folder(output, partial(_put, output, overwrite), error_class)


def replace_files(
    output: Path, error_class: type[MedusaError] = ExportError
) -> AbstractContextManager[Path]:
    """Gives a temporary folder whose files replace those of `output` at the end of the block.

    Other files of `output` stay. If the block fails, `output` stays as it was.

    Args:
        output: path of the folder, which is made if it is missing.
        error_class: class of the error for a folder that cannot be written.
    """
    return _temporary_folder(output, partial(_move_files, output), error_class)


@contextmanager
def _temporary_folder(
    output: Path, move: Callable[[Path], None], error_class: type[MedusaError]
) -> Iterator[Path]:
    folder = _make_temporary_path(output, "partial")
    num_before = count_interrupts()
    try:
        for leftover in _list_leftovers(output, "partial") + _list_leftovers(output, "old"):
            shutil.rmtree(leftover, ignore_errors=True)
        folder.mkdir()
        yield folder
        raise_swallowed(num_before)
        with defer_interrupts():
            move(folder)
    except Exception as error:
        if (reason := find_write_reason(error)) is None:
            raise
        file = getattr(error, "filename", None)
        if file is not None and not Path(file).is_relative_to(folder):
            reason = f"{file}: {reason}"
        raise error_class(f"cannot write {output}: {reason}") from error
    finally:
        with defer_interrupts():
            shutil.rmtree(folder, ignore_errors=True)


def _put(output: Path, overwrite: bool, folder: Path) -> None:
    if overwrite and output.exists():
        old = _make_temporary_path(output, "old")
        output.rename(old)
        folder.rename(output)
        shutil.rmtree(old)
    else:
        folder.rename(output)


def _move_files(output: Path, folder: Path) -> None:
    if not output.exists():
        folder.rename(output)
        return
    for file in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        target = output / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)


def _make_temporary_path(path: Path, kind: str) -> Path:
    """Path in the same folder, with the number of this process in its name."""
    absolute = path.absolute()
    return absolute.parent / f".{absolute.stem}.{kind}-{os.getpid()}{absolute.suffix}"


def _list_leftovers(path: Path, kind: str) -> list[Path]:
    """Temporary files or folders of processes that were killed before they could remove them."""
    absolute = path.absolute()
    if not Path("/proc/self").exists():  # Whether a process still runs cannot be seen here.
        return []
    pattern = re.compile(
        re.escape(f".{absolute.stem}.{kind}-") + r"(\d+)" + re.escape(absolute.suffix)
    )
    return [
        sibling
        for sibling in absolute.parent.iterdir()
        if (match := pattern.fullmatch(sibling.name)) and not Path(f"/proc/{match[1]}").exists()
    ]


def check_writable(
    path: Path,
    error_class: type[MedusaError] = MedusaError,
    *,
    is_folder: bool = False,
    advice: str = "choose another place",
) -> None:
    """Checks before long work that its result can be written, by writing a file without a name.

    Args:
        path: the file that will be written; its folder must exist.
        error_class: class of the error.
        is_folder: whether `path` is a folder, which is made with those above it if it is missing.
        advice: what the user can do.

    Raises:
        MedusaError: it cannot be written.
    """
    place = path.absolute()
    try:
        if is_folder:
            while not place.exists():
                place = place.parent
            if not place.is_dir():
                raise error_class(f"cannot write {path} ({place} is not a folder): {advice}")
        elif place.is_dir():
            raise error_class(f"cannot write {path}: it is a folder, name a file")
        else:
            place = place.parent
        with TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = f"{place}: {error.strerror or error}"
        raise error_class(f"cannot write {path} ({reason}): {advice}") from error


def check_output(output: Path, overwrite: bool, marker: str) -> None:
    """Checks before long work that a bundle's folder can be written at its end.

    Args:
        output: path of the folder.
        overwrite: whether a bundle there may be replaced.
        marker: name of a file that every bundle holds.

    Raises:
        ExportError: the folder exists already, or cannot be written.
    """
    parent = output.absolute().parent
    if not parent.is_dir():
        raise ExportError(f"cannot write {output}: {parent} is not a folder")
    try:
        check_writable(parent, is_folder=True)
    except MedusaError as error:
        # The folder itself is renamed at the end, so what is above it must be writable.
        raise ExportError(str(error).replace(f"write {parent} ", f"write {output} ", 1)) from error
    for old in _list_leftovers(output, "old"):
        # A process was killed after it had renamed the old bundle, before the new one had its name.
        if not output.exists():
            old.rename(output)
    if output.exists() and not overwrite:
        raise ExportError(f"{output} exists: give another --output, or --overwrite to replace it")
    if output.exists() and not (output / marker).is_file():
        raise ExportError(f"{output} is not a bundle, so it is not overwritten: give another name")


def check_space(output: Path, needed_bytes: int) -> None:
    """Checks before long work that the disk has space for its result.

    Raises:
        ExportError: too few bytes are free.
    """
    folder = output.absolute().parent
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise ExportError(
            f"{folder} has {text_from_bytes(free_bytes)} free, the bundle needs about "
            f"{text_from_bytes(needed_bytes)}: free some, choose a smaller --precision, or give an "
            "--output on another disk"
        )
