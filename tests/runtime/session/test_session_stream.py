"""Streams: stop texts, whole characters, cancelling, failures, the cached prefix, log-probs."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.stand_ins.table_engine import TableEngine
from support.table_session import PLAIN, session_on_table, with_eos
from support.tiny_models import sentencepiece_tokenizer

from medusa_trt.errors import GenerationError, PromptError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.processors.base import LogitsProcessor
from medusa_trt.runtime.processors.grammar import Grammar
from medusa_trt.runtime.session import Generation, MedusaSession, StreamEvent
from medusa_trt.runtime.tensors import TOKENIZER_FILE
from medusa_trt.tree_configs import chain_tree, load_tree


class Scripted:
    """A processor that forces given tokens, so that a test knows the reply."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.token_ids = list(token_ids)

    def start(self, prompt_ids: Sequence[int]) -> "Scripted":
        return Scripted(self.token_ids)

    def process(self, logits: NDArray[np.float32]) -> None:
        logits[:] = -np.inf
        logits[self.token_ids[0]] = 0

    def accept(self, token: int) -> None:
        assert token == self.token_ids.pop(0)


def forced(session: MedusaSession, text: str, **options: object) -> list[StreamEvent]:
    script = session.text.encode(text, add_special_tokens=False)
    processor: LogitsProcessor = Scripted([*script, *[32] * 400])
    values: dict[str, object] = {"max_new_tokens": len(script)} | options
    return list(
        session.stream([1, 2], GenerationOptions(processors=(processor,), **values))  # type: ignore[arg-type]
    )


def last(events: list[StreamEvent]) -> Generation:
    generation = events[-1].generation
    assert generation is not None
    return generation


@settings(max_examples=60, deadline=None)
@given(
    text=st.text("abc é日😀", min_size=1, max_size=30),
    stop=st.lists(st.text("abc é", min_size=1, max_size=4), max_size=3),
)
def test_a_stop_text_ends_the_reply_and_is_never_shown(
    tiny_bundle: Bundle, text: str, stop: list[str]
) -> None:
    session, _ = session_on_table(with_eos(tiny_bundle, []))
    events = forced(session, text, stop=tuple(stop))
    # The reply ends with the first character that completes a stop text.
    ends = [text.find(word) + len(word) for word in stop if word in text]
    shown = text
    if ends:
        read = text[: min(ends)]
        shown = read[: min(read.find(word) for word in stop if word in read)]
    assert last(events).text == "".join(event.text for event in events) == shown
    assert last(events).finish_reason == ("stop" if ends else "length")


def test_no_event_shows_half_a_character(tiny_bundle: Bundle) -> None:
    session, _ = session_on_table(with_eos(tiny_bundle, []))
    text = "é日本😀 ok"
    events = forced(session, text)
    assert "".join(event.text for event in events) == text
    assert all("\ufffd" not in event.text for event in events)
    cut = forced(session, text, max_new_tokens=len("é日".encode()) + 1)
    assert last(cut).text == "é日"


def test_a_stream_can_be_left_and_the_session_used_again(tiny_bundle: Bundle) -> None:
    session, _ = session_on_table(with_eos(tiny_bundle, []))
    whole = session.generate([1, 2, 3], GenerationOptions(max_new_tokens=30)).token_ids
    stream = session.stream([1, 2, 3], GenerationOptions(max_new_tokens=30))
    next(stream)
    next(stream)
    other = session.generate([1], GenerationOptions(max_new_tokens=5))
    assert len(other.token_ids) == 5
    stream.close()
    again = session.generate([1, 2, 3], GenerationOptions(max_new_tokens=30))
    assert again.token_ids == whole


def test_cancelling_ends_the_reply_with_what_there_is(tiny_bundle: Bundle) -> None:
    session, _ = session_on_table(with_eos(tiny_bundle, []))
    whole = session.generate([1, 2, 3], GenerationOptions(max_new_tokens=30)).token_ids
    events = []
    for event in session.stream([1, 2, 3], GenerationOptions(max_new_tokens=30)):
        events.append(event)
        if len(events) == 3:
            session.cancel()
    reply = last(events)
    assert reply.finish_reason == "cancelled"
    assert 0 < len(reply.token_ids) < 30 and whole[: len(reply.token_ids)] == reply.token_ids
    assert session.generate([1, 2, 3], GenerationOptions(max_new_tokens=30)).token_ids == whole


