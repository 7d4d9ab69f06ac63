"""Records the ranks of the true tokens among the heads' candidates, along the model's replies."""

from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import numpy as np
from numpy.typing import NDArray

from medusa_trt.calibration.options import ReplySettings
from medusa_trt.calibration.prompts import BenchPrompt
from medusa_trt.calibration.records import RecordLog
from medusa_trt.calibration.replies import (
    check_prompts_fit,
    encode_first_turn,
    estimate_reply_s,
    generate_whole_reply,
    run_over_text,
)
from medusa_trt.calibration.trees.replay import RankTable, ranks_from_drafts
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import MedusaSession

RANKS_FILE = "ranks.jsonl"


class RankRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One reply.

    Attributes:
        settings: how the reply was generated.
        prompt_id: id of the prompt.
        prompt_tokens: length of the prompt.
        token_ids: the reply up to its end-of-sequence token, which is included.
        ranks: (n - 1, num_heads) for a reply of n tokens; see `ranks_from_drafts`.
    """

    settings: ReplySettings
    prompt_id: str
    prompt_tokens: int
    token_ids: list[int]
    ranks: list[list[int]]


def list_missing_prompts(
    prompts: Sequence[BenchPrompt], settings: ReplySettings, log: RecordLog[RankRecord]
) -> list[tuple[int, BenchPrompt]]:
    """Lists the prompts without a reply in the log, with their indices."""
    done = {record.prompt_id for record in log if record.settings == settings}
    return [(index, prompt) for index, prompt in enumerate(prompts) if prompt.id not in done]


def record_ranks(
    session: MedusaSession,
    prompts: Sequence[BenchPrompt],
    settings: ReplySettings,
    log: RecordLog[RankRecord],
    advance: Callable[[], None],
) -> None:
    """Generates the replies that the log lacks, and appends them with their ranks.

    The replies equal plain decoding's, whatever tree the session drafts with. `advance` is called
    after each reply.

    Raises:
        KeyboardInterrupt: on Ctrl-C; finished replies are kept.
        PromptError: a prompt is too long. No reply is generated then.
    """
    check_prompts_fit(session, prompts, settings.max_new_tokens)
    for index, prompt in list_missing_prompts(prompts, settings, log):
        prompt_ids = encode_first_turn(session, prompt)
        options = GenerationOptions(
            max_new_tokens=settings.max_new_tokens, sampling=settings.sampling(index)
        )
        token_ids = generate_whole_reply(session, prompt_ids, options).token_ids
        log.append(
            RankRecord(
                settings=settings,
                prompt_id=prompt.id,
                prompt_tokens=len(prompt_ids),
                token_ids=token_ids,
                ranks=rank_reply(session, prompt_ids, token_ids).tolist(),
            )
        )
        advance()


def rank_reply(
    session: MedusaSession, prompt_ids: Sequence[int], token_ids: Sequence[int]
) -> NDArray[np.int16]:
    """Ranks (n - 1, num_heads) of a reply of n tokens; see `ranks_from_drafts`.

    A step drafts from the hidden state before its root, one row at a time, and so does this.
    """
    text = [*prompt_ids, *token_ids[:-2]]  # The last root's state is the one after this text.
    heads = session.bundle.manifest.heads
    num_heads = 0 if heads is None else heads.num_heads
    if len(token_ids) < 2 or heads is None:
        return np.empty((max(0, len(token_ids) - 1), num_heads), np.int16)
    states = (
        np.array(row[None])
        for chunk in run_over_text(session, text, len(prompt_ids) - 1)
        for row in np.array(chunk.hidden)
    )
    drafts = (
        session.engine.draft(state, [root]).ids[0]
        for state, root in zip(states, token_ids[:-1], strict=True)
    )
    return ranks_from_drafts(drafts, token_ids, num_heads)


def estimate_s(session: MedusaSession, prompt: BenchPrompt, settings: ReplySettings) -> float:
    """Estimates the seconds that a reply of full length and its ranks take."""
    rank = partial(rank_reply, session)
    return estimate_reply_s(session, prompt, settings.max_new_tokens, rank, GenerationOptions())


def table_from_records(records: Sequence[RankRecord], num_heads: int) -> RankTable:
    """Makes a table of the ranks of one or more recorded replies."""
    arrays = [np.array(record.ranks, np.int16).reshape(-1, num_heads) for record in records]
    return RankTable.from_replies(arrays)


def compute_mean_context(records: Sequence[RankRecord]) -> int:
    """Mean number of tokens in the cache, over all tokens of the replies."""
    num_tokens = sum(len(record.ranks) for record in records)
    total = sum(
        len(record.ranks) * (record.prompt_tokens + len(record.ranks) / 2) for record in records
    )
    return round(total / max(1, num_tokens))
