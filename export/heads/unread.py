"""Matrices of heads that stay in their file until they are written."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from medusa_trt.errors import HeadsError
from medusa_trt.export.heads.key_layouts import UNEMBEDDINGS, VLLM, HeadKey, Recognized
from medusa_trt.export.weights.checkpoint_files import Checkpoint
from medusa_trt.export.weights.lazy_tensor import Array, LazyTensor
from medusa_trt.export.weights.tensor_source import PLAIN_DTYPES, TensorSource

_PARTS = ("block", "projection", "root_map", *UNEMBEDDINGS)
_CHECKED_SIZE = 1 << 22
"""Numbers that are looked at together."""


def find_unread_matrices(
    checkpoint: Checkpoint, recognized: Recognized, tensors: Mapping[HeadKey, torch.Tensor]
) -> dict[HeadKey, LazyTensor]:
    """Finds the matrices that can be read later: all of them as their files have them, or none.

    Those of which a token map or a scale changes one, that are split over files or in a type with
    scales, are read at once instead.

    Args:
        checkpoint: the files.
        recognized: how they name the tensors.
        tensors: the heads', mapped.
    """
    names = {
        key: name
        for key, name in recognized.names.items()
        if key.part in _PARTS and key.kind == "weight"
    }
    is_split = any(len(checkpoint.files[name]) > 1 for name in names.values())
    if recognized.layout is VLLM or HeadKey("token_map") in recognized.names or is_split:
        return {}
    if any(tensors[key].dtype not in PLAIN_DTYPES for key in names):
        return {}
    found = {}
    for key, name in names.items():
        (file,) = checkpoint.files[name]
        read = partial(_read, TensorSource(file, name))
        found[key] = LazyTensor(read, tuple(tensors[key].shape), (str(file), name))
    return found


def by_matrix(unread: Mapping[HeadKey, LazyTensor]) -> dict[str, tuple[LazyTensor, ...]]:
    """Groups matrices as `MedusaHeads.unread` has them."""
    found: dict[str, list[LazyTensor]] = {}
    for key in sorted(unread, key=lambda key: key.head or 0):
        part = "unembedding" if key.part in UNEMBEDDINGS else key.part
        name = f"{part}{key.layer}" if part == "block" else part
        found.setdefault(name, []).append(unread[key])
    return {name: tuple(tensors) for name, tensors in found.items()}


def _read(source: TensorSource) -> Array:
    array = source.read()
    num_rows = max(1, _CHECKED_SIZE // array.shape[-1])
    parts = (array[start : start + num_rows] for start in range(0, len(array), num_rows))
    if not all(np.isfinite(part).all() for part in parts):
        raise HeadsError(
            f"{source.file}: {source.key} holds NaN or infinity: the training has failed"
        )
    return array
