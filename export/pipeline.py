"""The whole export: model and heads in, a verified bundle out."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import onnx_ir as ir
import torch
from onnx_ir.passes import InPlacePass
from transformers import PreTrainedModel

from medusa_trt.errors import ExportError, HeadsError
from medusa_trt.export.base_model import (
    BaseModel,
    open_base_model,
    source_from_name,
)
from medusa_trt.export.check import compared, described
from medusa_trt.export.graph import VerifyModule
from medusa_trt.export.heads import HeadsModule, MedusaHeads
from medusa_trt.export.heads_choice import heads_for
from medusa_trt.export.integer_reduce import integer_reduce_graph
from medusa_trt.export.lazy_tensor import transposed
from medusa_trt.export.manifest import manifest_of, write_manifest
from medusa_trt.export.onnx_export import (
    graph_spec,
    heads_graph,
    save_graphs,
    tree_graph,
    verify_graph,
)
from medusa_trt.export.output_folder import check_space, new_folder
from medusa_trt.export.passes import WidenFloatsPass
from medusa_trt.export.quantization_passes import heads_pass, layers_pass
from medusa_trt.export.quantization_plan import (
    PLAN_FILE,
    PlannedFormats,
    QuantizationPlan,
    bits_from_plan,
    plan_from_file,
    precision_from_plan,
)
from medusa_trt.export.reduce_graph import reduce_graph
from medusa_trt.export.separate_heads import SeparateHeadsModule
from medusa_trt.export.streamed_model import (
    Weights,
    in_type,
    tensor_from_array,
    weights_at_hand,
)
from medusa_trt.export.support import (
    needs_general_attention,
    notices,
    refuse_unsupported,
    sliding_window_of,
)
from medusa_trt.export.targets import (
    AttentionForm,
    Precision,
    Target,
    fallback_notice,
    precision_from_name,
    target_from_name,
)
from medusa_trt.runtime import bundle as names
from medusa_trt.runtime.bundle import Agreement, Bundle
from medusa_trt.tree_configs import MedusaTree, load_tree

MIN_TOP_K = 10
"""Candidates of each head, at least: the paper's number, so that published trees can be tried."""

_LEAST_WINDOW = 1024
"""A sliding window at least this long becomes the default limit on the sequence length: attention
that sees everything is the faster one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What to export and where to.

    Attributes:
        model: an alias, a folder, a hub id or a `.gguf` file.
        output: the bundle's folder; the model's name in the current folder by default.
        heads: a head checkpoint in any format: a file, a folder or a hub id; by default the
            alias's own, or those beside the model's weights.
        tree: a tree's name or file; the alias's own, else the target's default.
        precision: weight precision; the target's default if None.
        quantization_plan: a file that gives each weight a format, instead of a precision.
        target: where the bundle will run.
        max_length: longest sequence in tokens; the model's own limit, at most the target's.
        overwrite: replace an existing bundle.
        random_weights: use the model's shape with random weights and heads: for builds and timing.
            Such a bundle is not compared with its model.
        num_layers: with random weights, only so many layers.
    """

    model: str
    output: Path | None = None
    heads: str | Path | None = None
    tree: str | None = None
    precision: str | None = None
    quantization_plan: Path | None = None
    target: str = "ort-cpu"
    max_length: int | None = None
    overwrite: bool = False
    random_weights: bool = False
    num_layers: int | None = None

    def __post_init__(self) -> None:
        if self.num_layers is not None and not self.random_weights:
            raise ExportError("--layers cuts a model with --random-weights only")
        if self.quantization_plan is not None and self.precision is not None:
            raise ExportError("--precision and --quantization-plan exclude each other: give one")
        if self.random_weights and self.heads is not None:
            raise ExportError("--random-weights makes its own heads: leave --heads out")


@dataclass(frozen=True, slots=True)
class _Parts:
    """What an export is made of, checked against each other."""

    base: BaseModel
    heads: MedusaHeads
    tree: MedusaTree
    target: Target
    precision: Precision
    plan: QuantizationPlan | None
    max_length: int
    top_k: int
    compared: bool


