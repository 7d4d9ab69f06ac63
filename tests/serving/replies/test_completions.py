"""Completions over HTTP: echoed prompts and their log-probabilities, whole and in streams."""

import json

import pytest
from support.servers.live_server import LiveServer

from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import MedusaSession


def test_an_echo_has_the_logprobs_of_the_prompt(live: LiveServer, offline: MedusaSession) -> None:
    """This is how lm-eval asks."""
    ids = offline.encode("a prompt")
    fields = {"prompt": [ids, ids[:4]], "max_tokens": 1, "logprobs": 1, "echo": True}
    for choice, prompt in zip(
        live.complete(**fields, temperature=0).json()["choices"], (ids, ids[:4]), strict=True
    ):
        options = GenerationOptions(max_new_tokens=1, logprobs=1, prompt_logprobs=True)
        expected = offline.generate(prompt, options)
        logprobs = choice["logprobs"]
        assert choice["text"] == offline.text.decode(prompt) + expected.text
        assert len(logprobs["tokens"]) == len(prompt) + 1 == len(logprobs["text_offset"])
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        entries = [*expected.prompt_logprobs, *expected.logprobs]
        for position, entry in enumerate(entries, start=1):
            assert logprobs["token_logprobs"][position] == pytest.approx(entry.logprob, abs=1e-4)
            best = max(logprobs["top_logprobs"][position].values())
            assert best == pytest.approx(max(entry.top[0][1], entry.logprob), abs=1e-4)


def test_an_echo_without_new_tokens(live: LiveServer) -> None:
    reply = live.complete(prompt="abc", max_tokens=0, echo=True, logprobs=0).json()
    assert reply["choices"][0]["text"] == "abc"
    assert reply["choices"][0]["logprobs"]["tokens"][-3:] == ["a", "b", "c"]
    assert reply["usage"]["completion_tokens"] == 0


def test_a_streamed_echo_is_the_same_as_a_whole_one(live: LiveServer) -> None:
    fields = {"prompt": ["abc", "de"], "max_tokens": 9, "echo": True, "logprobs": 2}
    whole = live.complete(**fields, temperature=0).json()
    streamed = live.complete(**fields, temperature=0, stream=True)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *events, done = [line[6:] for line in streamed.text.split("\n\n") if line]
    assert done == "[DONE]"
    for index, choice in enumerate(whole["choices"]):
        chunks = [
            part
            for event in events
            for part in json.loads(event)["choices"]
            if part["index"] == index
        ]
        assert "".join(part["text"] for part in chunks) == choice["text"]
        for name in ("tokens", "token_logprobs"):
            joined = [value for part in chunks for value in part["logprobs"][name]]
            assert joined == pytest.approx(choice["logprobs"][name], abs=1e-4)
        assert chunks[-1]["finish_reason"] == choice["finish_reason"]
