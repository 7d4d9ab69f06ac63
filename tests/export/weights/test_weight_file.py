"""The weight file of a bundle."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from medusa_trt.export.weights.lazy_tensor import (
    Array,
    LazyTensor,
    transpose_tensor,
)
from medusa_trt.export.weights.weight_file import WeightFile


def test_equal_weights_of_several_graphs_are_written_once(tmp_path: Path) -> None:
    array = np.arange(1000, dtype=np.float16).reshape(40, 25)
    reads = []

    def stored() -> Array:
        reads.append(1)
        return array

    def graph(*tensors: ir.TensorProtocol) -> ir.Model:
        values = [
            ir.Value(name=f"w{index}", const_value=tensor) for index, tensor in enumerate(tensors)
        ]
        return ir.Model(ir.Graph([], [], nodes=[], initializers=values), ir_version=10)

    tensor = LazyTensor(stored, array.shape, "key")
    small = ir.tensor(np.zeros(3, np.float32))
    models = [graph(tensor, small), graph(small, tensor, transpose_tensor(tensor))]
    weights = WeightFile(tmp_path / "weights.data")
    for model in models:
        weights.take(model)
    assert len(reads) == 2  # once as it is, once transposed
    found = [value.const_value for model in models for value in model.graph.initializers.values()]
    assert [isinstance(each, ir.ExternalTensor) for each in found] == [
        True,
        False,
        False,
        True,
        True,
    ]
    assert found[0] is found[3] and found[3] is not None and found[4] is not None
    assert np.array_equal(found[3].numpy(), array.astype(np.float32))
    assert np.array_equal(found[4].numpy(), array.T.astype(np.float32))