def export_bundle(options: ExportOptions, progress: Callable[[str], None] = print) -> Bundle:
    """Exports a model with its heads; the bundle appears whole and verified, or not at all.

    Args:
        options: what to export.
        progress: told each stage as it begins.

    Raises:
        ExportError: the model is unknown or not supported, the output cannot be written, or the
            bundle differs from the model.
        HeadsError: the heads are damaged or do not fit.
        TreeError: the tree is malformed or deeper than the heads.
    """
    target = target_from_name(options.target)
    plan = None
    if options.quantization_plan is not None:
        plan = plan_from_file(options.quantization_plan)
        precision = precision_from_plan(target, plan)
    else:
        precision = precision_from_name(target, options.precision)
        if notice := fallback_notice(target, precision, options.precision):
            progress(f"warning: {notice}")
    if options.random_weights:
        base, heads, tree = _random_parts(options, target, precision, progress)
    else:
        base, heads, tree = _loaded_parts(options, target, progress)
    top_k = max(MIN_TOP_K, tree.top_k)
    tree.check(heads.num_heads, top_k)
    max_length = _checked_max_length(options.max_length, base.model, target)
    if not options.random_weights:
        with weights_at_hand(base.model, base.weights):
            refuse_unsupported(base.model, max_length)
    for text in notices(base.model, max_length, precision):
        progress(f"warning: {text}")
    precision = precision.for_attention(needs_general_attention(base.model, max_length))
    heads.check_fits(base.model.config.hidden_size, base.model.config.vocab_size)
    if top_k > (num_tokens := heads.draft_vocab_size(base.model.config.vocab_size)):
        raise HeadsError(
            f"the heads offer {num_tokens} tokens, the tree {tree.name} and the runtime need "
            f"{top_k}: use heads with a larger vocabulary"
        )
    parts = _Parts(
        base, heads, tree, target, precision, plan, max_length, top_k, not options.random_weights
    )
    output = options.output or Path(base.source.name)
    _check_output(output, options.overwrite)
    check_space(output, _estimated_bytes(parts))
    with new_folder(output, options.overwrite) as folder:
        _write_bundle(folder, parts, progress)
    return Bundle.open(output, check_hashes=False)


def _loaded_parts(
    options: ExportOptions, target: Target, progress: Callable[[str], None]
) -> tuple[BaseModel, MedusaHeads, MedusaTree]:
    source = source_from_name(options.model)
    _check_output(options.output or Path(source.name), options.overwrite)
    progress("reading the heads")
    choice = heads_for(source, options.heads)
    source, found, heads = choice.source, choice.loaded, choice.loaded.heads
    progress(f"  {heads.num_heads} heads in {found.format} format from {found.path}")
    for text in choice.warnings:
        progress(f"warning: {text}")
    own_tree = None if source.alias is None else source.alias.tree
    tree = load_tree(options.tree or own_tree or target.default_tree)
    tree.check(heads.num_heads, max(MIN_TOP_K, tree.top_k))
    progress(f"opening {source.name}")
    base = open_base_model(source)
    if base.warning is not None:
        progress(f"warning: {base.warning}")
    return base, heads, tree


def _random_parts(
    options: ExportOptions, target: Target, precision: Precision, progress: Callable[[str], None]
) -> tuple[BaseModel, MedusaHeads, MedusaTree]:
    from medusa_trt.export.random_weights import random_base_model, random_heads

    progress(f"making random weights of {options.model}'s shape")
    dtype = getattr(torch, precision.dtype)
    base = random_base_model(options.model, options.num_layers, dtype)
    return (
        base,
        random_heads(base.model.config, dtype),
        load_tree(options.tree or target.default_tree),
    )


def _write_bundle(folder: Path, parts: _Parts, progress: Callable[[str], None]) -> None:
    model = parts.base.model
    dtype = getattr(torch, parts.precision.dtype)
    traced, weights = in_type(model, parts.base.weights, dtype)
    planned = None if parts.plan is None else PlannedFormats(parts.plan, traced, "model.")
    quantize = layers_pass(parts.precision, model.config.vocab_size, planned)
    graphs = {}
    for name, form in _verify_forms(parts.precision).items():
        progress(f"tracing the {name} graph")
        module = VerifyModule(traced, parts.max_length, form)
        try:
            graphs[name] = verify_graph(module, parts.target.opset, quantize, weights)
        finally:
            module.release()
    if planned is not None:
        planned.check()
    progress("tracing the heads graph")
    graphs["heads"] = _heads_graph(parts, heads_pass(parts.precision), weights)
    del traced
    reduce = integer_reduce_graph if parts.target.reduces_in == "int64" else reduce_graph
    graphs["reduce"] = reduce(model.config.vocab_size, parts.target.opset)
    graphs["tree"] = tree_graph(parts.tree, parts.target.opset)
    progress("writing weights and graphs")
    save_graphs(folder, graphs)
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
        max_length=parts.max_length,
        top_k=parts.top_k,
        graphs=graph_specs,
    )
    write_manifest(folder, manifest)
    if not parts.compared:
        progress("not compared with the model: its weights are random")
        return
    progress("comparing the bundle with the model")
    try:
        verified = _verified(folder, parts)
    except ExportError as error:
        raise ExportError(f"{error}; no bundle was written") from error
    for where, result in verified.items():
        progress(f"  {described(where, result)}")
    write_manifest(folder, msgspec.structs.replace(manifest, verified=verified))