@pytest.mark.parametrize("batch_size", [1, 2])
def test_cancelling_ends_a_prefill_between_two_chunks(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    options = GenerationOptions(max_new_tokens=3)
    with MedusaSession(tiny_bundle, batch_size=batch_size) as session:
        whole = session.generate([5] * 300, options).token_ids
        verify, calls = session.engine.verify, []

        def cancelling(*args: object, **kwargs: object) -> object:
            calls.append(args)
            session.cancel()
            return verify(*args, **kwargs)  # type: ignore[arg-type]

        with monkeypatch.context() as patched:
            patched.setattr(session.engine, "verify", cancelling)
            if batch_size == 1:
                replies = [session.generate([7] * 300, options)]
            else:
                replies = session.generate_batch([[7] * 300, [8] * 300], options)
        assert len(calls) == 1
        assert [(reply.finish_reason, reply.token_ids) for reply in replies] == [
            ("cancelled", [])
        ] * batch_size
        assert session.generate([5] * 300, options).token_ids == whole


def test_ctrl_c_returns_what_was_generated(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, engine = session_on_table(with_eos(tiny_bundle, []))
    whole = session.generate([1, 2, 3], GenerationOptions(max_new_tokens=30)).token_ids
    verify, calls = engine.verify, []

    def interrupted(*args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return verify(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "verify", interrupted)
    reply = session.generate([1, 2, 3, 4], GenerationOptions(max_new_tokens=30))
    assert reply.finish_reason == "cancelled" and reply.token_ids
    assert session.generate([1, 2, 3], GenerationOptions(max_new_tokens=30)).token_ids == whole


def test_an_engine_error_carries_what_was_generated(tiny_bundle: Bundle) -> None:
    session, engine = session_on_table(with_eos(tiny_bundle, []))
    whole = session.generate([1, 2, 3], GenerationOptions(max_new_tokens=30)).token_ids
    engine.fail_at_step = engine.num_steps + 4
    with pytest.raises(GenerationError, match="device is gone") as caught:
        session.generate([1, 2, 3], GenerationOptions(max_new_tokens=30))
    partial = caught.value.generation
    assert isinstance(partial, Generation) and partial.finish_reason == "error"
    assert partial.token_ids and whole[: len(partial.token_ids)] == partial.token_ids
    assert session.generate([1, 2, 3], GenerationOptions(max_new_tokens=30)).token_ids == whole


@pytest.mark.parametrize("spec", ["plain", "chain-3", "mc_sim_7b_63"])
def test_a_second_turn_prefills_only_what_is_new(tiny_bundle: Bundle, spec: str) -> None:
    options = GenerationOptions(max_new_tokens=12, ignore_eos=True, tree=load_tree(spec))
    with MedusaSession(tiny_bundle) as session, MedusaSession(tiny_bundle) as fresh:
        first = session.generate("a conversation begins", options)
        prompt = [*session.text.encode("a conversation begins"), *first.token_ids, 65, 66, 67]
        second = session.generate(prompt, options)
        # The reply's last token was decided but never fed to the model.
        assert second.stats.cached_tokens == len(prompt) - 4
        assert second.token_ids == fresh.generate(prompt, options).token_ids
        other = session.generate("a conversation differs", options)
        assert other.stats.cached_tokens == len("a conversation ")
        assert other.token_ids == fresh.generate("a conversation differs", options).token_ids
        same = session.generate("a conversation differs", options)
        assert same.stats.cached_tokens == same.stats.prompt_tokens - 1
        assert same.token_ids == other.token_ids


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_logprobs_are_the_models_own(tiny_bundle: Bundle, temperature: float) -> None:
    session, engine = session_on_table(with_eos(tiny_bundle, []))
    sampling = SamplingOptions(temperature=temperature, seed=3)
    options = GenerationOptions(max_new_tokens=15, logprobs=3, sampling=sampling)
    reply = session.generate([1, 2, 3], options)
    silent = GenerationOptions(max_new_tokens=15, sampling=sampling)
    assert session.generate([1, 2, 3], silent).token_ids == reply.token_ids
    assert len(reply.logprobs) == len(reply.token_ids) == 15
    text = [1, 2, 3]
    for entry, token in zip(reply.logprobs, reply.token_ids, strict=True):
        logits = engine.logits_after(text).astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum())
        assert entry.token == token
        assert entry.logprob == pytest.approx(expected[token], abs=1e-5)
        best = np.argsort(-expected)[:3]
        assert [item for item, _ in entry.top] == best.tolist()
        text.append(token)


@pytest.mark.parametrize("length", [1, 2, 128, 129, 150])
def test_the_prompts_logprobs_are_the_models_own(tiny_bundle: Bundle, length: int) -> None:
    session, engine = session_on_table(with_eos(tiny_bundle, []))
    prompt = [(7 * i) % 250 for i in range(length)]
    plain = session.generate(prompt, GenerationOptions(max_new_tokens=5, logprobs=2))
    options = GenerationOptions(max_new_tokens=5, logprobs=2, prompt_logprobs=True)
    reply = session.generate(prompt, options)
    assert reply.token_ids == plain.token_ids
    assert reply.logprobs == plain.logprobs and plain.prompt_logprobs == ()
    assert [entry.token for entry in reply.prompt_logprobs] == prompt[1:]
    for position, entry in enumerate(reply.prompt_logprobs, start=1):
        logits = engine.logits_after(prompt[:position]).astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum())
        assert entry.logprob == pytest.approx(expected[entry.token], abs=1e-5)
        assert [item for item, _ in entry.top] == np.argsort(-expected)[:2].tolist()


def test_prompt_logprobs_beside_other_replies_change_nothing(tiny_bundle: Bundle) -> None:
    options = GenerationOptions(max_new_tokens=8, logprobs=1, prompt_logprobs=True)
    with MedusaSession(tiny_bundle, num_threads=1, batch_size=3) as session:
        alone = [session.generate(text, options) for text in ("first text", "second", "third one")]
        together = session.generate_batch(["first text", "second", "third one"], options)
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]
    for each, other in zip(together, alone, strict=True):
        for entry, expected in zip(each.prompt_logprobs, other.prompt_logprobs, strict=True):
            assert entry.logprob == pytest.approx(expected.logprob, abs=1e-4)


