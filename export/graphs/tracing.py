"""Tracing the graphs to ONNX, and writing them with one copy of each weight."""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import InPlacePass
from onnxscript.optimizer import optimize_ir
from onnxscript.rewriter import onnx_fusions
from torch import nn
from torch.export import Dim

from medusa_trt.errors import ExportError
from medusa_trt.export.graphs.verify_module import VerifyModule
from medusa_trt.export.heads.medusa_heads import HeadsModule
from medusa_trt.export.passes import optimize
from medusa_trt.export.passes.fold_transpose import FoldTransposePass
from medusa_trt.export.passes.fuse_skip_norm import FuseSkipNormPass
from medusa_trt.export.passes.unstack_weights import UnstackWeightsPass
from medusa_trt.export.passes.widen_selection import WidenSelectionPass
from medusa_trt.export.weights.lazy_tensor import LazyTensor
from medusa_trt.export.weights.streamed_model import Weights, fake_parameters
from medusa_trt.export.weights.weight_file import WeightFile
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import GraphSpec, TensorSpec
from medusa_trt.tree_configs import MedusaTree


def verify_graph(
    module: VerifyModule,
    opset: int,
    quantize: InPlacePass | None = None,
    weights: Weights | None = None,
) -> ir.Model:
    """The verify graph, optimized; see `VerifyModule.forward` for its inputs and outputs.

    Args:
        module: traced without data where `weights` are given.
        opset: of the graph.
        quantize: where its products are to be quantized.
        weights: of the model in `module`, read when the graph is written.
    """
    layers = range(module.shape.num_layers)
    form = module.form
    batch = {0: Dim("batch", min=1, max=1 << 16)} if form.takes_batch else {}
    num_nodes = Dim("num_nodes", min=1, max=1 << 20)
    num_rows = Dim("num_rows", min=1, max=1 << 20)
    capacity = Dim("capacity", min=2, max=1 << 30)
    kinds = ("key", "value")
    with module.attached():
        model = _traced(
            module,
            module.example_inputs(),
            opset,
            input_names=[
                names.INPUT_IDS,
                names.TREE_MASK,
                names.POSITION_OFFSETS,
                names.PAST_LENGTH,
                names.ROWS,
                *([names.CACHE_POSITIONS] if form.reads_cache_positions else []),
                *(names.past_name(layer, kind) for layer in layers for kind in kinds),
            ],
            output_names=[
                names.ARGMAX,
                names.HIDDEN,
                names.LOGITS,
                *(names.present_name(layer, kind) for layer in layers for kind in kinds),
            ],
            dynamic_shapes=(
                {1: num_nodes, **batch},
                {0: num_nodes, 1: num_nodes},
                {0: num_nodes},
                batch,
                {0: num_rows},
                (
                    *(
                        [{0: Dim("num_read", min=2, max=1 << 30)}]
                        if form.reads_cache_positions
                        else []
                    ),
                    *({2: capacity, **batch} for _ in range(2 * module.shape.num_layers)),
                ),
            ),
            weights={f"model.{name}": weight for name, weight in (weights or {}).items()},
        )
    optimize(model, quantize, portable=form.is_portable)
    if form.fuses_skip_norm:
        FuseSkipNormPass()(model)
    model.graph.opset_imports[""] = max(opset, form.min_opset)
    return model


def heads_graph(
    module: HeadsModule,
    hidden_size: int,
    opset: int,
    quantize: InPlacePass | None = None,
    weights: Mapping[str, LazyTensor] | None = None,
    *,
    portable: bool = False,
) -> ir.Model:
    """The heads graph; see `HeadsModule.forward` for its inputs and output.

    Args:
        module: the heads, with the backbone's matrices as parameters where those are lazy.
        hidden_size: width of the hidden state.
        opset: of the graph.
        quantize: where its products are to be quantized.
        weights: those of the module's parameters that are to be read later, by their names.
        portable: see `optimize`.
    """
    inputs: tuple[torch.Tensor, ...] = (torch.zeros(2, hidden_size),)
    if module.reads_root:
        inputs = (*inputs, torch.zeros(2, dtype=torch.int64))
    batch = Dim("batch", min=1, max=1 << 16)
    model = _traced(
        module,
        inputs,
        opset,
        input_names=[names.HIDDEN, names.ROOT_IDS][: len(inputs)],
        output_names=[names.DRAFT_IDS],
        dynamic_shapes=({0: batch},) * len(inputs),
        weights=weights or {},
    )
    if quantize is not None:
        optimize(model, quantize, portable=portable, attends=False)
    return model


