"""Replies of this project's worker against those of a session."""

import pytest
from peer.workers.medusa_worker import load, load_many, load_rows

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import Drafts, VerifyOutputs
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import MedusaSession

PROMPTS = [[1, 2, 3], [5], [40, 41, 42, 43], [9]]


def reply_alone(session: MedusaSession, prompt: list[int], length: int) -> list[int]:
    options = GenerationOptions(max_new_tokens=length, ignore_eos=True)
    return session.generate(prompt, options).token_ids


@pytest.mark.parametrize("tree", [None, "plain"])
def test_a_reply_comes_step_by_step(
    tree: str | None, tiny_bundle: Bundle, session: MedusaSession
) -> None:
    packages, start = load(str(tiny_bundle.path), tree, 1)
    assert packages[0] == "medusa-trt"
    for prompt in PROMPTS:
        steps = list(start(prompt, 9))
        assert [token for step in steps for token in step] == reply_alone(session, prompt, 9)
        assert tree is None or [len(step) for step in steps] == [1] * 9


@pytest.mark.parametrize("concurrency", [1, 3])
def test_many_replies_are_those_of_each_prompt_alone(
    concurrency: int, tiny_bundle: Bundle, session: MedusaSession
) -> None:
    _, start = load_many(str(tiny_bundle.path), "plain", 1, concurrency)
    for _ in range(2):  # Rows of the first round may not be used in the second one.
        replies: list[list[int]] = [[] for _ in PROMPTS]
        for step in start(PROMPTS, 9):
            assert len(step) <= concurrency
            for index, tokens in step.items():
                replies[index] += tokens
        assert replies == [reply_alone(session, prompt, 9) for prompt in PROMPTS]


def test_steps_of_rows_are_steps_of_the_engine(tiny_bundle: Bundle) -> None:
    _, prepare = load_rows(str(tiny_bundle.path), 1, (8, 40))
    for rows, past in ((3, 8), (1, 40)):
        outputs = prepare(rows, past, False)()
        assert isinstance(outputs, VerifyOutputs) and outputs.argmax.shape == (1, rows)
    assert isinstance(prepare(0, 8, False)(), Drafts)
    assert prepare(16, 0, True)() is None
