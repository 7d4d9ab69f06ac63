"""A growing reply: where it ends, and which text it may show."""

import pytest
from tokenizers import Tokenizer, decoders, models

from medusa_trt.runtime.reply import FinishReason, Reply
from medusa_trt.runtime.text.codec import TextStream
from medusa_trt.runtime.text.stop_texts import StopTexts
from medusa_trt.runtime.text.token_bytes import decoder_from_tokenizer

LETTERS = {letter: number for number, letter in enumerate("abcdefgh")}


def begin(**changes: object) -> Reply:
    """A reply whose tokens 0 to 7 are the letters a to h."""
    tokenizer = Tokenizer(models.BPE(vocab=LETTERS, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    settings = {
        "num_prompt": 3,
        "limit": 100,
        "limit_reason": "length",
        "stop_ids": [7],
        "stop": StopTexts((), {}, {}),
        "text_stream": TextStream(tokenizer, decoder_from_tokenizer(tokenizer)),
    }
    reply = Reply(**settings | changes)  # type: ignore[arg-type]
    reply.begin(num_cached=2)
    return reply


def add(reply: Reply, text: str) -> str:
    """Adds the tokens of a text as one step; returns the text that is shown."""
    event = reply.add(([LETTERS[letter] for letter in text], ()), 0.0)
    assert event is not None
    return event.text


def test_a_text_that_may_become_a_stop_text_is_held_back() -> None:
    reply = begin(stop=StopTexts(("cde",), {}, {}))
    assert [add(reply, part) for part in ("ab", "c", "d")] == ["ab", "", ""]
    assert add(reply, "a") == "cda" and reply.finish_reason is None
    assert add(reply, "cdefg") == "" and reply.finish_reason == "stop"
    generation = reply.finish(0.0)
    assert generation.text == "abcda"
    # Tokens after the one that completes the stop text are dropped.
    assert generation.token_ids == [LETTERS[letter] for letter in "abcdacde"]


@pytest.mark.parametrize(
    ("changes", "text", "reason", "kept"),
    [
        ({}, "abh" + "a", "stop", "abh"),
        ({"limit": 2}, "abc", "length", "ab"),
        ({"limit": 2, "limit_reason": "cache_full"}, "abc", "cache_full", "ab"),
    ],
)
def test_a_reply_is_cut_where_it_ends(
    changes: dict[str, object], text: str, reason: FinishReason, kept: str
) -> None:
    reply = begin(**changes)
    add(reply, text)
    assert reply.finish_reason == reason
    assert reply.token_ids == [LETTERS[letter] for letter in kept]


@pytest.mark.parametrize("changes", [{}, {"streamed": False}, {"stop": StopTexts(("ee",), {}, {})}])
def test_an_end_token_is_no_text(changes: dict[str, object]) -> None:
    """Some checkpoints end a turn by a token that is not marked as special."""
    reply = begin(**changes)
    for token_ids in ([0, 1], [2, 7, 3]):
        reply.add((token_ids, ()), 0.0)
    generation = reply.finish(0.0)
    assert generation.text == "abc" and generation.token_ids == [0, 1, 2, 7]


def test_statistics_count_the_steps_after_the_first_token() -> None:
    reply = begin(text="echo ")
    assert add(reply, "a") == "echo a"
    add(reply, "bc")
    add(reply, "d")
    stats = reply.finish(1.5, "cancelled").stats
    assert (stats.prompt_tokens, stats.cached_tokens, stats.new_tokens) == (3, 2, 4)
    assert stats.accept_lengths == (2, 1) and stats.mean_accept_length == 1.5
    assert stats.engine_s == 1.5


def test_without_events_the_text_is_made_at_the_end() -> None:
    reply = begin(streamed=False)
    assert reply.add(([0, 1], ()), 0.0) is None
    assert reply.finish(0.0, "cancelled").text == "ab"
