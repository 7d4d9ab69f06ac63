"""Exports tiny models, and runs single steps of their bundles."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from support.model_families import MAX_LENGTH
from support.tiny_models import TINY_HEADS, VOCAB_SIZE, make_byte_tokenizer, save_tiny_heads
from transformers import PreTrainedModel

from medusa_trt.export.pipeline import ExportOptions, export_bundle
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.session import GenerationOptions, MedusaSession
from medusa_trt.tree_configs import MedusaTree, chain_tree

MAX_LOGIT_DIFFERENCE = 1e-3
MAX_CACHE_DIFFERENCE = 1e-5
NUM_PROMPT = 20
WIDE_TREE = f"cartesian-{VOCAB_SIZE}"
"""Every token is a candidate, so that random heads are always right."""


def exported(
    model: PreTrainedModel,
    folder: Path,
    *,
    tensors: dict[str, torch.Tensor] | None = None,
    max_length: int | None = MAX_LENGTH,
    target: str = "ort-cpu",
    precision: str = "fp32",
    tree: str = "chain-2",
) -> Bundle:
    """Saves a model with a tokenizer, and exports it with random heads."""
    folder.mkdir(exist_ok=True)
    model.save_pretrained(folder / "model")
    make_byte_tokenizer().save_pretrained(folder / "model")
    heads = save_tiny_heads(folder / TINY_HEADS, tensors)
    options = ExportOptions(
        model=str(folder / "model"),
        heads=heads,
        tree=tree,
        target=target,
        output=folder / "bundle",
        max_length=max_length,
        precision=precision,
    )
    return export_bundle(options, progress=lambda _: None)


@dataclass(frozen=True)
class Step:
    """Outputs of one verify step, copied."""

    argmax: NDArray[np.int64]
    hidden: NDArray[np.float32]
    logits: NDArray[np.float32]


def verify(
    engine: OrtEngine,
    tokens: NDArray[np.int64],
    tree: MedusaTree,
    past_length: int,
    rows: Sequence[int] | None = None,
) -> Step:
    outputs = engine.verify(tokens[None], tree, [past_length], rows=rows, logits=True)
    assert outputs.logits is not None
    return Step(outputs.argmax[0].copy(), outputs.hidden[0].copy(), outputs.logits[0].copy())


def prefill(engine: OrtEngine, tokens: NDArray[np.int64], chunk: int) -> NDArray[np.float32]:
    """Computes the logits of every token, in chunks."""
    pieces = []
    for start in range(0, len(tokens), chunk):
        piece = tokens[start : start + chunk]
        pieces.append(verify(engine, piece, chain_tree(len(piece) - 1), start).logits)
    return np.concatenate(pieces)


def cached(engine: OrtEngine, length: int) -> NDArray[np.float32]:
    """Copies the first rows of every layer's keys and values as float32."""
    rows = engine.cache.slab[..., :length, :]
    if rows.dtype == np.uint16:  # bfloat16
        rows = (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32)


def expected_logits(model: PreTrainedModel, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Computes the model's logits after the last of these tokens."""
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.from_numpy(tokens)[None]).logits[0, -1].numpy()
    return logits


def random_tree(rng: np.random.Generator, num_nodes: int, min_depth: int) -> MedusaTree:
    """Makes a path of `min_depth` nodes below the root, and adds random nodes to it."""
    paths: list[tuple[int, ...]] = [(0,) * depth for depth in range(min_depth + 1)]
    while len(paths) < num_nodes:
        parent = paths[rng.integers(len(paths))]
        paths.append((*parent, sum(path[:-1] == parent for path in paths if path)))
    return MedusaTree.from_choices(paths[1:])


def path_to(tree: MedusaTree, node: int) -> list[int]:
    """Lists the nodes from the root to this one."""
    path = [node]
    while path[0]:
        path.insert(0, int(tree.parents[path[0]]))
    return path


def check_greedy_reply(bundle: Bundle, model: PreTrainedModel) -> None:
    """Medusa's tokens are those of the model, some of which it drafted."""
    prompt = np.random.default_rng(1).integers(0, 256, NUM_PROMPT)
    expected = prompt
    while len(expected) < MAX_LENGTH and expected[-1] not in bundle.manifest.model.eos_token_ids:
        expected = np.append(expected, expected_logits(model, expected).argmax())
    with MedusaSession(bundle) as session:
        options = GenerationOptions(
            max_new_tokens=MAX_LENGTH - NUM_PROMPT, tree=bundle.tree, lookup_ngram=0
        )
        reply = session.generate(prompt.tolist(), options)
    assert reply.token_ids == expected[NUM_PROMPT:].tolist()
    assert set(reply.stats.accept_lengths[:-1]) == {2}
