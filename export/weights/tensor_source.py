"""Tensors in safetensors and PyTorch files, mapped for one use at a time, and their index."""

import pickle
import warnings
from pathlib import Path
from zipfile import is_zipfile

import msgspec
import numpy as np
import torch
from safetensors import safe_open

from medusa_trt.errors import ExportError, MedusaError
from medusa_trt.export.weights.lazy_tensor import Array
from medusa_trt.export.weights.streamed_model import array_from_tensor
from medusa_trt.files import join_names

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
        array = array_from_tensor(map_tensors(self.file, self.key)[self.key].detach())
        refuse_failed(array, f"{self.file}: {self.key}")
        return array


def refuse_failed(array: Array, place: str) -> None:
    """Refuses weights that are not numbers; `place` names them in the message.

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


def _find_reason(file: Path) -> str | None:
    """Finds out why the system does not open a file, which some readers call a missing file."""
    try:
        file.open("rb").close()
    except OSError as error:
        return error.strerror
    return None


def map_tensors(
    file: Path, key: str | None = None, error_class: type[MedusaError] = ExportError
) -> dict[str, torch.Tensor]:
    """Maps the tensors of a file, or one of them, without reading their data.

    A tensor that a safetensors file leaves out because it is another one's is mapped by both names.

    Args:
        file: a safetensors file, or a pickle of PyTorch.
        key: name of the only tensor to map.
        error_class: class of the error.

    Raises:
        MedusaError: the file is missing or damaged, or a pickle that holds more than tensors.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                stored = {name: name for name in opened.keys()}  # noqa: SIM118
                ties = opened.metadata() or {}
                stored |= {left: kept for left, kept in ties.items() if kept in stored}
                names = stored if key is None else {key: stored[key]}
                mapped = {name: opened.get_tensor(name) for name in set(names.values())}
                return {name: mapped[kept] for name, kept in names.items()}
        with warnings.catch_warnings():
            # PyTorch warns of the pickle protocol of a file that it refuses.
            warnings.simplefilter("ignore")
            is_mapped = is_zipfile(file)  # An older pickle can only be read as a whole.
            loaded = torch.load(file, map_location="cpu", mmap=is_mapped, weights_only=True)
    except pickle.UnpicklingError as error:
        # The error's own text recommends to run the code in the file.
        raise error_class(
            f"cannot read {file}: it is damaged, or holds more than tensors, which is not safe to "
            "load; save the tensors as safetensors"
        ) from error
    except Exception as error:  # The readers raise almost anything for a damaged file.
        if reason := _find_reason(file):
            raise error_class(f"cannot read {file}: {reason}") from error
        first_line = str(error).strip().split("\n")[0]
        raise error_class(f"cannot read {file}: {type(error).__name__}: {first_line}") from error
    items = loaded.items() if isinstance(loaded, dict) else ()
    tensors = {name: x for name, x in items if isinstance(name, str) and torch.is_tensor(x)}
    if not tensors:
        raise error_class(f"{file} does not hold a dictionary of tensors")
    return tensors


class _Index(msgspec.Struct):
    """The index of a checkpoint that is split over several files."""

    weight_map: dict[str, str]


def read_weight_map(index: Path, error_class: type[MedusaError] = ExportError) -> dict[str, str]:
    """Reads the name of the file that holds each tensor.

    Raises:
        MedusaError: the index is damaged, or names a file outside of its folder.
    """
    try:
        weight_map = msgspec.json.decode(index.read_bytes(), type=_Index).weight_map
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise error_class(f"{index} has no weight_map of file names: {error}") from error
    if outside := [name for name in weight_map.values() if Path(name).name != name]:
        raise error_class(f"{index} points outside its folder: {join_names(outside)}")
    return weight_map
