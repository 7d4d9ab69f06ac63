"""The parts of an export, checked before the long work begins."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from medusa_trt.errors import ExportError, HeadsError
from medusa_trt.export.heads.draft_vocabulary import count_tokens, keep_frequent_tokens
from medusa_trt.export.heads.medusa_heads import MedusaHeads
from medusa_trt.export.modeling.attention_form import AttentionForm
from medusa_trt.export.modeling.attention_forms import choose_attention
from medusa_trt.export.modeling.rotary import find_longrope_length
from medusa_trt.export.modeling.support import (
    list_notices,
    refuse_unsupported,
)
from medusa_trt.export.models.base_model import BaseModel, open_base_model
from medusa_trt.export.models.heads_choice import choose_heads
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.options import NO_HEADS, ExportOptions
from medusa_trt.export.quantization.plan import (
    QuantizationPlan,
    bits_from_plan,
    min_rows_from_plan,
    plan_from_file,
    precision_from_plan,
)
from medusa_trt.export.quantization.stored_values import StoredValues, open_values
from medusa_trt.export.targets import (
    Precision,
    Target,
    describe_fallback,
    precision_from_name,
    target_from_name,
)
from medusa_trt.export.weight_formats import BITS
from medusa_trt.export.weights.streamed_model import supply_weights
from medusa_trt.files import check_output
from medusa_trt.runtime.tensors import MANIFEST_FILE
from medusa_trt.tree_configs import (
    HEADS_TREE_FILE,
    MedusaTree,
    chain_tree,
    list_presets,
    load_tree,
)

MIN_TOP_K = 10
"""Least candidates of each head: the paper's number, so that published trees can be tried."""

_LONGEST_RANDOM = 1 << 15
"""Limit on the sequence length with random weights, if the model's is smaller."""

