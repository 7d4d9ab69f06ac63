"""Requests as data: what an application gets of them, and what its client gets back."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from medusa_trt.serving.replicas.calls import Call, answer_call

CALL = Call(
    method="POST",
    path="/v1/x",
    query=b"a=1&b=%20",
    headers=((b"content-type", b"text/plain"), (b"x-other", b"y")),
    body=b"the body",
)
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


async def answer(application: Application) -> list[Message]:
    return [message async for message in answer_call(application, CALL)]


def test_an_application_gets_the_request_and_its_messages_come_back() -> None:
    seen: list[object] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        seen.extend([request.method, request.url.path, dict(request.query_params)])
        seen.extend([request.headers["content-type"], request.headers["x-other"]])
        seen.append(await request.body())
        for part in (b"a", b"b"):
            await send({"type": "http.response.body", "body": part, "more_body": part == b"a"})

    messages = asyncio.run(answer(application))
    assert [message["body"] for message in messages] == [b"a", b"b"]
    assert seen == ["POST", "/v1/x", {"a": "1", "b": " "}, "text/plain", "y", b"the body"]


def test_messages_come_while_the_application_still_runs_and_closing_is_a_client_that_left() -> None:
    heard: list[str] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append((await receive())["type"])
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        heard.append((await receive())["type"])

    async def take_one() -> None:
        messages = answer_call(application, CALL)
        assert (await anext(messages))["body"] == b"first" and heard == ["http.request"]
        await messages.aclose()

    asyncio.run(take_one())
    assert heard == ["http.request", "http.disconnect"]


def test_an_application_that_fails_fails_for_its_client() -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        asyncio.run(answer(application))
