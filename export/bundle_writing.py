"""Writing a bundle into a folder: graphs, weights, texts and the manifest."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes import InPlacePass

from medusa_trt.errors import ExportError
from medusa_trt.export.graphs.reduce_forms import REDUCE_FORMS
from medusa_trt.export.graphs.separate_heads import SeparateHeadsModule
from medusa_trt.export.graphs.tracing import (
    graph_spec,
    heads_graph,
    save_graphs,
    tree_graph,
    verify_graph,
)
from medusa_trt.export.graphs.verify_module import VerifyModule
from medusa_trt.export.heads.medusa_heads import HeadsModule, MedusaHeads
from medusa_trt.export.manifest import manifest_of, write_manifest
from medusa_trt.export.preparation import ExportParts
from medusa_trt.export.quantization.carried_weights import CarriedWeights
from medusa_trt.export.quantization.plan import PLAN_FILE, PlannedFormats
from medusa_trt.export.quantization.rounding_pass import heads_pass, layers_pass
from medusa_trt.export.weights.lazy_tensor import LazyTensor, stacked, transposed
from medusa_trt.export.weights.streamed_model import Weights, in_type, tensor_from_array
from medusa_trt.runtime import tensors as names


def write_bundle(folder: Path, parts: ExportParts, progress: Callable[[str], None]) -> None:
    """Writes a bundle that is not compared with its model yet.

    Args:
        folder: an empty one.
        parts: what it is made of.
        progress: told each stage as it begins.

    Raises:
        ExportError: the model has no tokenizer.json.
    """
    model = parts.base.model
    dtype = getattr(torch, parts.precision.dtype)
    traced, weights = in_type(model, parts.base.weights, dtype)
    planned = None if parts.plan is None else PlannedFormats(parts.plan, traced, "model.")
    carried = CarriedWeights(parts.base.weights, "model.")
    quantize = layers_pass(parts.precision, model.config.vocab_size, planned, carried.noted)
    graphs = {}
    for name, form in parts.forms.items():
        progress(f"tracing the {name} graph")
        module = VerifyModule(traced, parts.max_length, form)
        graphs[name] = verify_graph(module, parts.target.opset, quantize, weights)
    if planned is not None:
        planned.check()
    progress("tracing the heads graph")
    graphs["heads"] = _heads_graph(parts, heads_pass(parts.precision), weights)
    del traced
    graphs["reduce"] = REDUCE_FORMS[parts.target.reduce_form(parts.precision)](
        model.config.vocab_size, parts.target.opset
    )
    graphs["tree"] = tree_graph(parts.tree, parts.target.opset)
    progress("writing weights and graphs")
    save_graphs(folder, graphs)
    if said := carried.described(parts.base.source.name):
        progress(said)
    graph_specs = {name: graph_spec(folder, name) for name in graphs}
    del graphs
    _write_texts(folder, parts)
    manifest = manifest_of(
        folder,
        base=parts.base,
        heads=parts.heads,
        tree=parts.tree,
        target=parts.target,
        precision=parts.precision,
        form=parts.forms["verify"],
        min_rows=parts.min_rows,
        max_length=parts.max_length,
        top_k=parts.top_k,
        graphs=graph_specs,
    )
    write_manifest(folder, manifest)


def _heads_graph(parts: ExportParts, quantize: InPlacePass | None, backbone: Weights) -> ir.Model:
    heads, model = parts.heads, parts.base.model
    is_stacked = quantize is None and len(heads.unread.get("unembedding", ())) < 2
    module_class = HeadsModule if is_stacked else SeparateHeadsModule
    layer = model.get_output_embeddings()
    names_of = {id(each): name for name, each in model.named_parameters()}
    unembedding, bias, embedding = (
        None if each is None else backbone[names_of[id(each)]]
        for each in (
            layer.weight,
            getattr(layer, "bias", None),
            model.get_input_embeddings().weight,
        )
    )
    assert unembedding is not None and embedding is not None
    weights = _unread_parameters(heads, embedding.dtype, is_stacked) | {"embedding": embedding}
    # Rows that a token map picks are few; the whole is read when the graph is written.
    if heads.token_map is None and heads.heads[0].unembedding is None:
        weights["unembedding"] = unembedding
    module = module_class(
        heads,
        torch.empty(unembedding.sizes, device="meta")
        if heads.token_map is None
        else tensor_from_array(unembedding.stored()),
        parts.top_k,
        None if bias is None else tensor_from_array(bias.stored()).float(),
        torch.empty(embedding.sizes, device="meta"),
    )
    return heads_graph(
        module.to(getattr(torch, parts.precision.dtype)),
        heads.hidden_size,
        parts.target.opset,
        quantize,
        weights,
        portable=parts.forms["verify"].is_portable,
    )


def _unread_parameters(
    heads: MedusaHeads, dtype: ir.DataType, is_stacked: bool
) -> dict[str, LazyTensor]:
    """The matrices that are read later, by the names of the parameters of the heads' module."""
    found = {}
    for part, tensors in heads.unread.items():
        name = part if part == "unembedding" else f"{part}_weight"
        if part == "unembedding" and len(tensors) == 1:
            found[name] = tensors[0].in_type(dtype)
            continue
        turned = [transposed(tensor.in_type(dtype)) for tensor in tensors]
        if is_stacked:
            found[name] = stacked(turned)
        else:
            found |= {f"{name}_{head}": tensor for head, tensor in enumerate(turned)}
    return found


def _write_texts(folder: Path, parts: ExportParts) -> None:
    """The tree, the tokenizer with its chat template, the generation config and the plan."""
    parts.tree.save(folder / names.TREE_FILE)
    parts.base.tokenizer.save_pretrained(folder)
    if not (folder / names.TOKENIZER_FILE).is_file():
        raise ExportError(f"{parts.base.source.name} has no tokenizer.json: convert its tokenizer")
    generation = parts.base.model.generation_config
    content = generation.to_json_string() if generation is not None else "{}\n"
    (folder / names.GENERATION_CONFIG_FILE).write_text(content, "utf-8")
    if parts.plan is not None:
        (folder / PLAN_FILE).write_bytes(parts.plan.to_json())