def tree_graph(tree: MedusaTree, opset: int) -> ir.Model:
    """The static tree-mask graph: no input, the tree's additive mask and position offsets.

    Its outputs are the verify graph's inputs of the same names, so that merging it makes a
    verify graph for this tree alone, with nothing of the tree left to feed.
    """
    outputs = []
    nodes = []
    for name, array in (
        (names.TREE_MASK, tree.additive_mask),
        (names.POSITION_OFFSETS, np.array(tree.position_offsets)),
    ):
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(array))])
        output = node.outputs[0]
        output.name, output.shape = name, ir.Shape(array.shape)
        output.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        nodes.append(node)
        outputs.append(output)
    graph = ir.Graph([], outputs, nodes=nodes, opset_imports={"": opset}, name="tree")
    return ir.Model(graph, ir_version=10, producer_name="medusa-trt")


def save_graphs(folder: Path, graphs: Mapping[str, ir.Model]) -> None:
    """Writes the graphs into a bundle's folder.

    Large weights go to one external file, each once, whichever graphs have it: heads that share
    the unembedding, and the batch form, refer to the same bytes. A protobuf file holds 2 GB at
    most, and the heads of a large model have more.

    Args:
        folder: the bundle's.
        graphs: by their names in `GRAPH_FILES`; "verify" is among them.
    """
    weights = WeightFile(folder / names.WEIGHTS_FILE)
    for name, model in graphs.items():
        weights.take(model)
        ir.save(model, folder / names.GRAPH_FILES[name])


def graph_spec(folder: Path, graph: str) -> GraphSpec:
    """The interface of a graph that has been written."""
    file = names.GRAPH_FILES[graph]
    saved = ir.load(folder / file).graph
    return GraphSpec(file, _tensor_specs(saved.inputs), _tensor_specs(saved.outputs))


def _traced(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    opset: int,
    *,
    input_names: list[str],
    output_names: list[str],
    dynamic_shapes: tuple[object, ...] | None,
    weights: Weights,
) -> ir.Model:
    """Traces a module; parameters named in `weights` are traced without data."""
    try:
        with torch.no_grad(), _quiet(), fake_parameters(module) if weights else nullcontext():
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                opset_version=opset,
                input_names=input_names,
                output_names=output_names,
                dynamic_shapes=dynamic_shapes,
                optimize=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise ExportError(f"torch cannot trace this model: {reason}; please report it") from error
    assert program is not None
    model = program.model
    for value in model.graph.initializers.values():
        if value.name is not None and value.name in weights:
            value.const_value = weights[value.name].named(value.name)
    _simplify(model)
    for node in model.graph:
        node.metadata_props.clear()
    model.metadata_props.clear()
    model.producer_name = "medusa-trt"
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the exporter's own remarks on torchvision and on axis names."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _simplify(model: ir.Model) -> None:
    """What the exporter's own optimization does, without reading large weights."""

    def should_fold(node: ir.Node) -> bool | None:
        is_weight = node.op_type in ("Transpose", "Gather") and node.inputs[0] in weights
        return False if is_weight else None

    weights = set(model.graph.initializers.values())
    optimize_ir(model, should_fold=should_fold)
    UnstackWeightsPass()(model)
    FoldTransposePass()(model)
    onnx_fusions.fuse(model)
    WidenSelectionPass()(model)


def _tensor_specs(values: Iterable[ir.Value]) -> list[TensorSpec]:
    specs = []
    for value in values:
        assert value.name is not None and value.dtype is not None and value.shape is not None
        shape = [dim if isinstance(dim, int) else str(dim) for dim in value.shape]
        specs.append(TensorSpec(value.name, value.dtype.name.lower(), shape))
    return specs
