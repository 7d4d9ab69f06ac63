"""Grammars and penalties as options of a reply: the session brings tokenizer and end tokens."""

import json

import pytest

from medusa_trt import GenerationOptions, Grammar, MedusaSession
from medusa_trt.errors import PromptError
from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.runtime.processors.penalties import CountPenalty, RepetitionPenalty
from medusa_trt.runtime.text import codec
from medusa_trt.tree_configs import load_tree

GRAMMAR = Grammar.from_json_schema({"type": "array", "items": {"type": "boolean"}, "maxItems": 4})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_reply_matches_its_grammar_with_a_tree_as_without(
    session: MedusaSession, temperature: float
) -> None:
    sampling = SamplingOptions(temperature=temperature, seed=3)
    options = [
        GenerationOptions(max_new_tokens=80, grammar=GRAMMAR, tree=tree, sampling=sampling)
        for tree in (None, load_tree("plain"))
    ]
    replies = [session.generate("hello", each) for each in options]
    streamed = "".join(event.text for event in session.stream("hello", options[0]))
    batch = session.generate_batch(["hello"], options[0])
    assert {reply.text for reply in [*replies, *batch]} == {streamed}
    assert replies[0].finish_reason == "stop"
    assert all(isinstance(item, bool) for item in json.loads(streamed))


def test_a_stop_id_ends_a_grammar(session: MedusaSession) -> None:
    grammar, stop = Grammar.from_regex("a"), session.encode("!")[-1]
    options = GenerationOptions(grammar=grammar, stop_ids=(stop,), max_new_tokens=5)
    reply = session.generate("hello", options)
    assert reply.finish_reason == "stop" and reply.text.startswith("a")


def test_requests_with_other_stop_ids_share_a_tokenizer(
    session: MedusaSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.make_request("hello", GenerationOptions(grammar=GRAMMAR))
    monkeypatch.setattr(codec, "GrammarTokenizer", None)  # Calling it would fail.
    for stop in range(3):
        session.make_request("hello", GenerationOptions(grammar=GRAMMAR, stop_ids=(stop,)))


def test_penalties_are_the_processors_of_their_names(session: MedusaSession) -> None:
    options = GenerationOptions(repetition_penalty=1.5, frequency_penalty=1.0, max_new_tokens=30)
    processors = (RepetitionPenalty(penalty=1.5), CountPenalty(frequency=1.0))
    same = GenerationOptions(processors=processors, max_new_tokens=30)
    plain = session.generate("hello", GenerationOptions(max_new_tokens=30))
    reply = session.generate("hello", options)
    assert reply.token_ids == session.generate("hello", same).token_ids != plain.token_ids


def test_a_grammar_that_cannot_be_used_is_refused_before_the_reply(session: MedusaSession) -> None:
    options = GenerationOptions(grammar=Grammar.from_json_schema('{"type": "objec"}'))
    with pytest.raises(PromptError, match="Invalid type: objec"):
        session.stream("hello", options)


@pytest.mark.parametrize(
    ("name", "value"),
    [("repetition_penalty", 0), ("presence_penalty", 3), ("grammar", "[a-z]"), ("grammar", {})],
)
def test_wrong_options_are_named(name: str, value: object) -> None:
    with pytest.raises(PromptError, match=name):
        GenerationOptions(**{name: value})  # type: ignore[arg-type]


def test_typical_acceptance_takes_no_grammar() -> None:
    sampling = SamplingOptions(temperature=0.7)
    with pytest.raises(PromptError, match="takes no penalties, grammar"):
        GenerationOptions(grammar=GRAMMAR, acceptance="typical", sampling=sampling)