def test_prompt_logprobs_need_logprobs() -> None:
    with pytest.raises(PromptError, match="prompt_logprobs needs logprobs"):
        GenerationOptions(prompt_logprobs=True)


def test_echo_begins_with_the_prompt(tiny_bundle: Bundle) -> None:
    session, _ = session_on_table(with_eos(tiny_bundle, []))
    options = GenerationOptions(max_new_tokens=5, echo=True)
    events = list(session.stream("hello ", options))
    assert last(events).text.startswith("hello ")
    assert "".join(event.text for event in events) == last(events).text


def test_an_echo_and_the_reply_are_one_text(bundle: Path) -> None:
    """A sentencepiece tokenizer drops the first space of a text, but not the reply's."""
    opened = Bundle.open(bundle)
    tokenizer = sentencepiece_tokenizer()
    tokenizer.no_truncation()
    tokenizer.save(str(bundle / TOKENIZER_FILE))
    options = GenerationOptions(max_new_tokens=8, echo=True, ignore_eos=True)
    with MedusaSession(opened) as session:
        for prompt in ("true", " tr ue", "a"):
            grammar = Grammar.from_regex(" po[abc]{3} ue")
            prompt_ids = session.encode(prompt)
            reply = session.generate(prompt_ids, replace(options, grammar=grammar))
            assert reply.text == tokenizer.decode([*prompt_ids, *reply.token_ids])
            assert reply.text.startswith(f"{prompt} po")


def test_sessions_on_two_threads_do_not_affect_each_other(tiny_bundle: Bundle) -> None:
    prompts = ("one thread", "and another one")
    options = GenerationOptions(max_new_tokens=60, ignore_eos=True, tree=chain_tree(3))
    with MedusaSession(tiny_bundle) as session:
        expected = [session.generate(prompt, options).token_ids for prompt in prompts]
    replies: dict[int, list[list[int]]] = {0: [], 1: []}

    def work(index: int) -> None:
        with MedusaSession(tiny_bundle, num_threads=1) as session:
            for _ in range(5):
                replies[index].append(session.generate(prompts[index], options).token_ids)

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in (0, 1):
        assert replies[index] == [expected[index]] * 5


