"""ArgMax and TopK by the operator library."""

import onnx_ir as ir
import torch
from support.one_operator import run_graph

from medusa_trt.export.graphs.tracing import trace_module
from medusa_trt.export.passes.use_fast_selection import UseFastSelectionPass


class Selection(torch.nn.Module):
    """Selects from rows as the heads do, with or without log-probabilities."""

    def __init__(self, has_logprobs: bool) -> None:
        super().__init__()
        self.has_logprobs = has_logprobs

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scores = x.log_softmax(-1) if self.has_logprobs else x
        values, best = scores.topk(4, dim=-1)
        return (best, values) if self.has_logprobs else (best, x.argmax(-1))


def traced(has_logprobs: bool) -> ir.Model:
    outputs = ["best", "values" if has_logprobs else "argmax"]
    return trace_module(
        Selection(has_logprobs),
        (torch.randn(3, 50),),
        23,
        input_names=["x"],
        output_names=outputs,
        dynamic_shapes=({},),
        weights={},
    )


def test_selections_are_made_by_the_library_with_equal_results() -> None:
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    for has_logprobs, expected_ops in ((False, {"TopK", "ArgMax"}), (True, {"TopK"})):
        model = traced(has_logprobs)
        UseFastSelectionPass()(model)
        ops = {node.op_type for node in model.graph if node.domain == "medusa_trt"}
        assert ops == expected_ops
        actual = run_graph(model, {"x": x.numpy()})
        expected = Selection(has_logprobs)(x)
        assert (actual[0] == expected[0].numpy()).all()
        assert abs(actual[1] - expected[1].numpy()).max() < 1e-5