_NUM_SMALL = 1_000_000_000
"""Models of fewer weights are small: rounding to int4 is known to cost them much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportParts:
    """A model, its heads and tree, and how they are exported.

    Attributes:
        base: the model.
        heads: heads that fit the model; None for a bundle without heads.
        tree: a tree that the heads can fill; without heads a chain, which prompt lookup fills.
        target: where the bundle will run.
        precision: how the weights are stored.
        forms: form of attention of each verify graph, by the graph's name.
        plan: a format for each weight, or None.
        values: rounded values that belong to the plan, or None.
        max_length: length of the longest sequence, in tokens.
        top_k: candidates of each head.
        compared: whether the bundle is compared with the model.
    """

    base: BaseModel
    heads: MedusaHeads | None
    tree: MedusaTree
    target: Target
    precision: Precision
    forms: Mapping[str, type[AttentionForm]]
    plan: QuantizationPlan | None
    values: StoredValues | None
    max_length: int
    top_k: int
    compared: bool

    @property
    def min_rows(self) -> int:
        """Smallest number of nodes of a step; see `TargetSpec`."""
        by_plan = 1 if self.plan is None else min_rows_from_plan(self.target, self.plan)
        return max(self.forms["verify"].min_rows, by_plan)

    @property
    def size_bytes(self) -> int:
        """Estimated size of the bundle: rounded matrices with their scales, and the rest."""
        precision, model = self.precision, self.base.model
        float_bits = 32 if precision.dtype == "float32" else 16
        layer, unembedding, head = (
            None if format_ is None else BITS[format_]
            for format_ in (precision.layers, precision.unembedding, precision.heads)
        )
        planned = {} if self.plan is None else bits_from_plan(self.plan, float_bits)
        embedding_weight = model.get_input_embeddings().weight
        unembedding_weight = model.get_output_embeddings().weight
        head_sizes = () if self.heads is None else self.heads.sizes
        total = sum(size * _add_scale_bits(head, float_bits) for size in head_sizes)
        for name, parameter in model.named_parameters():
            is_layer = parameter.ndim == 2 and parameter is not embedding_weight
            bits = unembedding if parameter is unembedding_weight else layer if is_layer else None
            total += parameter.numel() * planned.get(name, _add_scale_bits(bits, float_bits))
        if embedding_weight is unembedding_weight and unembedding is not None:
            total += embedding_weight.numel() * float_bits  # The embedding stays unrounded.
        return total // 8

    @property
    def scratch_bytes(self) -> int:
        """Estimated disk space for the comparison: a copy in float32 of a bundle in bfloat16."""
        is_widened = self.compared and self.precision.dtype == "bfloat16"
        return 2 * self.size_bytes if is_widened else 0


def _add_scale_bits(bits: int | None, float_bits: int) -> int:
    """Bits of a weight with its share of a scale; None stands for a weight that stays whole."""
    return float_bits if bits is None else bits + 1


def parts_from_options(options: ExportOptions, progress: Callable[[str], None]) -> ExportParts:
    """Reads the heads and opens the model, without its weights.

    Args:
        options: what to export.
        progress: told each stage as it begins, and warnings.

    Raises:
        ExportError: the model is unknown or not supported, or the output cannot be written.
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
        if notice := describe_fallback(target, precision, options.precision):
            progress(f"warning: {notice}")
    if options.random_weights:
        base, heads, tree = _make_random_parts(options, target, precision, progress)
    else:
        base, heads, tree = _load_parts(options, target, progress)
    values = None
    if plan is not None and options.quantization_plan is not None:
        values = open_values(options.quantization_plan, plan, target, base.weights)
    if options.draft_vocabulary is not None:
        heads = _restrict_heads(heads, options, base, progress)
    top_k = max(MIN_TOP_K, tree.top_k)
    max_length = _choose_max_length(
        options.max_length, base.model, target, is_random=options.random_weights
    )
    if not options.random_weights:
        with supply_weights(base.model, base.weights):
            refuse_unsupported(base.model, max_length)
    forms = choose_attention(target.attention, has_library=precision.uses_library)
    for text in list_notices(base.model, max_length):
        progress(f"warning: {text}")
    num_weights = sum(parameter.numel() for parameter in base.model.parameters())
    if precision.layers == "int4" and plan is None and num_weights < _NUM_SMALL:
        progress(
            f"warning: a model of {num_weights / 1e6:.0f} million weights may lose much in int4 "
            "(SmolLM2-135M keeps 70 % of its argmaxes): --precision int8, or medusa-trt calibrate "
            "quantization on its bundle, which finds the matrices that can take int4 and, with "
            "--compensate, rounds them better"
        )
    if heads is not None:
        _check_heads(heads, base.model, tree, top_k)
    return ExportParts(
        base=base,
        heads=heads,
        tree=tree,
        target=target,
        precision=precision,
        forms=forms,
        plan=plan,
        values=values,
        max_length=max_length,
        top_k=top_k,
        compared=not options.random_weights,
    )


def _check_heads(heads: MedusaHeads, model: PreTrainedModel, tree: MedusaTree, top_k: int) -> None:
    vocab_size = model.config.vocab_size
    heads.check_fits(model.config.hidden_size, vocab_size)
    if top_k > (num_tokens := heads.draft_vocab_size(vocab_size)):
        raise HeadsError(
            f"the heads offer {num_tokens} tokens, the tree {tree.name} and the runtime need "
            f"{top_k}: use heads with a larger vocabulary"
        )