def test_processors_with_a_tree_give_the_tokens_of_plain_decoding(tiny_bundle: Bundle) -> None:
    class NoRepeat:
        """Forbids every token that was used before."""

        def __init__(self, used: Sequence[int] = ()) -> None:
            self.used = list(used)

        def start(self, prompt_ids: Sequence[int]) -> "NoRepeat":
            return NoRepeat(prompt_ids)

        def process(self, logits: NDArray[np.float32]) -> None:
            logits[self.used] = -np.inf

        def accept(self, token: int) -> None:
            self.used.append(token)

    for temperature in (0.0, 1.0):
        sampling = SamplingOptions(temperature=temperature, seed=4)
        replies = []
        for tree in (PLAIN, load_tree("mc_sim_7b_63")):
            session, engine = session_on_table(with_eos(tiny_bundle, []), skill=1.0)
            options = GenerationOptions(
                max_new_tokens=50, tree=tree, sampling=sampling, processors=(NoRepeat(),)
            )
            replies.append(session.generate([1, 2, 3], options).token_ids)
        assert replies[0] == replies[1]
        assert len(set(replies[0])) == 50 and isinstance(engine, TableEngine)


def test_a_stop_text_that_is_a_special_token_ends_the_reply_there(tiny_bundle: Bundle) -> None:
    session, _ = session_on_table(with_eos(tiny_bundle, []))
    events = forced(session, "hi<s>rest", stop=("<s>",))
    assert last(events).text == "hi" and last(events).finish_reason == "stop"


@pytest.mark.parametrize(
    ("stop", "text"), [("<s>re", "<s>hi<s>"), ("i<s><s>r", "<s>h"), ("<s>a", None)]
)
def test_a_special_token_may_be_a_part_of_a_stop_text(
    tiny_bundle: Bundle, stop: str, text: str | None
) -> None:
    session, _ = session_on_table(with_eos(tiny_bundle, []))
    events = forced(session, "<s>hi<s><s>rest", stop=(stop,))
    shown = "hirest" if text is None else text.replace("<s>", "")
    assert last(events).text == "".join(event.text for event in events) == shown
    assert last(events).finish_reason == ("length" if text is None else "stop")


def test_a_stop_id_ends_the_reply_like_an_end_token(tiny_bundle: Bundle) -> None:
    session, _ = session_on_table(with_eos(tiny_bundle, []))
    token = session.text.encode("c", add_special_tokens=False)[0]
    generation = last(forced(session, "abcd", stop_ids=(token,)))
    assert generation.token_ids[-1] == token and generation.finish_reason == "stop"


@pytest.mark.parametrize("batch_size", [1, 3])
def test_streams_of_several_threads_share_the_steps(tiny_bundle: Bundle, batch_size: int) -> None:
    session, engine = session_on_table(with_eos(tiny_bundle, []), batch_size=batch_size)
    options = GenerationOptions(max_new_tokens=20, tree=PLAIN)
    prompts = [[number, 2, 3] for number in range(6)]
    expected = [session.generate(prompt, options).token_ids for prompt in prompts]
    num_alone, engine.num_steps = engine.num_steps, 0
    replies: dict[int, list[int]] = {}

    def read(index: int) -> None:
        events = list(session.stream(prompts[index], options))
        replies[index] = [token for event in events for token in event.token_ids]

    threads = [threading.Thread(target=read, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [replies[index] for index in range(len(prompts))] == expected
    assert engine.num_steps <= num_alone


def test_streams_of_one_thread_may_be_read_in_turn(tiny_bundle: Bundle) -> None:
    session, engine = session_on_table(with_eos(tiny_bundle, []), batch_size=2)
    options = GenerationOptions(max_new_tokens=20, tree=PLAIN)
    expected = [session.generate([number, 2], options).token_ids for number in (1, 2)]
    engine.num_steps = 0
    streams = [session.stream([number, 2], options) for number in (1, 2)]
    tokens: list[list[int]] = [[], []]
    for events in zip(*streams, strict=True):
        for index, event in enumerate(events):
            tokens[index] += event.token_ids
    assert tokens == expected
    assert engine.num_steps < 30, "both advance in the same step"
