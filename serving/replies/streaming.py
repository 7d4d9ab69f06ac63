"""Replies as server-sent events."""

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from medusa_trt.serving.errors import ApiError
from medusa_trt.serving.service import Replies

_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class EventStream(Response):
    """A stream of JSON objects, which ends with `[DONE]` or with an error.

    An error before the first object is the status of the reply. The replies are cancelled when the
    client leaves, also while it waits for the first token.
    """

    media_type = "text/event-stream"

    def __init__(self, replies: Replies, chunks: AsyncIterator[dict[str, Any]]) -> None:
        """Prepares the stream.

        Args:
            replies: what is cancelled.
            chunks: made of the events of these replies.
        """
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._replies, self._chunks = replies, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream.

        Raises:
            ApiError: there was an error before the first object.
        """
        async with self._replies.watch_client(receive):
            first = await anext(self._chunks)
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            try:
                await _send_event(send, first)
                async for chunk in self._chunks:
                    await _send_event(send, chunk)
                await _send_data(send, b"[DONE]")
            except ApiError as error:
                scope["state"]["record"].note_error(error)
                await _send_event(send, error.body())
            except OSError:
                return  # The client has left.
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_event(send: Send, value: dict[str, Any]) -> None:
    await _send_data(send, json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


async def _send_data(send: Send, data: bytes) -> None:
    body = b"data: " + data + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})
