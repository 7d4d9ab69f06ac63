"""Writing a bundle into a folder: graphs, weights, texts and the manifest."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch
from transformers import PreTrainedModel

from medusa_trt.errors import ExportError
from medusa_trt.export.comparison.encodings import compare_encodings
from medusa_trt.export.graphs.graph_files import GraphWriter
from medusa_trt.export.graphs.heads_graph import trace_heads
from medusa_trt.export.graphs.reduce_forms import REDUCE_FORMS
from medusa_trt.export.graphs.tree_graph import make_tree_graph
from medusa_trt.export.graphs.verify_graph import trace_verify
from medusa_trt.export.graphs.verify_module import VerifyModule
from medusa_trt.export.manifest import list_files, make_manifest
from medusa_trt.export.preparation import ExportParts
from medusa_trt.export.quantization.carried_weights import CarriedWeights
from medusa_trt.export.quantization.plan import PLAN_FILE, PlannedFormats
from medusa_trt.export.quantization.rounding_pass import make_heads_pass, make_layers_pass
from medusa_trt.export.weights.streamed_model import Weights, convert_model
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.manifest import Agreement

Compare = Callable[[Bundle, Sequence[int]], dict[str, Agreement]]
"""Compares a bundle of a verify graph alone with its model, for these numbers of sequences."""


def write_bundle(
    folder: Path, parts: ExportParts, progress: Callable[[str], None], compare: Compare
) -> None:
    """Writes a bundle. Each verify graph is compared with the model as soon as it is written.

    Args:
        folder: an empty folder.
        parts: what the bundle is made of.
        progress: told each stage as it begins.
        compare: see `Compare`; what it raises ends the export.

    Raises:
        ExportError: the model has no tokenizer.json, or the runtime reads it otherwise.
    """
    model, opset = parts.base.model, parts.target.opset
    dtype = getattr(torch, parts.precision.dtype)
    stored = parts.base.weights
    if parts.values is not None:
        stored = parts.values.replace_weights(stored)
    traced, weights = convert_model(model, stored, dtype)
    _write_texts(folder, parts)
    texts = msgspec.structs.replace(make_manifest(parts, {}), files=list_files(folder))
    compare_encodings(Bundle(folder, texts, parts.tree), parts.base.tokenizer)
    writer = GraphWriter(folder)
    verified = _write_verify_graphs(folder, parts, traced, weights, writer, progress, compare)
    del traced
    if parts.heads is not None:
        progress("tracing the heads graph")
        heads = trace_heads(
            parts.heads,
            model,
            weights,
            top_k=parts.top_k,
            dtype=dtype,
            opset=opset,
            quantize=make_heads_pass(parts.precision),
            portable=parts.forms["verify"].is_portable,
        )
        writer.save("heads", heads)
    make_reduce = REDUCE_FORMS[parts.target.reduce_form(parts.precision)]
    writer.save("reduce", make_reduce(model.config.vocab_size, opset))
    writer.save("tree", make_tree_graph(parts.tree, opset))
    manifest = make_manifest(parts, writer.specs)
    manifest = msgspec.structs.replace(manifest, verified=verified, files=list_files(folder))
    (folder / names.MANIFEST_FILE).write_bytes(manifest.to_json())


def _write_verify_graphs(
    folder: Path,
    parts: ExportParts,
    traced: PreTrainedModel,
    weights: Weights,
    writer: GraphWriter,
    progress: Callable[[str], None],
    compare: Compare,
) -> dict[str, Agreement]:
    """Traces, writes and compares the verify graph and its batch form, if there is one."""
    planned = None if parts.plan is None else PlannedFormats(parts.plan, traced, "model.")
    carried = CarriedWeights(weights, "model.")
    vocab_size = parts.base.model.config.vocab_size
    quantize = make_layers_pass(parts.precision, vocab_size, planned, carried.report_stored)
    verified: dict[str, Agreement] = {}
    for name, form in parts.forms.items():
        progress(f"tracing the {name} graph")
        module = VerifyModule(traced, parts.max_length, form)
        graph = trace_verify(module, parts.target.opset, quantize, weights, progress)
        if planned is not None:
            planned.check()
        progress(f"writing the {name} graph and its weights")
        writer.save(name, graph)
        if name == "verify" and (notice := carried.describe(parts.base.source.name)):
            progress(notice)
        del graph, module
        gc.collect()  # Frees the traced graph, which refers to itself: 0.13 GiB for 9 layers.
        sizes = (1, 2) if len(parts.forms) == 1 else (1,) if name == "verify" else (2,)
        manifest = make_manifest(parts, writer.specs)
        alone = msgspec.structs.replace(manifest, graphs={name: writer.specs[name]})
        verified |= compare(Bundle(folder, alone, parts.tree), sizes)
    return verified


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
