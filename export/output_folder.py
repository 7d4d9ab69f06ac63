"""Output folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medusa_trt.errors import ExportError


@contextmanager
def new_folder(output: Path, overwrite: bool) -> Iterator[Path]:
    """A folder that becomes `output` when the block succeeds and vanishes when it does not."""
    partial = output.absolute().with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        partial.mkdir()
        yield partial
        if overwrite and output.exists():
            old = output.absolute().with_name(f".{output.name}.old-{os.getpid()}")
            output.rename(old)
            partial.rename(output)
            shutil.rmtree(old)
        else:
            partial.rename(output)
    except OSError as error:
        raise ExportError(f"cannot write {output}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
