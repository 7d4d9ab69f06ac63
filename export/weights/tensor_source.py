"""Tensors in safetensors and PyTorch files, mapped for one use at a time."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open

from medusa_trt.errors import ExportError
from medusa_trt.export.weights.lazy_tensor import Array
from medusa_trt.export.weights.streamed_model import array_from_tensor

PLAIN_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
"""Data types of weights that need no scale."""


class TensorSource:
    """One tensor of a file. The file is mapped for one use at a time, so that its pages go."""

    def __init__(self, file: Path, key: str) -> None:
        self.file, self.key = file, key

    def read(self) -> Array:
        """Reads the tensor, in the type that the file has it in.

        Raises:
            ExportError: the file is damaged.
        """
        with open_tensors(self.file, self.key) as opened:
            return array_from_tensor(opened[self.key].detach())


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
