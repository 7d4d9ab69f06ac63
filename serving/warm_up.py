"""The largest steps of a server, run once before it takes requests."""

from contextlib import suppress

import numpy as np

from medusa_trt.errors import MedusaError
from medusa_trt.runtime.decoding.growth import MAX_NODES
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.processors.grammar import Grammar
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import chain_tree


def warm_up(session: MedusaSession) -> None:
    """Takes the memory that steps need at most, and makes what the first requests would wait for.

    This is the time of two or three parts of a prompt, and that of the tokenizer for grammars.
    Trees that a client names may be larger than those that the server grows. The KV cache is left
    out: it takes memory as the sequences in it become longer.

    Args:
        session: no request runs.

    Raises:
        EngineError: the engine failed.
    """
    _run_largest_steps(session)
    # Where grammars cannot be used, a request with one is told why.
    with suppress(MedusaError):
        session.make_request([0], GenerationOptions(grammar=Grammar.from_regex("a")))


def _run_largest_steps(session: MedusaSession) -> None:
    """Runs the longest part of a prompt, then the largest trees of all sequences, and the heads."""
    engine, manifest = session.engine, session.bundle.manifest
    chunk = chain_tree(min(engine.prefill_chunk, engine.capacity) - 1)
    ids = np.zeros((1, chunk.num_nodes), np.int64)
    engine.verify(ids, chunk, [0], rows=range(chunk.num_nodes), logits=True)
    tree, count = session.bundle.tree, engine.batch_size
    least = MAX_NODES if session.decoder.drafter.grows_trees else manifest.target.min_rows
    if tree.num_nodes < least:
        tree = chain_tree(least - 1)
    shape = count, tree.num_nodes
    ids = np.zeros(shape, np.int64)
    engine.verify(ids, tree, [0] * count, reductions=True)
    engine.reduce(ids, tree, [SamplingOptions(temperature=1.0)] * count, np.full(shape, 0.5))
    if manifest.heads is not None:
        engine.draft(np.zeros((count, manifest.model.hidden_size), np.float32), [0] * count)
