"""Comparison of an engine's logits with those of the Hugging Face model."""

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from medusa_trt.errors import ExportError
from medusa_trt.export.comparison.segmented_engine import SegmentedEngine
from medusa_trt.export.modeling.dense_experts import has_experts
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import Engine
from medusa_trt.runtime.manifest import Agreement
from medusa_trt.tree_configs import MedusaTree, chain_tree

MAX_LOGIT_DIFFERENCE = {"fp32": 1e-3}
"""Largest difference between logits that an export may show, for a precision that is exact."""

MAX_RELATIVE_ERROR = {
    "fp32": 1e-3,
    "fp16": 0.02,
    "bf16": 0.1,
    "int8": 0.3,
    "fp8": 0.4,
    "int4": 0.8,
    "mixed": 0.8,
}
"""Largest `Agreement.relative_error` of each precision: far above rounding, far below a fault."""

_TOO_FEW_BITS = "its weights lose too much in {0}: choose another --precision, or report this model"
_ADVICE = {name: _TOO_FEW_BITS.format(name) for name in ("int8", "fp8", "int4")}

_EXPERTS_FACTOR = 5
"""Factor by which the limit is wider for a mixture of experts. With other rounding, a router may
take the other one of two nearly equal experts, and then the logits differ much: by 42 and 76 % of
their spread at 2 of 255 positions of a tiny Mixtral in fp16 (median 0.35 %), by 5.5 % overall."""

_NUM_PIECES = 3
"""Number of prefill steps of a text, so that later ones read what earlier ones have cached."""

_MAX_PREFIX = 32
NUM_TREE_NODES = 24
"""Number of nodes of the random tree to compare on."""

_TREE_DEPTH = 4
_SEED = 0


Verifier = Engine | SegmentedEngine
"""An engine that can be compared."""


def compare_on_text(
    engine: Verifier, model: PreTrainedModel, token_ids: list[int], chunk: int
) -> Agreement:
    """Prefills text in chunks and compares every position's logits with the model's."""
    pieces = []
    for start in range(0, len(token_ids), chunk):
        ids = np.array(token_ids[start : start + chunk], np.int64)
        outputs = engine.verify(ids[None], chain_tree(len(ids) - 1), [start], logits=True)
        assert outputs.logits is not None
        pieces.append(outputs.logits[0].copy())
    expected = compute_model_logits(model, np.array([token_ids], np.int64))[0]
    return compute_agreement(np.concatenate(pieces), expected)


def compare_on_tree(
    engine: Verifier, model: PreTrainedModel, prefixes: Sequence[list[int]], tree: MedusaTree
) -> Agreement:
    """Verifies a tree after each prefix at once, and compares every node's logits.

    The tree holds pieces of the prefix. The model sees each path to a leaf as ordinary text.
    """
    rng = np.random.default_rng(_SEED)
    tokens = np.array([put_text_on_tree(tree, prefix, rng) for prefix in prefixes])
    for slot, prefix in enumerate(prefixes):
        ids = np.array([prefix], np.int64)
        engine.verify(ids, chain_tree(len(prefix) - 1), [0], rows=(0,), first_slot=slot)
    outputs = engine.verify(tokens, tree, [len(prefix) for prefix in prefixes], logits=True)
    assert outputs.logits is not None
    expected = np.empty_like(outputs.logits)
    for slot, prefix in enumerate(prefixes):
        paths = list(list_leaf_paths(tree))
        # All paths are one batch. The padding of shorter paths comes after the compared tokens.
        texts = np.zeros((len(paths), len(prefix) + tree.max_depth + 1), np.int64)
        texts[:, : len(prefix)] = prefix
        for row, path in enumerate(paths):
            texts[row, len(prefix) : len(prefix) + len(path)] = tokens[slot, path]
        logits = compute_model_logits(model, texts)[:, len(prefix) :]
        for row, path in enumerate(paths):
            expected[slot, path] = logits[row, : len(path)]
    vocab_size = expected.shape[-1]
    return compute_agreement(
        outputs.logits.reshape(-1, vocab_size), expected.reshape(-1, vocab_size)
    )