def _verified(folder: Path, parts: _Parts) -> dict[str, Agreement]:
    """Compares the bundle in a folder with its model, through ONNX Runtime on the CPU."""
    bundle = Bundle.open(folder, check_hashes=False)
    with TemporaryDirectory() as scratch:
        if parts.precision.dtype == "bfloat16":  # which ONNX Runtime does not compute in here
            bundle = widened_bundle(bundle, Path(scratch) / "float32")
        return compared(bundle, parts.base)


def widened_bundle(bundle: Bundle, folder: Path) -> Bundle:
    """Writes a bundle's graphs in float32 to a new folder; see `WidenFloatsPass`.

    Only an engine can use it: what the graphs do not need is left out.
    """
    folder.mkdir()
    graphs = {}
    for name, spec in bundle.manifest.graphs.items():
        graphs[name] = ir.load(bundle.path / spec.file)
        WidenFloatsPass()(graphs[name])
    save_graphs(folder, graphs)
    manifest = bundle.manifest
    target = msgspec.structs.replace(manifest.target, cache_dtype="float32")
    return Bundle(folder, msgspec.structs.replace(manifest, target=target), bundle.tree)


def _estimated_bytes(parts: _Parts) -> int:
    """Size of the bundle: matrices at the precision with its scales, all else whole."""
    precision, total = parts.precision, 0
    whole_bits = 32 if precision.dtype == "float32" else 16
    planned = {} if parts.plan is None else bits_from_plan(parts.plan, whole_bits)
    embedding = parts.base.model.get_input_embeddings().weight
    for name, parameter in parts.base.model.named_parameters():
        is_rounded = parameter.ndim == 2 and parameter is not embedding
        bits = precision.layer_bits if is_rounded else None
        bits = planned.get(name, whole_bits if bits is None else bits + 1)
        total += parameter.numel() * bits // 8
    head_bits = 32 if precision.unembedding_bits is None else precision.unembedding_bits + 1
    total += sum(size * head_bits // 8 for size in parts.heads.sizes)
    return total


def _heads_graph(parts: _Parts, quantize: InPlacePass | None, backbone: Weights) -> ir.Model:
    heads, model = parts.heads, parts.base.model
    own = [tensor.in_type(next(iter(backbone.values())).dtype) for tensor in heads.unread]
    is_stacked = quantize is None and len(own) < 2
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
    weights = {"embedding": embedding}
    if len(own) == 1:
        weights["unembedding"] = own[0]
    else:
        weights |= {f"unembedding_{head}": transposed(each) for head, each in enumerate(own)}
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
        portable=parts.precision.on_device,
    )


def _write_texts(folder: Path, parts: _Parts) -> None:
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


def _verify_forms(precision: Precision) -> dict[str, AttentionForm]:
    forms = {"verify": precision.attention}
    if precision.batch_attention is not None:
        forms["verify_batch"] = precision.batch_attention
    return forms


def _checked_max_length(asked: int | None, model: PreTrainedModel, target: Target) -> int:
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None:
        raise ExportError(
            f"{model.config.model_type} models have no max_position_embeddings and so no longest "
            "sequence: they are not supported"
        )
    if asked is None:
        window = sliding_window_of(model)
        reach = window if window is not None and window >= _LEAST_WINDOW else limit
        return int(min(limit, target.max_length, reach))
    if not 64 <= asked <= limit:
        raise ExportError(f"--max-length is {asked}: {model.config.model_type} takes 64 to {limit}")
    return asked


def _check_output(output: Path, overwrite: bool) -> None:
    """Fails before the long work where the end of it would."""
    if output.exists() and not overwrite:
        raise ExportError(f"{output} exists: give another --output, or --overwrite to replace it")
    if output.exists() and not (output / names.MANIFEST_FILE).is_file():
        raise ExportError(f"{output} is not a bundle, so it is not overwritten: give another name")
    parent = output.absolute().parent
    if not parent.is_dir():
        raise ExportError(f"cannot write {output}: {parent} is not a folder")
    if not os.access(parent, os.W_OK):
        raise ExportError(f"cannot write {output}: {parent} is not writable")
