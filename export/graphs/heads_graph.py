"""The heads graph, traced from the heads and the backbone's matrices that they use."""

from collections.abc import Mapping

import onnx_ir as ir
import torch
from onnx_ir.passes import PassBase
from torch.export import Dim
from transformers import PreTrainedModel

from medusa_trt.export.graphs.heads_module import HeadsModule
from medusa_trt.export.graphs.tracing import trace_module
from medusa_trt.export.heads.medusa_heads import MedusaHeads
from medusa_trt.export.passes import optimize
from medusa_trt.export.weights.lazy_tensor import LazyTensor, stack_tensors, transpose_tensor
from medusa_trt.export.weights.streamed_model import Weights, tensor_from_array
from medusa_trt.runtime import tensors as names


def trace_heads(
    heads: MedusaHeads,
    model: PreTrainedModel,
    backbone: Weights,
    *,
    top_k: int,
    dtype: torch.dtype,
    opset: int,
    quantize: PassBase | None,
    portable: bool,
) -> ir.Model:
    """Traces the heads graph, without reading the large matrices.

    Args:
        heads: the heads.
        model: the backbone.
        backbone: the backbone's weights by their names.
        top_k: candidates of each head.
        dtype: type of the computation.
        opset: opset of the graph.
        quantize: the pass that quantizes the weights; None where they stay as they are.
        portable: see `optimize`.
    """
    is_stacked = quantize is None and len(heads.unread.get("unembedding", ())) < 2
    layer = model.get_output_embeddings()
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    layer_bias = getattr(layer, "bias", None)
    bias = None if layer_bias is None else backbone[name_of[id(layer_bias)]]
    unembedding = backbone[name_of[id(layer.weight)]]
    embedding = backbone[name_of[id(model.get_input_embeddings().weight)]]
    weights = _name_unread_parameters(heads, embedding.dtype, is_stacked) | {"embedding": embedding}
    # Only few rows are picked by a token map; the whole matrix is read when the graph is written.
    if heads.token_map is None and heads.heads[0].unembedding is None:
        weights["unembedding"] = unembedding
    module = HeadsModule(
        heads,
        torch.empty(unembedding.sizes, device="meta")
        if heads.token_map is None
        else tensor_from_array(unembedding.stored()),
        top_k,
        None if bias is None else tensor_from_array(bias.stored()).float(),
        torch.empty(embedding.sizes, device="meta"),
        returns_logprobs=not portable,
        is_stacked=is_stacked,
    )
    return trace_heads_module(
        module.to(dtype), heads.hidden_size, opset, quantize, weights, portable=portable
    )


def trace_heads_module(
    module: HeadsModule,
    hidden_size: int,
    opset: int,
    quantize: PassBase | None = None,
    weights: Mapping[str, LazyTensor] | None = None,
    *,
    portable: bool = False,
) -> ir.Model:
    """Traces a module of heads; see `trace_heads`, and `HeadsModule.forward` for inputs and output.

    The module has the matrices that are read later as parameters; `weights` has them by name.
    """
    inputs: tuple[torch.Tensor, ...] = (torch.zeros(2, hidden_size),)
    if module.reads_root:
        inputs = (*inputs, torch.zeros(2, dtype=torch.int64))
    batch = Dim("batch", min=1, max=1 << 16)
    model = trace_module(
        module,
        inputs,
        opset,
        input_names=[names.HIDDEN, names.ROOT_IDS][: len(inputs)],
        output_names=[names.DRAFT_IDS, names.DRAFT_LOGPROBS][: 1 + module.returns_logprobs],
        dynamic_shapes=({0: batch},) * len(inputs),
        weights=weights or {},
    )
    if quantize is not None:
        optimize(model, quantize, portable=portable, attends=False)
    return model


def _name_unread_parameters(
    heads: MedusaHeads, dtype: ir.DataType, is_stacked: bool
) -> dict[str, LazyTensor]:
    """Matrices that are read later, by the names of the parameters of the heads' module."""
    parameters = {}
    for part, tensors in heads.unread.items():
        name = part if part == "unembedding" else f"{part}_weight"
        if part == "unembedding" and len(tensors) == 1:
            parameters[name] = tensors[0].convert(dtype)
            continue
        matrices = [transpose_tensor(tensor.convert(dtype)) for tensor in tensors]
        if is_stacked:
            parameters[name] = stack_tensors(matrices)
        else:
            parameters |= {f"{name}_{head}": tensor for head, tensor in enumerate(matrices)}
    return parameters