def _load_parts(
    options: ExportOptions, target: Target, progress: Callable[[str], None]
) -> tuple[BaseModel, MedusaHeads | None, MedusaTree]:
    source = source_from_name(options.model)
    check_output(options.output or Path(source.name), options.overwrite, MANIFEST_FILE)
    progress("reading the heads")
    choice = choose_heads(source, options.heads)
    source, heads = choice.source, None if choice.loaded is None else choice.loaded.heads
    if choice.loaded is not None:
        loaded = choice.loaded
        progress(f"  {loaded.heads.num_heads} heads in {loaded.format} format from {loaded.path}")
    elif options.heads is None:
        progress(
            f"  no heads are known for {source.name}: the bundle decodes plainly and by prompt "
            "lookup; --heads takes a checkpoint, medusa-trt train makes one"
        )
    for text in choice.warnings:
        progress(f"warning: {text}")
    beside = None if choice.loaded is None else choice.loaded.path.parent / HEADS_TREE_FILE
    default = target.default_tree if source.alias is None else source.alias.tree
    if beside is not None and beside.is_file():
        default = str(beside)
    tree = _choose_tree(options.tree, heads, default or target.default_tree)
    origin = " that lies beside the heads" if str(beside) == (options.tree or default) else ""
    progress(f"  tree {tree.name}{origin}: {tree.num_nodes} nodes, {tree.max_depth} deep")
    progress(f"opening {source.name}")
    if source.adapter is not None:
        progress(f"  the LoRA weights of {source.adapter} are merged into it")
    base = open_base_model(source)
    if base.whole_type is not None:
        progress(f"  only the text part of this {base.whole_type} model is exported")
    for text in base.warnings:
        progress(f"warning: {text}")
    _ = base.eos_token_ids  # Raises an error before the long work if there are none.
    return base, heads, tree


def _restrict_heads(
    heads: MedusaHeads | None,
    options: ExportOptions,
    base: BaseModel,
    progress: Callable[[str], None],
) -> MedusaHeads:
    """Lets the heads draft from frequent tokens only, and tells how much of the counts they are."""
    num_tokens = options.draft_vocabulary
    if heads is None or num_tokens is None:
        raise ExportError("--draft-vocabulary is for heads, and this model has none")
    counts = count_tokens(base.tokenizer, base.model.config.vocab_size, options.draft_counts)
    heads = keep_frequent_tokens(heads, counts, num_tokens)
    share = counts[heads.token_map].sum() / max(1, counts.sum())
    counted = options.draft_counts or "the packaged word list"
    progress(f"  the heads draft {num_tokens:,} tokens, {share:.1%} of those in {counted}")
    return heads


def _choose_tree(wanted: str | None, heads: MedusaHeads | None, default: str) -> MedusaTree:
    """Loads the tree of an export; without heads the default is a chain of the same size.

    A default that is a preset loses the nodes that are deeper than there are heads.

    Raises:
        TreeError: there is no such tree, or the heads cannot fill it.
    """
    tree = load_tree(wanted or default)
    if heads is not None:
        if wanted is None and default in list_presets() and tree.max_depth > heads.num_heads:
            kept = [path for path in tree.medusa_choices if len(path) <= heads.num_heads]
            tree = MedusaTree.from_choices(kept, name=f"{tree.name} without its deepest nodes")
        tree.check(heads.num_heads, max(MIN_TOP_K, tree.top_k))
        return tree
    if wanted is None:
        return chain_tree(tree.num_nodes - 1)
    tree.check_without_heads()
    return tree


def _make_random_parts(
    options: ExportOptions, target: Target, precision: Precision, progress: Callable[[str], None]
) -> tuple[BaseModel, MedusaHeads | None, MedusaTree]:
    from medusa_trt.export.models.random_weights import random_base_model, random_heads

    progress(f"making random weights of {options.model}'s shape")
    dtype = getattr(torch, precision.dtype)
    base = random_base_model(options.model, options.num_layers, dtype)
    heads = None if options.heads == NO_HEADS else random_heads(base.model.config, dtype)
    return base, heads, _choose_tree(options.tree, heads, target.default_tree)


def _choose_max_length(
    wanted: int | None, model: PreTrainedModel, target: Target, *, is_random: bool
) -> int:
    limit = getattr(model.config, "max_position_embeddings", None) or target.max_length
    if wanted is None:
        short_length = find_longrope_length(model.config) or limit
        return int(min(limit, target.max_length, short_length))
    if is_random:
        limit = max(limit, _LONGEST_RANDOM)  # Random weights have learned no positions.
    if not 64 <= wanted <= limit:
        raise ExportError(
            f"--max-length is {wanted}: {model.config.model_type} takes 64 to {limit}"
        )
    return wanted
