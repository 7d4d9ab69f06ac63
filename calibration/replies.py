"""Generates the model's replies to prompts, and runs the model over given texts."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medusa_trt.calibration.prompts import BenchPrompt
from medusa_trt.errors import PromptError
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import Generation, MedusaSession, Prompt
from medusa_trt.tree_configs import chain_tree

_PROBE_TOKENS = 16
"""Length of the short reply that `estimate_reply_s` measures."""


def encode_first_turn(session: MedusaSession, prompt: BenchPrompt) -> list[int]:
    """Encodes a prompt's first turn, in the model's chat template if it has one."""
    text = prompt.turns[0]
    has_template = session.text.has_chat_template
    return session.encode([{"role": "user", "content": text}] if has_template else text)


def check_prompts_fit(
    session: MedusaSession, prompts: Sequence[BenchPrompt], max_new_tokens: int
) -> None:
    """Checks that each prompt and its longest reply fit into the session.

    Raises:
        PromptError: a prompt is too long; the message names it.
    """
    for prompt in prompts:
        length = len(encode_first_turn(session, prompt)) + max_new_tokens
        if length > session.max_length:
            raise PromptError(
                f"prompt {prompt.id} needs up to {length} tokens with its reply, the session holds "
                f"{session.max_length}: lower --max-new-tokens or leave the prompt out"
            )


def generate_whole_reply(
    session: MedusaSession, prompt: Prompt, options: GenerationOptions
) -> Generation:
    """Generates a reply up to its end.

    Raises:
        KeyboardInterrupt: on Ctrl-C.
    """
    reply = session.generate(prompt, options)
    if reply.finish_reason == "cancelled":  # The session reports a Ctrl-C this way.
        raise KeyboardInterrupt
    return reply


def estimate_reply_s(
    session: MedusaSession,
    prompt: BenchPrompt,
    max_new_tokens: int,
    evaluate: Callable[[list[int], list[int]], object],
    options: GenerationOptions,
) -> float:
    """Estimates the seconds that a reply of `max_new_tokens` and its evaluation take.

    A short reply is generated and evaluated, and its time is scaled to the length.
    `evaluate(prompt_ids, reply_ids)` gets the token ids of the prompt and of that reply.
    """
    prompt_ids = encode_first_turn(session, prompt)
    num_tokens = min(_PROBE_TOKENS, max_new_tokens)
    options = replace(options, max_new_tokens=num_tokens, ignore_eos=True)
    generate_whole_reply(session, prompt_ids, options)  # Warms up the engine.
    start_s = time.perf_counter()
    reply = generate_whole_reply(session, prompt_ids, options)
    evaluate(prompt_ids, reply.token_ids)
    return (time.perf_counter() - start_s) / num_tokens * max_new_tokens


@dataclass(frozen=True, slots=True)
class TextOutputs:
    """The model's outputs at R neighbouring tokens of a text.

    The arrays belong to the engine: its next step overwrites them.

    Attributes:
        first: position of the first of these tokens in the text.
        hidden: (R, hidden_size) float32.
        logits: (R, vocab_size) float32, or None if they were not requested.
    """

    first: int
    hidden: NDArray[np.float32]
    logits: NDArray[np.float32] | None


def run_over_text(
    session: MedusaSession, token_ids: Sequence[int], first: int, *, logits: bool = False
) -> Iterator[TextOutputs]:
    """Runs the model over a given text, and yields its outputs from position `first` on.

    Args:
        session: its slot 0 holds this text afterwards.
        token_ids: the text, shorter than the session's longest sequence.
        first: the first position whose outputs are yielded.
        logits: whether to yield logits too.
    """
    target, size = session.bundle.manifest.target, session.engine.prefill_chunk
    for start in range(0, len(token_ids), size):
        ids = list(token_ids[start : start + size])
        rows = range(max(0, first - start), len(ids))
        chain = chain_tree(max(len(ids), target.min_rows) - 1)
        # Fewer tokens than the graph takes are padded; the outputs of the padding are not read.
        padded_ids = ids + ids[-1:] * (chain.num_nodes - len(ids))
        outputs = session.engine.verify(
            [padded_ids],
            chain,
            [start],
            rows=tuple(rows) or (0,),
            logits=logits and len(rows) > 0,
        )
        if rows:
            row_logits = None if outputs.logits is None else outputs.logits[0]
            yield TextOutputs(start + rows[0], outputs.hidden[0], row_logits)
