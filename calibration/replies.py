"""The model's own replies to prompts, and what the model says at every token of them."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medusa_trt.calibration.bench.prompts import (
    BenchPrompt,
    mt_bench_prompts,
    prompts_from_file,
    spread_over_categories,
)
from medusa_trt.calibration.prompts import self_generated_prompts
from medusa_trt.errors import PromptError
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import Generation, MedusaSession, Prompt
from medusa_trt.tree_configs import chain_tree

PACKAGED, MT_BENCH = "packaged", "mt-bench"
DEFAULT_NUM_PROMPTS = 64


def prompts_from_source(source: str, num_prompts: int | None) -> list[BenchPrompt]:
    """Prompts by what a user types; of a conversation only the first turn is asked.

    Args:
        source: `packaged`, `mt-bench`, or a file as `prompts_from_file` reads it.
        num_prompts: how many, spread over their categories; None for as many as there are, at
            most 64.

    Raises:
        PromptError: they cannot be read, or there are not as many.
    """
    if source == PACKAGED:
        prompts = [BenchPrompt(str(p.id), "", (p.prompt,)) for p in self_generated_prompts()]
    else:
        prompts = mt_bench_prompts() if source == MT_BENCH else prompts_from_file(Path(source))
    wanted = min(DEFAULT_NUM_PROMPTS, len(prompts)) if num_prompts is None else num_prompts
    return spread_over_categories(prompts, wanted)


def prompts_digest(source: str) -> str:
    """SHA-256 of all prompts of a source, however many of them are asked."""
    if source not in (PACKAGED, MT_BENCH):
        prompts_from_file(Path(source))  # refuses what cannot be read
        return hashlib.sha256(Path(source).read_bytes()).hexdigest()
    return hashlib.sha256(source.encode()).hexdigest()


def asked(session: MedusaSession, prompt: BenchPrompt) -> Prompt:
    """The prompt's first turn as the model wants it: by its chat template, else as plain text."""
    text = prompt.turns[0]
    return [{"role": "user", "content": text}] if session.text.has_chat_template else text


def check_room(session: MedusaSession, prompts: Sequence[BenchPrompt], max_new_tokens: int) -> None:
    """Refuses prompts whose replies would not fit.

    Raises:
        PromptError: one does not; it is named.
    """
    for prompt in prompts:
        needed = len(session.encode(asked(session, prompt))) + max_new_tokens
        if needed > session.max_length:
            raise PromptError(
                f"prompt {prompt.id} needs up to {needed} tokens with its reply, the session holds "
                f"{session.max_length}: lower --max-new-tokens or leave the prompt out"
            )


def whole_reply(session: MedusaSession, prompt: Prompt, options: GenerationOptions) -> Generation:
    """A reply that nothing has cut short.

    Raises:
        KeyboardInterrupt: on Ctrl-C.
    """
    reply = session.generate(prompt, options)
    if reply.finish_reason == "cancelled":  # how the session reports a Ctrl-C
        raise KeyboardInterrupt
    return reply


@dataclass(frozen=True, slots=True)
class ForcedRows:
    """What the model says after neighbouring tokens of a text; overwritten by the next step.

    Attributes:
        first: position of the first of the R tokens.
        hidden: (R, hidden_size) float32.
        logits: (R, vocab_size) float32, or None unless asked for.
    """

    first: int
    hidden: NDArray[np.float32]
    logits: NDArray[np.float32] | None


def forced_rows(
    session: MedusaSession, token_ids: Sequence[int], first: int, *, logits: bool = False
) -> Iterator[ForcedRows]:
    """Runs the model over a text in slot 0, and yields what it says from position `first` on.

    Args:
        session: its cache holds this text afterwards.
        token_ids: the text; fewer than the session's longest.
        first: the first position of interest.
        logits: whether the logits are wanted.
    """
    target, size = session.bundle.manifest.target, session.engine.prefill_chunk
    for start in range(0, len(token_ids), size):
        ids = list(token_ids[start : start + size])
        rows = range(max(0, first - start), len(ids))
        chain = chain_tree(max(len(ids), target.min_rows) - 1)
        outputs = session.engine.verify(
            [ids + ids[-1:] * (chain.num_nodes - len(ids))],
            chain,
            [start],
            rows=tuple(rows) or (0,),
            logits=logits and len(rows) > 0,
        )
        if rows:
            found = None if outputs.logits is None else outputs.logits[0]
            yield ForcedRows(start + rows[0], outputs.hidden[0], found)
