"""A decode loop of your own: draft, verify, accept and commit, on nothing but the engine.

    python examples/decode_loop.py build/smollm2-135m

It decodes greedily with the tree of the bundle. `MedusaSession` does the same, and also samples,
batches, copies from the text and grows a tree for each step.
"""

import sys

import numpy as np

from medusa_trt import MedusaSession, load_tree
from medusa_trt.runtime.decoding.acceptance import accept_exact
from medusa_trt.runtime.engines.base import Engine

PROMPT = "The capital of France is"


def decode(session: MedusaSession, prompt_ids: list[int], num_tokens: int) -> list[int]:
    """Decodes greedily from an empty KV cache, and returns the new tokens.

    Args:
        session: its engine and the tree of its bundle are used.
        prompt_ids: the prompt.
        num_tokens: number of tokens to decode, at least 1; end tokens do not end it.
    """
    engine, tree = session.engine, session.bundle.tree
    root, hidden = prefill(engine, prompt_ids)
    past_length = len(prompt_ids)
    new_tokens = [root]
    while len(new_tokens) < num_tokens:
        # Draft: each head offers its likeliest tokens, and the tree says which of them are nodes.
        drafts = engine.draft(hidden, [root]).ids[0]
        candidates = np.concatenate(([root], drafts.ravel()))
        tokens = candidates[tree.tree_indices(top_k=drafts.shape[1])].tolist()
        # Verify: one pass of the model over all nodes, behind the text so far.
        outputs = engine.verify([tokens], tree, [past_length])
        chosen = outputs.argmax[0].tolist()
        # Accept the longest path that the model agrees with, and its own next token.
        path = accept_exact(tree, tokens, chosen)
        new_tokens += [tokens[node] for node in path[1:]] + [chosen[path[-1]]]
        # Commit: of this step's rows of the cache only those of the path stay.
        engine.cache.commit(0, past_length, path)
        past_length += len(path)
        root, hidden = chosen[path[-1]], outputs.hidden[:, path[-1]].copy()
    return new_tokens[:num_tokens]


def prefill(engine: Engine, prompt_ids: list[int]) -> tuple[int, np.ndarray]:
    """Reads a prompt in parts; each part is a chain, in which a node sees all nodes before it.

    Returns:
        The first new token, and the hidden state (1, hidden_size) that it was chosen from.
    """
    for start in range(0, len(prompt_ids), engine.prefill_chunk):
        part = prompt_ids[start : start + engine.prefill_chunk]
        last = len(part) - 1
        outputs = engine.verify([part], load_tree(f"chain-{last}"), [start], rows=[last])
    return int(outputs.argmax[0, 0]), outputs.hidden[:, 0].copy()


def main(bundle: str) -> None:
    """Decodes 40 tokens."""
    with MedusaSession(bundle) as session:
        new_tokens = decode(session, session.encode(PROMPT), 40)
        print(PROMPT + session.text.decode(new_tokens))


if __name__ == "__main__":
    main(*sys.argv[1:])