def put_text_on_tree(tree: MedusaTree, text: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Chooses a token of the text for each node.

    The first child of a node has the token that follows in the text; its other children begin
    anywhere. Random tokens would be no text: a model that is rounded well may err on them by 33 %,
    and by 6 % on text (docs/decisions/export.md).
    """
    places = [int(rng.integers(len(text)))]
    for node in range(1, tree.num_nodes):
        parent = int(tree.parents[node])
        is_first = tree.child_ranges[parent][0] == node
        places.append(places[parent] + 1 if is_first else int(rng.integers(len(text))))
    return [text[place % len(text)] for place in places]


def find_max_relative_error(precision: str, is_routed: bool) -> float:
    """Finds the largest `Agreement.relative_error` that an export may have.

    It is larger for a mixture of experts (`is_routed`).
    """
    limit = MAX_RELATIVE_ERROR[precision]
    if not is_routed or precision in MAX_LOGIT_DIFFERENCE:
        return limit
    return min(max(MAX_RELATIVE_ERROR.values()), _EXPERTS_FACTOR * limit)


def list_leaf_paths(tree: MedusaTree) -> Iterator[NDArray[np.int64]]:
    """Yields the nodes of each path from the root to a leaf."""
    for row, length in zip(tree.retrieve_indices, tree.path_lengths, strict=True):
        yield row[:length]


def random_tree(num_nodes: int, max_depth: int, seed: int) -> MedusaTree:
    """Grows a tree by random children of random nodes."""
    assert max_depth > 0 or num_nodes == 1
    rng = np.random.default_rng(seed)
    nodes: list[tuple[int, ...]] = [()]
    num_children: dict[tuple[int, ...], int] = {}
    while len(nodes) < num_nodes:
        parent = nodes[rng.integers(len(nodes))]
        if len(parent) < max_depth:
            nodes.append((*parent, num_children.get(parent, 0)))
            num_children[parent] = num_children.get(parent, 0) + 1
    return MedusaTree.from_choices(nodes[1:], name="random")


def compute_model_logits(
    model: PreTrainedModel, token_ids: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Runs the Hugging Face model on B texts (B, T) without a cache: logits (B, T, vocab)."""
    with torch.no_grad():
        logits = model(torch.from_numpy(token_ids), use_cache=False).logits
    array: NDArray[np.float32] = logits.float().numpy()
    return array


def compute_agreement(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> Agreement:
    """Compares logits (num_positions, vocab)."""
    difference = logits - expected
    spread = expected - expected.mean(-1, keepdims=True)
    logprobs, expected_logprobs = (
        torch.from_numpy(array).log_softmax(-1) for array in (logits, expected)
    )
    return Agreement(
        num_positions=len(logits),
        max_logit_difference=float(np.abs(difference).max()),
        relative_error=float(np.sqrt(np.square(difference).mean() / np.square(spread).mean())),
        argmax_agreement=float((logits.argmax(-1) == expected.argmax(-1)).mean()),
        kl_divergence=float(
            nn.functional.kl_div(
                logprobs, expected_logprobs, reduction="batchmean", log_target=True
            )
        ),
    )


def merge_agreements(agreements: Sequence[Agreement]) -> Agreement:
    """Makes one comparison of several: means over all positions, and the largest difference."""
    counts, differences, errors, shares, divergences = np.array(
        [msgspec.structs.astuple(agreement) for agreement in agreements]
    ).T
    return Agreement(
        num_positions=int(counts.sum()),
        max_logit_difference=float(differences.max()),
        relative_error=float(np.average(errors**2, weights=counts)) ** 0.5,
        argmax_agreement=float(np.average(shares, weights=counts)),
        kl_divergence=float(np.average(divergences, weights=counts)),
    )


def compare_logits(
    bundle: Bundle,
    engine: Verifier,
    model: PreTrainedModel,
    texts: Sequence[list[int]],
    num_tree_nodes: int = NUM_TREE_NODES,
) -> dict[str, Agreement]:
    """Compares a bundle with its model on text and on a random tree.

    Args:
        bundle: the bundle.
        engine: runs the bundle. With two slots, two sequences of different lengths are compared
            at once, as the batch form of the verify graph takes them.
        model: the Hugging Face model, unchanged.
        texts: tokens of ordinary texts; the tree holds pieces of the first one.
        num_tree_nodes: size of the random tree.

    Raises:
        ExportError: the bundle differs by more than its precision allows.
    """
    manifest = bundle.manifest
    room = manifest.model.max_length
    tree = random_tree(min(num_tree_nodes, room // 2), _TREE_DEPTH, _SEED)
    prefix = texts[0][: room - tree.num_nodes][:_MAX_PREFIX]
    if engine.batch_size == 1:
        agreements = {
            "text": merge_agreements(
                [
                    compare_on_text(engine, model, ids, chunk=max(2, -(-len(ids) // _NUM_PIECES)))
                    for ids in (text[: room - 1] for text in texts)
                ]
            ),
            "tree": compare_on_tree(engine, model, [prefix], tree),
        }
    else:
        agreements = {
            "batch": compare_on_tree(engine, model, [prefix, prefix[: len(prefix) // 3]], tree)
        }
    precision = manifest.target.precision
    limit = MAX_LOGIT_DIFFERENCE.get(precision, np.inf)
    relative_limit = find_max_relative_error(precision, has_experts(model))
    for where, result in agreements.items():
        # A difference that is not a number must fail, so the condition is that of a good result.
        good = result.max_logit_difference <= limit and result.relative_error <= relative_limit
        if not good:
            most = f" (allowed: {limit:g})" if np.isfinite(limit) else ""
            raise ExportError(
                f"the exported {where} logits differ from the model's by up to "
                f"{result.max_logit_difference:.3g}{most}, by "
                f"{result.relative_error:.1%} on the whole (allowed: {relative_limit:.1%}), argmax "
                f"agreement {result.argmax_agreement:.1%}: do not use it; "
                f"{_ADVICE.get(precision, 'please report this model')}"
            )
    return agreements
