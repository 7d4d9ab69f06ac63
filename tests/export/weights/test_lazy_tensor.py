"""Recipes of tensors."""

import ml_dtypes
import numpy as np
import onnx_ir as ir

from medusa_trt.export.weights.lazy_tensor import (
    LazyTensor,
    concatenate_tensors,
    transpose_tensor,
    wrap_tensor,
)


def test_recipes_give_what_numpy_does_and_know_equal_ones() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(3, 4)).astype(ml_dtypes.bfloat16) for _ in range(2)]
    tensors = [
        LazyTensor(array.view, (3, 4), ("file", index)) for index, array in enumerate(arrays)
    ]
    joined = concatenate_tensors([transpose_tensor(tensor) for tensor in tensors], axis=1)
    expected = np.concatenate([array.T for array in arrays], axis=1).astype(np.float32)
    assert np.array_equal(joined.numpy(), expected) and joined.sizes == expected.shape
    assert joined.numpy().dtype == np.float32
    again = concatenate_tensors([transpose_tensor(tensor) for tensor in tensors], axis=1)
    assert again.key == joined.key != concatenate_tensors(tensors, axis=1).key
    assert transpose_tensor(transpose_tensor(tensors[0])).key == tensors[0].key


def test_memory_tensors_are_known_by_identity() -> None:
    first, second = ir.tensor(np.zeros(3)), ir.tensor(np.zeros(3))
    assert wrap_tensor(first).key == wrap_tensor(first).key != wrap_tensor(second).key
