"""Replies that are measured, and the model over given texts."""

import pytest
from support.table_session import session_on_table, with_eos

from medusa_trt.calibration.prompts import BenchPrompt
from medusa_trt.calibration.replies import (
    check_prompts_fit,
    encode_first_turn,
    estimate_reply_s,
    run_over_text,
)
from medusa_trt.errors import PromptError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import MedusaSession

PROMPT = BenchPrompt("first", "", ("hello there", "go on"))


def test_a_text_is_run_over_in_parts(session: MedusaSession) -> None:
    ids = encode_first_turn(session, PROMPT) * 10
    assert len(ids) > session.engine.prefill_chunk
    first = session.engine.prefill_chunk - 2
    parts: list[list[int]] = []
    for outputs in run_over_text(session, ids, first, logits=True):
        assert outputs.logits is not None and len(outputs.logits) == len(outputs.hidden)
        assert outputs.first == first + sum(len(part) for part in parts)
        parts.append(outputs.logits.argmax(-1).tolist())
    greedy = GenerationOptions(max_new_tokens=1, ignore_eos=True)
    tokens = [token for part in parts for token in part]
    assert len(tokens) == len(ids) - first
    for place in (first, first + 3, len(ids) - 1):
        (token,) = session.generate(ids[: place + 1], greedy).token_ids
        assert token == tokens[place - first]


def test_a_prompt_that_does_not_fit_is_named(session: MedusaSession) -> None:
    check_prompts_fit(session, [PROMPT], 8)
    with pytest.raises(PromptError, match="prompt first needs up to"):
        check_prompts_fit(session, [PROMPT], session.max_length)


def test_an_estimate_is_scaled_to_the_length(tiny_bundle: Bundle) -> None:
    session, _ = session_on_table(with_eos(tiny_bundle, []))
    evaluated: list[int] = []

    def evaluate(prompt_ids: list[int], reply_ids: list[int]) -> None:
        evaluated.append(len(reply_ids))

    assert estimate_reply_s(session, PROMPT, 4, evaluate, GenerationOptions()) > 0
    assert estimate_reply_s(session, PROMPT, 500, evaluate, GenerationOptions()) > 0
    assert evaluated == [4, 16]
