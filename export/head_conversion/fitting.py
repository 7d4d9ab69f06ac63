"""Heads turned into what a format can hold, without loss, or refused by name."""

from collections.abc import Callable
from dataclasses import replace

import torch

from medusa_trt.errors import HeadsError
from medusa_trt.export.head_conversion.backbone import Backbone
from medusa_trt.export.heads.facts import facts_from_heads
from medusa_trt.export.heads.formats import FORMATS, HeadFormat
from medusa_trt.export.heads.medusa_heads import Linear, MedusaHeads


def fit_heads(heads: MedusaHeads, row: HeadFormat, backbone: Backbone | None) -> MedusaHeads:
    """Makes heads that a format can hold and that draft exactly the same tokens.

    Absent biases become zeros where the format's tools read them. A shared unembedding becomes a
    copy of the backbone's. Separate ones that equal the backbone's become shared. The backbone is
    needed for these two alone.

    Raises:
        HeadsError: the format cannot hold something; the error names it and the formats that can.
    """
    facts = facts_from_heads(heads, None, None)
    limits: tuple[tuple[bool, str, Callable[[HeadFormat], bool]], ...] = (
        (facts.has_projection, "a projection after the blocks", lambda row: row.has_extra_maps),
        (
            facts.has_root_map,
            "heads that read the root token's embedding",
            lambda row: row.has_extra_maps,
        ),
        (
            facts.has_token_map,
            "a truncated vocabulary (token_map)",
            lambda row: row.has_token_map,
        ),
        (
            True,
            f"{facts.num_layers} layers a head",
            lambda row: row.max_layers is None or facts.num_layers <= row.max_layers,
        ),
    )
    for is_there, what, can_hold in limits:
        if is_there and not can_hold(row):
            names = " or ".join(other.name for other in FORMATS.values() if can_hold(other))
            raise HeadsError(f"{row.name} cannot hold {what}: convert --to {names}")
    if row.needs_biases or facts.has_biases:
        heads = _add_biases(heads)
    if facts.unembedding in row.unembeddings:
        return heads
    if facts.unembedding == "shared":
        return _copy_unembedding(heads, row, backbone)
    if "own" in row.unembeddings:  # of one in common every head writes a copy
        return heads
    return _share_unembedding(heads, row, backbone)


def _add_biases(heads: MedusaHeads) -> MedusaHeads:
    def add_bias(block: Linear) -> Linear:
        zeros = torch.zeros(block.weight.shape[0])
        return block if block.bias is not None else Linear(block.weight, zeros)

    changed = (replace(head, blocks=tuple(map(add_bias, head.blocks))) for head in heads.heads)
    return replace(heads, heads=tuple(changed))


def _copy_unembedding(
    heads: MedusaHeads, row: HeadFormat, backbone: Backbone | None
) -> MedusaHeads:
    if backbone is None:
        raise HeadsError(
            f"{row.name} holds unembeddings and these heads share the backbone's: give it with "
            "--model, so that it can be copied"
        )
    weight, bias = backbone.read_unembedding()
    heads.check_fits(weight.shape[1], weight.shape[0])
    if bias is not None and bias.any():
        raise HeadsError(
            f"{row.name} cannot hold the bias that {backbone.name} adds to its logits, which "
            "heads on its unembedding use too: convert --to shared"
        )
    if heads.token_map is not None:
        weight = weight[heads.token_map]
    return replace(heads, heads=tuple(replace(head, unembedding=weight) for head in heads.heads))


def _share_unembedding(
    heads: MedusaHeads, row: HeadFormat, backbone: Backbone | None
) -> MedusaHeads:
    """Leaves out unembeddings that are the backbone's anyway."""
    reason = f"{row.name} holds no unembeddings and these heads have their own"
    if backbone is None:
        raise HeadsError(f"{reason}: give --model, to see whether they are the backbone's")
    weight, bias = backbone.read_unembedding()
    heads.check_fits(weight.shape[1], weight.shape[0])
    differ = [
        str(index)
        for index, head in enumerate(heads.heads)
        if head.unembedding is not None and not torch.equal(head.unembedding, weight)
    ]
    if differ or (bias is not None and bias.any()):
        which = f"heads {', '.join(differ)} differ" if differ else "it adds a bias to its logits"
        raise HeadsError(f"{reason}, other than {backbone.name}'s ({which}): use another format")
    return replace(heads, heads=tuple(replace(head, unembedding=None) for head in heads.heads))
