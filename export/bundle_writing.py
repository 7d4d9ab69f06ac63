"""Writing a bundle into a folder: graphs, weights, texts and the manifest."""

from collections.abc import Callable
from pathlib import Path

import torch

from medusa_trt.errors import ExportError
from medusa_trt.export.graphs.graph_files import describe_graph, save_graphs
from medusa_trt.export.graphs.heads_graph import trace_heads
from medusa_trt.export.graphs.reduce_forms import REDUCE_FORMS
from medusa_trt.export.graphs.tree_graph import make_tree_graph
from medusa_trt.export.graphs.verify_graph import trace_verify
from medusa_trt.export.graphs.verify_module import VerifyModule
from medusa_trt.export.manifest import make_manifest, write_manifest
from medusa_trt.export.preparation import ExportParts
from medusa_trt.export.quantization.carried_weights import CarriedWeights
from medusa_trt.export.quantization.plan import PLAN_FILE, PlannedFormats
from medusa_trt.export.quantization.rounding_pass import make_heads_pass, make_layers_pass
from medusa_trt.export.weights.streamed_model import in_type
from medusa_trt.runtime import tensors as names


def write_bundle(folder: Path, parts: ExportParts, progress: Callable[[str], None]) -> None:
    """Writes a bundle, which is not compared with its model yet.

    Args:
        folder: an empty folder.
        parts: what the bundle is made of.
        progress: told each stage as it begins.

    Raises:
        ExportError: the model has no tokenizer.json.
    """
    model = parts.base.model
    dtype = getattr(torch, parts.precision.dtype)
    traced, weights = in_type(model, parts.base.weights, dtype)
    planned = None if parts.plan is None else PlannedFormats(parts.plan, traced, "model.")
    carried = CarriedWeights(parts.base.weights, "model.")
    quantize = make_layers_pass(
        parts.precision, model.config.vocab_size, planned, carried.report_stored
    )
    graphs = {}
    for name, form in parts.forms.items():
        progress(f"tracing the {name} graph")
        module = VerifyModule(traced, parts.max_length, form)
        graphs[name] = trace_verify(module, parts.target.opset, quantize, weights)
    if planned is not None:
        planned.check()
    if parts.heads is not None:
        progress("tracing the heads graph")
        graphs["heads"] = trace_heads(
            parts.heads,
            model,
            weights,
            top_k=parts.top_k,
            dtype=dtype,
            opset=parts.target.opset,
            quantize=make_heads_pass(parts.precision),
            portable=parts.forms["verify"].is_portable,
        )
    del traced
    graphs["reduce"] = REDUCE_FORMS[parts.target.reduce_form(parts.precision)](
        model.config.vocab_size, parts.target.opset
    )
    graphs["tree"] = make_tree_graph(parts.tree, parts.target.opset)
    progress("writing weights and graphs")
    save_graphs(folder, graphs)
    if notice := carried.describe(parts.base.source.name):
        progress(notice)
    graph_specs = {name: describe_graph(folder, name) for name in graphs}
    del graphs
    _write_texts(folder, parts)
    write_manifest(folder, make_manifest(folder, parts, graph_specs))


def _write_texts(folder: Path, parts: ExportParts) -> None:
    """Writes tree, tokenizer, chat template, generation config and quantization plan."""
    parts.tree.save(folder / names.TREE_FILE)
    parts.base.tokenizer.save_pretrained(folder)
    if not (folder / names.TOKENIZER_FILE).is_file():
        raise ExportError(f"{parts.base.source.name} has no tokenizer.json: convert its tokenizer")
    generation = parts.base.model.generation_config
    content = generation.to_json_string() if generation is not None else "{}\n"
    (folder / names.GENERATION_CONFIG_FILE).write_text(content, "utf-8")
    if parts.plan is not None:
        (folder / PLAN_FILE).write_bytes(parts.plan.to_json())
