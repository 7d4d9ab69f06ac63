"""Tensors in safetensors and PyTorch files, mapped for one use at a time."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import is_zipfile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from medusa_trt.errors import ExportError
from medusa_trt.export.weights.lazy_tensor import Array
from medusa_trt.export.weights.streamed_model import array_from_tensor

PLAIN_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
"""Data types of weights that need no scale."""


_CHECKED_SIZE = 1 << 22
"""Numbers that are looked at together."""


class TensorSource:
    """One tensor of a file. The file is mapped for one use at a time, so that its pages go."""

    def __init__(self, file: Path, key: str) -> None:
        self.file, self.key = file, key

    def read(self) -> Array:
        """Reads the tensor, in the type that the file has it in.

        Raises:
            ExportError: the file is damaged, or the tensor holds NaN or infinity.
        """
        with open_tensors(self.file, self.key) as opened:
            array = array_from_tensor(opened[self.key].detach())
        refuse_failed(array, f"{self.file}: {self.key}")
        return array


def refuse_failed(array: Array, place: str) -> None:
    """Refuses weights that are not numbers.

    Args:
        array: the weights.
        place: names them in the message.

    Raises:
        ExportError: they hold NaN or infinity.
    """
    if array.dtype.kind in "biu" or array.size == 0:
        return
    rows = array.reshape(-1, array.shape[-1]) if array.ndim else array[None]
    num_rows = max(1, _CHECKED_SIZE // rows.shape[-1])
    parts = (rows[start : start + num_rows] for start in range(0, len(rows), num_rows))
    if not all(np.isfinite(part).all() for part in parts):
        raise ExportError(f"{place} holds NaN or infinity: the training has failed")


@contextmanager
def open_tensors(file: Path, key: str | None = None) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of a file, or one of them, mapped and not read."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                keys = list(opened.keys()) if key is None else [key]
                yield {key: opened.get_tensor(key) for key in keys}
        else:
            mapped = is_zipfile(file)  # an older pickle can only be read whole
            loaded = torch.load(file, map_location="cpu", mmap=mapped, weights_only=True)
            if not isinstance(loaded, dict):
                raise ExportError(f"{file} holds a {type(loaded).__name__}, not tensors by name")
            yield {key: tensor for key, tensor in loaded.items() if torch.is_tensor(tensor)}
    except pickle.UnpicklingError as error:
        # The error's own text recommends to run the code in the file.
        raise ExportError(
            f"cannot read {file}: it is damaged, or holds more than tensors, which is not safe to "
            "load; save the model as safetensors"
        ) from error
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ExportError(f"cannot read {file}: {reason}") from error
