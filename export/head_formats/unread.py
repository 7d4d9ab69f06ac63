"""Unembeddings of heads that stay in their file until they are written."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from medusa_trt.errors import HeadsError
from medusa_trt.export.checkpoint_weights import PLAIN_DTYPES, TensorSource
from medusa_trt.export.head_formats.checkpoint_files import Checkpoint
from medusa_trt.export.head_formats.key_layouts import VLLM, HeadKey, Recognized
from medusa_trt.export.lazy_tensor import Array, LazyTensor

_PARTS = ("unembedding", "common_unembedding")


def unread_unembeddings(
    checkpoint: Checkpoint, recognized: Recognized
) -> dict[HeadKey, LazyTensor]:
    """What can be read when it is used: all unembeddings as they are in their files, or none.

    They are the largest part of heads by far. Those that a token map or a scale changes, that are
    split over files or in a type with scales, are read at once instead.
    """
    names = {key: name for key, name in recognized.names.items() if key.part in _PARTS}
    is_split = any(len(checkpoint.files[name]) > 1 for name in names.values())
    if recognized.layout is VLLM or HeadKey("token_map") in recognized.names or is_split:
        return {}
    mapped = checkpoint.load(names.values())
    if any(tensor.dtype not in PLAIN_DTYPES for tensor in mapped.values()):
        return {}
    found = {}
    for key, name in names.items():
        (file,) = checkpoint.files[name]
        read = partial(_read, TensorSource(file, name))
        found[key] = LazyTensor(read, tuple(mapped[name].shape), (str(file), name))
    return found


def in_order(unread: Mapping[HeadKey, LazyTensor]) -> tuple[LazyTensor, ...]:
    """By head; a common one alone."""
    return tuple(unread[key] for key in sorted(unread, key=lambda key: key.head or 0))


def _read(source: TensorSource) -> Array:
    array = source.read()
    if not np.isfinite(array).all():
        raise HeadsError(
            f"{source.file}: {source.key} holds NaN or infinity: the training has failed"
        )
    return array
