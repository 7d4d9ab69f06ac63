"""The choice of the graph pass that rounds weights as a precision says."""

from onnx_ir.passes import PassBase, Sequential

from medusa_trt.export.quantization.quantize_embedding import QuantizeEmbeddingPass
from medusa_trt.export.quantization.quantize_linear import QuantizeLinearPass
from medusa_trt.export.quantization.quantize_weights import QuantizeWeightsPass
from medusa_trt.export.targets import Precision
from medusa_trt.export.weight_formats import ChooseFormat, ReportStored


def make_layers_pass(
    precision: Precision,
    vocab_size: int,
    planned: ChooseFormat | None,
    report_stored: ReportStored | None = None,
) -> PassBase | None:
    """Makes the pass for the verify graph; None where the precision rounds no layer.

    Only the unembedding has `vocab_size` outputs. `planned` are the formats of a quantization plan.
    """
    layers, unembedding = precision.layers, precision.unembedding
    if layers is None:
        return None
    choose = planned or (lambda weight: unembedding if weight.sizes[1] == vocab_size else layers)
    return _make_pass(precision, choose, report_stored)


def make_heads_pass(precision: Precision) -> PassBase | None:
    """Makes the pass for the heads graph, whose unembedding is rounded too: drafts are verified."""
    format_ = precision.heads
    return None if format_ is None else _make_pass(precision, lambda _: format_)


def _make_pass(
    precision: Precision, choose: ChooseFormat, report_stored: ReportStored | None = None
) -> PassBase:
    if not precision.uses_library:
        return QuantizeWeightsPass(choose, report_stored)
    return Sequential(
        QuantizeEmbeddingPass(report_stored), QuantizeLinearPass(choose, report_stored)
    )
