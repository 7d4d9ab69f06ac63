"""Random logits, and what a processor makes of them beside what a reference makes."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers.generation import logits_process as hf

from medusa_trt.runtime.processors.base import LogitsProcessor

VOCAB = 12
EOS_IDS = [3, 7]

Logits = NDArray[np.float32]

tokens = st.lists(st.integers(0, VOCAB - 1), max_size=20)
prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)
seeds = st.integers(0, 2**32 - 1)


def random_rows(seed: int, count: int) -> Logits:
    """Makes (count, VOCAB) logits with zeros and forbidden tokens among them."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 4, (count, VOCAB)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.1] = 0
    rows[rng.random(rows.shape) < 0.1] = -np.inf
    return rows


def process_rows(
    processor: LogitsProcessor, prompt: Sequence[int], reply: Sequence[int], rows: Logits
) -> Logits:
    """Processes the logits of every position of a reply."""
    running = processor.start(prompt)
    rows = rows.copy()
    for row, token in zip(rows, [*reply, None], strict=True):
        running.process(row)
        if token is not None:
            running.accept(token)
    return rows


def reference_rows(
    reference: Callable[[list[int], list[int], Logits], Logits],
    prompt: list[int],
    reply: list[int],
    rows: Logits,
) -> Logits:
    """Makes the same rows with a function of prompt, reply so far and one position's logits."""
    return np.stack([reference(prompt, reply[:n], row.copy()) for n, row in enumerate(rows)])


def reference_from_transformers(
    processor: hf.LogitsProcessor,
) -> Callable[[list[int], list[int], Logits], Logits]:
    """Turns a processor of transformers into a reference."""

    def call(prompt: list[int], reply: list[int], row: Logits) -> Logits:
        scores = processor(torch.tensor([prompt + reply]), torch.from_numpy(row)[None])
        logits: Logits = scores[0].numpy()
        return logits

    return call
