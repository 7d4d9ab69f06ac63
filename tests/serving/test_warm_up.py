"""The steps before a server takes requests: what they run, and what they leave as it was."""

import sys
from typing import Any

import pytest

from medusa_trt.errors import EngineError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import VerifyOutputs
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.processors.grammar import Grammar
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.runtime.text import codec
from medusa_trt.serving.warm_up import warm_up

HOT = SamplingOptions(temperature=1.0, seed=5)
PROMPTS = ["hello", "the sea", "a b a b a b a b " * 12]


@pytest.mark.parametrize("fixture", ["tiny_bundle", "headless_bundle"])
def test_replies_and_counts_are_those_of_a_session_that_was_not_warmed_up(
    request: pytest.FixtureRequest, fixture: str
) -> None:
    bundle: Bundle = request.getfixturevalue(fixture)
    options = GenerationOptions(max_new_tokens=30, sampling=HOT)
    results = []
    for is_warm in (False, True):
        with MedusaSession(bundle, num_threads=1, batch_size=2) as session:
            if is_warm:
                warm_up(session)
                assert session.scheduler.is_idle and session.decoder.num_sequence_steps == 0
            replies = session.generate_batch(PROMPTS, options)
            results.append([(reply.token_ids, reply.stats.cached_tokens) for reply in replies])
            assert session.scheduler.counts.new_tokens == sum(len(ids) for ids, _ in results[-1])
    assert results[0] == results[1]


def test_no_later_step_is_larger(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with MedusaSession(tiny_bundle, num_threads=1, batch_size=2) as session:
        sizes = watch_steps(session, monkeypatch)
        warm_up(session)
        monkeypatch.setattr(codec, "GrammarTokenizer", None)  # Calling it would fail.
        largest = {kind: max(values) for kind, values in sizes.items()}
        assert all(largest.values()), largest
        for values in sizes.values():
            values.clear()
        for options in (
            GenerationOptions(max_new_tokens=40),
            GenerationOptions(max_new_tokens=40, sampling=HOT),
            GenerationOptions(max_new_tokens=40, logprobs=2, prompt_logprobs=True),
            GenerationOptions(max_new_tokens=40, grammar=Grammar.from_regex("[a-z ]{30}")),
        ):
            session.generate_batch(PROMPTS, options)
        assert all(max(values) <= largest[kind] for kind, values in sizes.items())


def watch_steps(session: MedusaSession, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Notes the sizes of a session's steps."""
    engine, sizes = session.engine, {name: [0] for name in ("nodes", "rows", "reduced", "drafted")}
    verify, reduce, draft = engine.verify, engine.reduce, engine.draft

    def watch_verify(*args: Any, **options: Any) -> VerifyOutputs:
        outputs = verify(*args, **options)
        sizes["nodes"].append(len(args[0]) * args[1].num_nodes)
        sizes["rows"].append(outputs.argmax.size)
        return outputs

    def watch_reduce(*args: Any) -> Any:
        sizes["reduced"].append(args[3].size)
        return reduce(*args)

    def watch_draft(*args: Any) -> Any:
        sizes["drafted"].append(len(args[0]))
        return draft(*args)

    monkeypatch.setattr(engine, "verify", watch_verify)
    monkeypatch.setattr(engine, "reduce", watch_reduce)
    monkeypatch.setattr(engine, "draft", watch_draft)
    return sizes


def test_without_grammars_the_rest_is_warmed_up(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MedusaSession(tiny_bundle, num_threads=1) as session:
        monkeypatch.setitem(sys.modules, "llguidance", None)
        warm_up(session)


def test_an_engine_that_fails_is_named(tiny_bundle: Bundle) -> None:
    session = MedusaSession(tiny_bundle, num_threads=1)
    session.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        warm_up(session)
