"""OpenAI's own client against the server; each reply equals that of a session without a server."""

import json
from collections.abc import Iterator
from threading import Thread
from typing import Any, Literal

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel
from support.servers.live_server import LiveServer

from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.session import MedusaSession

HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_reply_equals_the_offline_one(client: OpenAI, offline: MedusaSession) -> None:
    (model,) = client.models.list().data
    reply = client.chat.completions.create(
        model=model.id, messages=HELLO, temperature=0, max_tokens=24
    )
    expected = offline.generate(HELLO, GenerationOptions(max_new_tokens=24))
    assert reply.choices[0].message.content == expected.text
    assert reply.choices[0].finish_reason == expected.finish_reason
    assert reply.usage is not None and reply.usage.completion_tokens_details is not None
    assert reply.usage.prompt_tokens == expected.stats.prompt_tokens
    assert reply.usage.completion_tokens == expected.stats.new_tokens
    accepted = reply.usage.completion_tokens_details.accepted_prediction_tokens
    assert accepted is not None
    assert 0 <= accepted < expected.stats.new_tokens


def test_a_stream_is_the_same_reply(client: OpenAI, offline: MedusaSession) -> None:
    sampling = SamplingOptions(temperature=0.9, top_p=0.95, seed=11)
    expected = offline.generate(HELLO, GenerationOptions(max_new_tokens=24, sampling=sampling))
    stream = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=HELLO,
        temperature=0.9,
        top_p=0.95,
        seed=11,
        max_completion_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, reasons, usage = "", [], None
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons.append(choice.finish_reason)
        usage = chunk.usage or usage
    assert text == expected.text
    assert reasons[-1] == expected.finish_reason and set(reasons[:-1]) <= {None}
    assert usage is not None and usage.completion_tokens == expected.stats.new_tokens


def test_several_choices_are_drawn_with_following_seeds(
    client: OpenAI, offline: MedusaSession
) -> None:
    reply = client.completions.create(
        model="tiny-llama", prompt="abc", n=3, seed=5, temperature=1, max_tokens=12
    )
    sampling = [SamplingOptions(temperature=1, seed=5 + index) for index in range(3)]
    expected = [
        offline.generate("abc", GenerationOptions(max_new_tokens=12, sampling=each)).text
        for each in sampling
    ]
    assert [choice.text for choice in reply.choices] == expected
    assert reply.usage is not None and reply.usage.prompt_tokens == len(offline.encode("abc"))


def test_structured_output_conforms(client: OpenAI) -> None:
    class Person(BaseModel):
        name: Literal["Ada", "Alan"]
        is_here: bool

    reply = client.chat.completions.parse(
        model="tiny-llama",
        messages=HELLO,
        response_format=Person,
        max_tokens=200,
        seed=1,
    )
    message = reply.choices[0].message
    assert isinstance(message.parsed, Person)
    assert set(json.loads(message.content or "")) == {"name", "is_here"}


@pytest.mark.parametrize(
    ("extension", "pattern"),
    [
        ({"regex": "(ab|cd){3}"}, {"abab", "cdcd", "abcd", "cdab"}),
        ({"grammar": 'start: "yes" | "no"'}, {"yes", "no"}),
    ],
)
def test_extensions_constrain_the_reply(
    client: OpenAI, extension: dict[str, str], pattern: set[str]
) -> None:
    reply = client.chat.completions.create(
        model="tiny-llama", messages=HELLO, max_tokens=20, extra_body=extension
    )
    text = reply.choices[0].message.content or ""
    assert any(text.startswith(start) for start in pattern)
    assert reply.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_logprobs_are_those_of_the_session(
    client: OpenAI, offline: MedusaSession, is_streamed: bool
) -> None:
    expected = offline.generate(HELLO, GenerationOptions(max_new_tokens=9, logprobs=2)).logprobs
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 9, "logprobs": True}
    fields |= {"top_logprobs": 2, "model": "tiny-llama", "messages": HELLO}
    if is_streamed:
        chunks = client.chat.completions.create(**fields, stream=True)
        content = [item for chunk in chunks for item in chunk.choices[0].logprobs.content]
    else:
        content = client.chat.completions.create(**fields).choices[0].logprobs.content
    assert len(content) == len(expected)
    for item, entry in zip(content, expected, strict=True):
        assert bytes(item.bytes) == offline.text.token_bytes(entry.token)
        assert item.logprob == pytest.approx(entry.logprob, abs=1e-5)
        assert len(item.top_logprobs) == 2


def test_stop_texts_end_a_reply_and_stay_out(client: OpenAI, offline: MedusaSession) -> None:
    whole = offline.generate("abc", GenerationOptions(max_new_tokens=30)).text
    stop = whole[10:12]
    reply = client.completions.create(
        model="tiny-llama", prompt="abc", temperature=0, max_tokens=30, stop=[stop, "never"]
    )
    assert reply.choices[0].text == whole[: whole.index(stop)]
    assert reply.choices[0].finish_reason == "stop"


def test_two_clients_at_once_get_their_own_replies(client: OpenAI, offline: MedusaSession) -> None:
    texts: dict[str, str] = {}

    def ask(prompt: str) -> None:
        reply = client.completions.create(
            model="tiny-llama", prompt=prompt, temperature=0, max_tokens=30
        )
        texts[prompt] = reply.choices[0].text

    prompts = ["one", "another", "a third", "the last of them"]
    threads = [Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for prompt in prompts:
        expected = offline.generate(prompt, GenerationOptions(max_new_tokens=30))
        assert texts[prompt] == expected.text


def test_errors_are_those_that_the_client_knows(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert missing.value.param == "model" and missing.value.code == "model_not_found"
    with pytest.raises(BadRequestError) as wrong:
        client.chat.completions.create(
            model="tiny-llama", messages=HELLO, extra_body={"beam_width": 2}
        )
    assert wrong.value.param == "beam_width" and "unknown field" in wrong.value.message
