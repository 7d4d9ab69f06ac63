"""The verify graph, traced from a `VerifyModule` and optimized."""

import onnx_ir as ir
from onnx_ir.passes import PassBase
from torch.export import Dim

from medusa_trt.export.graphs.tracing import Progress, trace_module
from medusa_trt.export.graphs.verify_module import VerifyModule
from medusa_trt.export.passes import optimize
from medusa_trt.export.passes.fuse_skip_norm import FuseSkipNormPass
from medusa_trt.export.weights.streamed_model import Weights
from medusa_trt.runtime import tensors as names


def trace_verify(
    module: VerifyModule,
    opset: int,
    quantize: PassBase | None = None,
    weights: Weights | None = None,
    progress: Progress = lambda _: None,
) -> ir.Model:
    """Traces the verify graph; see `VerifyModule.forward` for its inputs and outputs.

    Args:
        module: the module, which is traced without data where `weights` are given.
        opset: opset of the graph; the form of attention may need a newer one.
        quantize: the pass that quantizes the weights; None where they stay as they are.
        weights: weights of the model in `module`, read when the graph is written.
        progress: told each stage after the first one as it begins.
    """
    layers = range(module.shape.num_layers)
    form = module.form
    batch = {0: Dim("batch", min=1, max=1 << 16)} if form.takes_batch else {}
    trees = batch if form.takes_tree_per_sequence else {}
    first = len(trees)  # axis of the nodes
    num_nodes = Dim("num_nodes", min=1, max=1 << 20)
    num_rows = Dim("num_rows", min=1, max=1 << 20)
    capacity = Dim("capacity", min=2, max=1 << 30)
    kinds = ("key", "value")
    with module.attach():
        model = trace_module(
            module,
            module.make_example_inputs(),
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
                {first: num_nodes, first + 1: num_nodes, **trees},
                {first: num_nodes, **trees},
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
            progress=progress,
        )
    optimize(model, quantize, portable=form.is_portable)
    if form.fuses_skip_norm:
        FuseSkipNormPass()(model)
    model.graph.opset_imports[""] = max(opset, form.min_opset)
    return model
