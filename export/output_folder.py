"""Output folders that appear whole or not at all."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medusa_trt.errors import ExportError
from medusa_trt.interrupts import deferred_interrupts, num_interrupts, raise_swallowed
from medusa_trt.runtime.tensors import MANIFEST_FILE


def check_output(output: Path, overwrite: bool) -> None:
    """Fails before the long work where the end of it would.

    Raises:
        ExportError: the output is there already, or cannot be put there.
    """
    parent = output.absolute().parent
    if not parent.is_dir():
        raise ExportError(f"cannot write {output}: {parent} is not a folder")
    if not os.access(parent, os.W_OK):
        raise ExportError(f"cannot write {output}: {parent} is not writable")
    for old in _leftovers(output, "old"):
        if not output.exists():  # killed between taking it away and putting the new one there
            old.rename(output)
    if output.exists() and not overwrite:
        raise ExportError(f"{output} exists: give another --output, or --overwrite to replace it")
    if output.exists() and not (output / MANIFEST_FILE).is_file():
        raise ExportError(f"{output} is not a bundle, so it is not overwritten: give another name")


def check_space(output: Path, needed_bytes: int) -> None:
    """Fails before the long work where the disk cannot hold its result.

    Raises:
        ExportError: too little is free.
    """
    folder = output.absolute().parent
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise ExportError(
            f"{folder} has {free_bytes / 1e9:.1f} GB free, the bundle needs about "
            f"{needed_bytes / 1e9:.1f} GB: free some, choose a smaller --precision, or give an "
            "--output on another disk"
        )


def _leftovers(output: Path, kind: str) -> list[Path]:
    """What exports to this folder left that were killed before they could clean up."""
    pattern = re.compile(re.escape(f".{output.name}.{kind}-") + r"(\d+)")
    return [
        path
        for path in output.absolute().parent.iterdir()
        if (found := pattern.fullmatch(path.name))
        and not Path(f"/proc/{found[1]}").exists()
        and Path("/proc/self").exists()
    ]


@contextmanager
def new_folder(output: Path, overwrite: bool) -> Iterator[Path]:
    """A folder that becomes `output` when the block succeeds and vanishes when it does not."""
    partial = output.absolute().with_name(f".{output.name}.partial-{os.getpid()}")
    num_before = num_interrupts()
    try:
        for path in _leftovers(output, "partial") + _leftovers(output, "old"):
            shutil.rmtree(path, ignore_errors=True)
        partial.mkdir()
        yield partial
        raise_swallowed(num_before)
        with deferred_interrupts():
            _put(partial, output, overwrite)
    except OSError as error:
        raise ExportError(f"cannot write {output}: {error}") from error
    finally:
        with deferred_interrupts():
            shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, output: Path, overwrite: bool) -> None:
    if overwrite and output.exists():
        old = output.absolute().with_name(f".{output.name}.old-{os.getpid()}")
        output.rename(old)
        partial.rename(output)
        shutil.rmtree(old)
    else:
        partial.rename(output)
