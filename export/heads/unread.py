"""Matrices of heads that stay in their file until they are written."""

from collections.abc import Mapping

import torch

from medusa_trt.export.heads.key_layouts import UNEMBEDDINGS, VLLM, HeadKey, Recognized
from medusa_trt.export.weights.checkpoint_files import Checkpoint
from medusa_trt.export.weights.lazy_tensor import LazyTensor
from medusa_trt.export.weights.tensor_source import PLAIN_DTYPES, TensorSource

_PARTS = ("block", "projection", "root_map", *UNEMBEDDINGS)


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
    unread = {}
    first_names: dict[int, str] = {}  # A tied tensor has several names, and is stored once.
    for key, name in names.items():
        (file,) = checkpoint.files[name]
        source = TensorSource(file, first_names.setdefault(id(tensors[key]), name))
        place = str(file), source.key
        unread[key] = LazyTensor(source.read, tuple(tensors[key].shape), place)
    return unread


def group_matrices(unread: Mapping[HeadKey, LazyTensor]) -> dict[str, tuple[LazyTensor, ...]]:
    """Groups matrices as `MedusaHeads.unread` has them."""
    groups: dict[str, list[LazyTensor]] = {}
    for key in sorted(unread, key=lambda key: key.head or 0):
        part = "unembedding" if key.part in UNEMBEDDINGS else key.part
        name = f"{part}{key.layer}" if part == "block" else part
        groups.setdefault(name, []).append(unread[key])
    return {name: tuple(tensors) for name, tensors in groups.items()}
