"""Server-sent events, from replies and an application's side that are made by hand."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope

from medusa_trt.serving.errors import ApiError
from medusa_trt.serving.log import RequestRecord
from medusa_trt.serving.replies.streaming import EventStream

FAILED = ApiError(408, "too long", code="timeout")


class StandInReplies:
    """Replies that say whether their client is watched."""

    def __init__(self) -> None:
        self.is_watched = False

    @asynccontextmanager
    async def watch_client(self, receive: Receive) -> AsyncIterator[None]:
        self.is_watched = True
        try:
            yield
        finally:
            self.is_watched = False


class Sent:
    """What a stream of these parts sends; an error among them is raised.

    Attributes:
        messages: messages of the ASGI specification.
        record: what the log would tell.
    """

    def __init__(self, *parts: dict[str, Any] | ApiError, most: int = 99) -> None:
        """Sends the stream to a client that leaves after `most` messages."""
        self.messages: list[Message] = []
        self.record = RequestRecord("POST", "/")
        self._parts, self._most = parts, most
        asyncio.run(self._run())

    async def _run(self) -> None:
        replies = StandInReplies()

        async def chunks() -> AsyncIterator[dict[str, Any]]:
            for part in self._parts:
                assert replies.is_watched
                if isinstance(part, ApiError):
                    raise part
                yield part

        async def receive() -> Message:
            raise AssertionError("only the watcher receives")

        async def send(message: Message) -> None:
            if len(self.messages) == self._most:
                raise OSError("the client has left")
            self.messages.append(message)

        stream = EventStream(replies, chunks())  # type: ignore[arg-type]
        scope: Scope = {"type": "http", "state": {"record": self.record}}
        await stream(scope, receive, send)
        assert not replies.is_watched

    def read(self) -> list[object]:
        """The objects of all events; `[DONE]` as text."""
        start, *parts = self.messages
        assert start["status"] == 200
        headers = dict(start["headers"])
        assert headers[b"content-type"].startswith(b"text/event-stream")
        assert b"content-length" not in headers
        events = b"".join(part["body"] for part in parts).decode().split("\n\n")
        assert events.pop() == ""
        assert all(event.startswith("data: ") and "\n" not in event for event in events)
        data = [event.removeprefix("data: ") for event in events]
        return [text if text == "[DONE]" else json.loads(text) for text in data]


def test_each_object_is_an_event_and_the_last_one_says_done() -> None:
    sent = Sent({"text": "a\n\né\u2028"}, {"b": None})
    assert sent.read() == [{"text": "a\n\né\u2028"}, {"b": None}, "[DONE]"]
    assert [part["more_body"] for part in sent.messages[1:]] == [True, True, True, False]


def test_an_error_after_the_first_object_is_the_last_event() -> None:
    sent = Sent({"a": 1}, FAILED)
    assert sent.read() == [{"a": 1}, FAILED.body()]
    assert sent.messages[-1]["more_body"] is False and sent.record.error == "timeout"


def test_an_error_before_the_first_object_is_left_to_the_status() -> None:
    with pytest.raises(ApiError) as raised:
        Sent(FAILED)
    assert raised.value is FAILED


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_client_that_has_left_is_no_error(most: int) -> None:
    sent = Sent({"a": 1}, {"b": 2}, most=most)
    assert len(sent.messages) == most and sent.record.error is None
