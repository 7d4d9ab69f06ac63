"""The tracing of modules, with weights that are not read and stages that are told."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from medusa_trt.errors import ExportError
from medusa_trt.export.graphs.tracing import trace_module
from medusa_trt.export.weights.lazy_tensor import Array, LazyTensor

STAGES = [
    "  taking its operations apart",
    "  writing its operations in ONNX",
    "  simplifying the graph",
]


class Experts(nn.Module):
    """A product by a transposed weight, one by a matrix of a stack, and one by a buffer."""

    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 32))
        self.stack = nn.Parameter(torch.randn(3, 64, 64) / 8)
        self.register_buffer("scale", torch.linspace(1, 2, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.linear(x, self.weight) @ self.stack[2]
        return hidden * self.scale


def trace(module: nn.Module, weights: dict[str, LazyTensor], told: list[str]) -> ir.Model:
    return trace_module(
        module,
        (torch.zeros(1, 4, 32),),
        23,
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=({1: torch.export.Dim("rows", min=1, max=100)},),
        weights=weights,
        progress=told.append,
    )


def test_large_weights_are_read_when_the_graph_is_written() -> None:
    torch.manual_seed(0)
    module, reads = Experts(), list[str]()

    def recipe(name: str, array: Array) -> LazyTensor:
        def read() -> Array:
            reads.append(name)
            return array

        return LazyTensor(read, array.shape, name)

    weights = {
        name: recipe(name, parameter.detach().numpy())
        for name, parameter in module.named_parameters()
    }
    told: list[str] = []
    model = trace(module, weights, told)
    assert told == STAGES and not reads
    assert all(parameter.device.type == "cpu" for parameter in module.parameters())
    # Neither matrix is turned or picked at each step.
    assert sorted(node.op_type for node in model.graph) == ["MatMul", "MatMul", "Mul"]
    assert model.producer_name == "medusa-trt" and not model.metadata_props
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    assert sorted(reads) == ["stack", "weight"]
    assert session.get_inputs()[0].shape == [1, "rows", 32]
    for num_rows in (1, 7):
        x = torch.randn(1, num_rows, 32)
        (found,) = session.run(["y"], {"x": x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, module(x).numpy(), rtol=1e-5, atol=1e-5)


def test_nothing_but_the_stages_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    trace_module(
        nn.ReLU(),
        (torch.zeros(2),),
        23,
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=None,
        weights={},
        progress=print,
    )
    printed = capsys.readouterr()
    assert printed.out.splitlines() == STAGES and not printed.err


class Branching(nn.Module):
    """Decides by a value, which a graph cannot."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_a_module_that_cannot_be_traced_is_an_error_of_one_line() -> None:
    with pytest.raises(ExportError, match=r"^torch cannot trace this model: [^\n]+; please report"):
        trace(Branching(), {}, [])
