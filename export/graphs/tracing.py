"""Tracing a torch module to an ONNX graph."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from io import StringIO

import onnx_ir as ir
import torch
from onnxscript.optimizer import optimize_ir
from onnxscript.rewriter import onnx_fusions
from torch import nn

from medusa_trt.errors import ExportError
from medusa_trt.export.passes.fold_transpose import FoldTransposePass
from medusa_trt.export.passes.unstack_weights import UnstackWeightsPass
from medusa_trt.export.passes.widen_selection import WidenSelectionPass
from medusa_trt.export.weights.streamed_model import Weights, fake_parameters

Progress = Callable[[str], None]
"""Is told what begins."""

_STAGES = {
    "Run decompositions...": "taking its operations apart",
    "Translate the graph into ONNX...": "writing its operations in ONNX",
}
"""Stages of a trace by the lines that torch's exporter prints; the first one follows the code."""


def trace_module(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    opset: int,
    *,
    input_names: list[str],
    output_names: list[str],
    dynamic_shapes: tuple[object, ...] | None,
    weights: Weights,
    progress: Progress = lambda _: None,
) -> ir.Model:
    """Traces a module to an ONNX graph.

    Args:
        module: the module.
        inputs: example inputs.
        opset: opset of the graph.
        input_names: names of the graph's inputs.
        output_names: names of the graph's outputs.
        dynamic_shapes: see `torch.export.export`.
        weights: parameters that are traced without data and read when the graph is written.
        progress: told each stage after the first one as it begins.

    Raises:
        ExportError: torch cannot trace the module.
    """
    try:
        with (
            torch.no_grad(),
            _silence_exporter(progress),
            fake_parameters(module) if weights else nullcontext(),
        ):
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                opset_version=opset,
                input_names=input_names,
                output_names=output_names,
                dynamic_shapes=dynamic_shapes,
                optimize=False,
                verbose=True,  # its stages are passed on to `progress`
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise ExportError(f"torch cannot trace this model: {reason}; please report it") from error
    assert program is not None
    model = program.model
    for value in model.graph.initializers.values():
        if value.name is not None and value.name in weights:
            value.const_value = weights[value.name].rename(value.name)
    progress("  simplifying the graph")
    _simplify(model)
    for node in model.graph:
        node.metadata_props.clear()
    model.metadata_props.clear()
    model.producer_name = "medusa-trt"
    return model


class _StageReader(StringIO):
    """Takes what the exporter prints, and tells of the stages that it names."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._stdout, self._stderr = sys.stdout, sys.stderr

    def write(self, text: str) -> int:
        stage = _STAGES.get(text.strip())
        if stage is not None:
            with redirect_stdout(self._stdout), redirect_stderr(self._stderr):
                self._progress(f"  {stage}")
        return len(text)


@contextmanager
def _silence_exporter(progress: Progress) -> Iterator[None]:
    """Hides the exporter's messages about torchvision and axis names, but tells of its stages."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        stages = _StageReader(progress)
        with warnings.catch_warnings(), redirect_stdout(stages), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _simplify(model: ir.Model) -> None:
    """Optimizes like the exporter does, but without reading large weights."""

    def should_fold(node: ir.Node) -> bool | None:
        is_weight = node.op_type in ("Transpose", "Gather") and node.inputs[0] in weights
        return False if is_weight else None

    weights = set(model.graph.initializers.values())
    optimize_ir(model, should_fold=should_fold)
    UnstackWeightsPass()(model)
    FoldTransposePass()(model)
    onnx_fusions.fuse(model)
    WidenSelectionPass()(model)
