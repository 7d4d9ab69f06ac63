"""A request to the application as data, so that it can be answered in another process."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request over HTTP.

    Attributes:
        method, path: what is asked for.
        query: what follows the question mark.
        headers: names and values.
        body: the whole body.
    """

    method: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


async def answer_call(app: ASGIApp, call: Call) -> AsyncGenerator[Message, None]:
    """Lets an application answer, and yields what it sends.

    Closing the iterator is for the application as if the client had left.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    requests: list[Message] = [{"type": "http.request", "body": call.body, "more_body": False}]
    has_left = asyncio.Event()

    async def receive() -> Message:
        if requests:
            return requests.pop()
        await has_left.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(_make_scope(call), receive, messages.put)
        finally:
            messages.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            yield message
    finally:
        has_left.set()
        await task


def _make_scope(call: Call) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": call.method,
        "path": call.path,
        "raw_path": call.path.encode(),
        "root_path": "",
        "query_string": call.query,
        "headers": list(call.headers),
        "client": None,
        "server": None,
        "state": {},
    }
