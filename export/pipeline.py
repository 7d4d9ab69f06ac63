"""The whole export: model and heads in, a verified bundle out."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec
from transformers import PreTrainedModel

from medusa_trt.errors import ExportError, HeadsError
from medusa_trt.export.base_model import BaseModel, load_base_model, source_from_name
from medusa_trt.export.graph import VerifyModule, refuse_unsupported
from medusa_trt.export.heads import HeadsModule, MedusaHeads
from medusa_trt.export.heads_choice import heads_for
from medusa_trt.export.onnx_export import (
    graph_spec,
    heads_graph,
    save_graphs,
    tree_graph,
    verify_graph,
)
from medusa_trt.export.output_folder import new_folder
from medusa_trt.export.passes import QuantizeLinearPass
from medusa_trt.export.reduce_graph import reduce_graph
from medusa_trt.export.separate_heads import SeparateHeadsModule
from medusa_trt.export.targets import (
    AttentionForm,
    Precision,
    Target,
    fallback_notice,
    precision_from_name,
    target_from_name,
)
from medusa_trt.export.verify import TEXT, verify_bundle
from medusa_trt.runtime import bundle as names
from medusa_trt.runtime.bundle import (
    FORMAT_VERSION,
    Agreement,
    Bundle,
    FileSpec,
    GraphSpec,
    HeadsSpec,
    Manifest,
    ModelSpec,
    TargetSpec,
    sha256_from_file,
)
from medusa_trt.runtime.ort_engine import OrtEngine
from medusa_trt.tree_configs import MedusaTree, load_tree

MIN_TOP_K = 10
"""Candidates of each head, at least: the paper's number, so that published trees can be tried."""

