"""The trees of a stream's steps, which its chunks hold on request."""

import json
from typing import Any

import pytest
from support.servers.live_server import LiveServer

from medusa_trt.runtime.session import MedusaSession


def read_choices(text: str) -> list[dict[str, Any]]:
    """The choices of all chunks of a stream."""
    events = [line[6:] for line in text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    return [choice for event in events for choice in json.loads(event)["choices"]]


def read_tokens(step: dict[str, Any]) -> list[str]:
    """The tokens that a step adds; checks that the accepted nodes are a path from the root."""
    path, tokens = 0, []
    for number, node in enumerate(step["nodes"]):
        if number and node["accepted"]:
            assert node["parent"] == path
            path = number
            tokens.append(node["token"])
    return [*tokens, step["bonus_token"]]


@pytest.mark.parametrize("fields", [{}, {"temperature": 1, "seed": 3}, {"tree": "chain-3"}])
@pytest.mark.parametrize("prompt", ["hello", "one two one two one two one two"])
def test_the_steps_add_the_tokens_of_the_reply(
    live: LiveServer, offline: MedusaSession, prompt: str, fields: dict[str, Any]
) -> None:
    body = {"prompt": prompt, "max_tokens": 40, "temperature": 0, "ignore_eos": True} | fields
    plain = live.complete(**body).json()["choices"][0]["text"]
    first, *rest = read_choices(live.complete(**body, stream=True, steps=True).text)
    assert "step" not in first
    assert "".join(choice["text"] for choice in (first, *rest)) == plain
    added = [token for choice in rest if "step" in choice for token in read_tokens(choice["step"])]
    logprobs = live.complete(**body, logprobs=0).json()["choices"][0]["logprobs"]
    expected = logprobs["tokens"][1:]
    shown = [each if not each.startswith("bytes:") else "\ufffd" for each in expected]
    assert added[: len(shown)] == shown
    roots = [choice["step"]["nodes"][0]["token"] for choice in rest if "step" in choice]
    bonuses = [choice["step"]["bonus_token"] for choice in rest if "step" in choice]
    assert roots[1:] == bonuses[:-1]


def test_copied_tokens_are_told_from_those_of_the_heads(live: LiveServer) -> None:
    body = {"prompt": "abcabcabcabcabc", "max_tokens": 30, "ignore_eos": True, "temperature": 0}

    def sources(**fields: Any) -> set[str]:
        text = live.complete(**body, **fields, stream=True, steps=True).text
        steps = [choice["step"] for choice in read_choices(text) if "step" in choice]
        return {node["source"] for step in steps for node in step["nodes"][1:]}

    assert "lookup" in sources()
    assert sources(lookup_ngram=0) <= {"heads"}
    assert sources(lookup_ngram=0, tree="plain") == set()


def test_a_chat_streams_steps_too(live: LiveServer) -> None:
    choices = read_choices(live.chat(stream=True, steps=True, max_tokens=9, ignore_eos=True).text)
    assert any("step" in choice for choice in choices)


def test_nothing_is_described_unasked(live: LiveServer) -> None:
    choices = read_choices(live.complete(stream=True, max_tokens=9).text)
    assert not any("step" in choice for choice in choices)


def test_steps_need_a_stream(live: LiveServer) -> None:
    reply = live.complete(steps=True)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "steps"