_RECORDED_VERSIONS = ("medusa-trt", "torch", "transformers", "onnx", "onnx-ir", "onnxruntime")


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
        target: where the bundle will run.
        max_length: longest sequence in tokens; the model's own limit, at most the target's.
        overwrite: replace an existing bundle.
    """

    model: str
    output: Path | None = None
    heads: str | Path | None = None
    tree: str | None = None
    precision: str | None = None
    target: str = "ort-cpu"
    max_length: int | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class _Parts:
    """What an export is made of, checked against each other."""

    base: BaseModel
    heads: MedusaHeads
    tree: MedusaTree
    target: Target
    precision: Precision
    max_length: int
    top_k: int


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
    precision = precision_from_name(target, options.precision)
    if notice := fallback_notice(target, precision, options.precision):
        progress(f"warning: {notice}")
    source = source_from_name(options.model)
    output = options.output or Path(source.name)
    _check_output(output, options.overwrite)
    progress("reading the heads")
    choice = heads_for(source, options.heads)
    source, found, heads = choice.source, choice.loaded, choice.loaded.heads
    progress(f"  {heads.num_heads} heads in {found.format} format from {found.path}")
    for text in choice.warnings:
        progress(f"warning: {text}")
    tree = load_tree(options.tree or (source.alias.tree if source.alias else target.default_tree))
    top_k = max(MIN_TOP_K, tree.top_k)
    tree.check(heads.num_heads, top_k)
    progress(f"loading {source.name}")
    base = load_base_model(source)
    refuse_unsupported(base.model)
    heads.check_fits(base.model.config.hidden_size, base.model.config.vocab_size)
    if top_k > (num_tokens := heads.draft_vocab_size(base.model.config.vocab_size)):
        raise HeadsError(
            f"the heads offer {num_tokens} tokens, the tree {tree.name} and the runtime need "
            f"{top_k}: use heads with a larger vocabulary"
        )
    max_length = _checked_max_length(options.max_length, base.model, target)
    parts = _Parts(base, heads, tree, target, precision, max_length, top_k)
    with new_folder(output, options.overwrite) as folder:
        _write_bundle(folder, parts, progress)
    return Bundle.open(output, check_hashes=False)


def _write_bundle(folder: Path, parts: _Parts, progress: Callable[[str], None]) -> None:
    model = parts.base.model
    quantize = _quantization(parts)
    graphs = {}
    for name, form in _verify_forms(parts.precision).items():
        progress(f"tracing the {name} graph")
        module = VerifyModule(model, parts.max_length, form)
        try:
            graphs[name] = verify_graph(module, parts.target.opset, quantize)
        finally:
            module.release()
    progress("tracing the heads graph")
    unembedding = model.get_output_embeddings()
    bias = getattr(unembedding, "bias", None)
    module_class = HeadsModule if quantize is None else SeparateHeadsModule
    heads_module = module_class(
        parts.heads,
        unembedding.weight.detach(),
        parts.top_k,
        None if bias is None else bias.detach(),
    )
    graphs["heads"] = heads_graph(
        heads_module,
        parts.heads.hidden_size,
        parts.target.opset,
        None if quantize is None else quantize.at(8),
    )
    graphs["reduce"] = reduce_graph(model.config.vocab_size, parts.target.opset)
    graphs["tree"] = tree_graph(parts.tree, parts.target.opset)
    progress("writing weights and graphs")
    save_graphs(folder, graphs)
    graph_specs = {name: graph_spec(folder, name) for name in graphs}
    del graphs, heads_module
    _write_texts(folder, parts)
    manifest = _manifest(folder, parts, graph_specs)
    _write_manifest(folder, manifest)
    progress("comparing the bundle with the model")
    bundle = Bundle.open(folder, check_hashes=False)
    text_ids = parts.base.tokenizer.encode(TEXT)
    verified: dict[str, Agreement] = {}
    for batch_size in (1, 2):
        engine = OrtEngine(bundle, capacity=len(text_ids) + 64, batch_size=batch_size)
        try:
            verified |= verify_bundle(bundle, engine, model, text_ids)
        finally:
            engine.close()
    for where, result in verified.items():
        progress(
            f"  {where}: argmax equal at {result.argmax_agreement:.1%} of {result.num_positions} "
            f"positions, KL {result.kl_divergence:.1e} nats, largest logit difference "
            f"{result.max_logit_difference:.1e}"
        )
    _write_manifest(folder, msgspec.structs.replace(manifest, verified=verified))


def _write_texts(folder: Path, parts: _Parts) -> None:
    """The tree, the tokenizer with its chat template, and the generation config."""
    parts.tree.save(folder / names.TREE_FILE)
    parts.base.tokenizer.save_pretrained(folder)
    if not (folder / names.TOKENIZER_FILE).is_file():
        raise ExportError(f"{parts.base.source.name} has no tokenizer.json: convert its tokenizer")
    generation = parts.base.model.generation_config
    content = generation.to_json_string() if generation is not None else "{}\n"
    (folder / names.GENERATION_CONFIG_FILE).write_text(content, "utf-8")


def _quantization(parts: _Parts) -> QuantizeLinearPass | None:
    precision = parts.precision
    if precision.layer_bits is None or precision.unembedding_bits is None:
        return None
    vocab_size = parts.base.model.config.vocab_size
    return QuantizeLinearPass(precision.layer_bits, precision.unembedding_bits, vocab_size)


def _verify_forms(precision: Precision) -> dict[str, AttentionForm]:
    forms = {"verify": precision.attention}
    if precision.batch_attention is not None:
        forms["verify_batch"] = precision.batch_attention
    return forms


def _manifest(folder: Path, parts: _Parts, graphs: dict[str, GraphSpec]) -> Manifest:
    """The manifest of what is in the folder, before the comparison with the model."""
    config = parts.base.model.config
    heads, target = parts.heads, parts.target
    cache = next(t for t in graphs["verify"].inputs if t.name == names.past_name(0, "key"))
    num_kv_heads, head_dim = cache.shape[1], cache.shape[3]
    assert isinstance(num_kv_heads, int) and isinstance(head_dim, int)
    return Manifest(
        format_version=FORMAT_VERSION,
        model=ModelSpec(
            name=parts.base.source.name,
            architecture=config.model_type,
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_length=parts.max_length,
            eos_token_ids=parts.base.eos_token_ids,
        ),
        heads=HeadsSpec(
            num_heads=heads.num_heads,
            num_layers=heads.num_layers,
            top_k=parts.top_k,
            draft_vocab_size=heads.draft_vocab_size(config.vocab_size),
        ),
        target=TargetSpec(
            name=target.name,
            precision=parts.precision.name,
            opset=target.opset,
            cache_dtype="float32",
            min_rows=parts.precision.min_rows,
            operator_library=parts.precision.layer_bits is not None,
            prefill_chunk=target.prefill_chunk,
        ),
        tree_name=parts.tree.name,
        graphs=graphs,
        verified={},
        versions={name: version(name) for name in _RECORDED_VERSIONS},
        files={
            path.name: FileSpec(path.stat().st_size, sha256_from_file(path))
            for path in sorted(folder.iterdir())
            if path.name != names.MANIFEST_FILE
        },
    )


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / names.MANIFEST_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))


def _checked_max_length(asked: int | None, model: PreTrainedModel, target: Target) -> int:
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None:
        raise ExportError(
            f"{model.config.model_type} models have no max_position_embeddings and so no longest "
            "sequence: they are not supported"
        )
    if asked is None:
        return int(min(limit, target.max_length))
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
