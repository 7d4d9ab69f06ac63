"""The address of several replicas: it sends each request to one, and again if that is lost."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from medusa_trt.serving.errors import ApiError
from medusa_trt.serving.log import write_line
from medusa_trt.serving.options import ServingOptions
from medusa_trt.serving.replicas.affinity import make_affinity_key
from medusa_trt.serving.replicas.calls import Call
from medusa_trt.serving.replicas.measurements import merge_measurements

_MAX_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """How replicas are reached.

    Attributes:
        answer: sends a call with its affinity key to a replica, and yields the reply's messages.
        measure: asks all replicas for their measurements, each with its name.
        lost_errors: what `answer` raises when the replica is lost.
        full_errors: what it raises when too many requests wait for a replica.
    """

    answer: Callable[[str, Call], AsyncGenerator[Message, None]]
    measure: Callable[[], Awaitable[Sequence[tuple[str, str]]]]
    lost_errors: tuple[type[Exception], ...]
    full_errors: tuple[type[Exception], ...]


class Front:
    """An application that passes requests on to replicas, and their replies back.

    A request is sent to another replica when the first is lost before any part of the reply. A
    stream that has begun ends with an error, because another replica would begin anew.
    """

    def __init__(self, replicas: Replicas, options: ServingOptions) -> None:
        """Stands before replicas that have the same options."""
        self._replicas, self._options = replicas, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; see the ASGI specification."""
        if scope["type"] != "http":
            return
        try:
            if scope["method"] == "GET" and scope["path"] in ("/health", "/ready", "/metrics"):
                response = await self._describe_state(scope["path"])
                await response(scope, receive, send)
                return
            call = await self._read_call(scope, receive)
            if call is not None:
                await self._pass_on(call, receive, send)
        except ApiError as error:
            await error.response()(scope, receive, send)

    async def _describe_state(self, path: str) -> Response:
        """Says how the replicas are; they answer this also when they have no room for a request."""
        if path == "/health":  # Of this process; what runs the replicas looks after them.
            return JSONResponse({"status": "ok"})
        measured = await self._replicas.measure()
        if path == "/metrics":
            text = merge_measurements(measured)
            return Response(text, media_type="text/plain; version=0.0.4")
        if not measured:
            raise ApiError(503, "no replica runs: try again later", code="not_ready")
        return JSONResponse({"status": "ready"})

    async def _read_call(self, scope: Scope, receive: Receive) -> Call | None:
        """Reads a request; None if the client has left before its end.

        Raises:
            ApiError: it is too large.
        """
        parts: list[bytes] = []
        num_bytes, is_complete = 0, False
        while not is_complete:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            num_bytes += len(parts[-1])
            if num_bytes > (limit := self._options.max_body_bytes):
                text = f"the body is larger than {limit} bytes: send a smaller one"
                raise ApiError(413, text, code="request_too_large")
            is_complete = not message.get("more_body", False)
        return Call(
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"],
            headers=tuple((bytes(name), bytes(value)) for name, value in scope["headers"]),
            body=b"".join(parts),
        )

    async def _pass_on(self, call: Call, receive: Receive, send: Send) -> None:
        """Passes a call on until its end, or until the client leaves."""
        passing = asyncio.create_task(self._try_replicas(call, send))
        leaving = asyncio.create_task(_wait_until_left(receive))
        try:
            await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (leaving, passing):
                if not task.done():
                    task.cancel()
                    await asyncio.wait({task})
        if not passing.cancelled():
            passing.result()

    async def _try_replicas(self, call: Call, send: Send) -> None:
        """Sends a call to one replica after the other, until one answers.

        Raises:
            ApiError: none does.
        """
        key = make_affinity_key(call.body)
        for _ in range(_MAX_TRIES):
            reply = _Reply(send)
            try:
                async with aclosing(self._replicas.answer(key, call)) as messages:
                    async for message in messages:
                        await reply.pass_on(message)
                return
            except self._replicas.full_errors as error:
                text = "all replicas are busy and too many requests wait: try again later"
                headers = {"retry-after": "1"}
                raise ApiError(429, text, code="queue_full", headers=headers) from error
            except self._replicas.lost_errors as error:
                write_line({"lost": type(error).__name__, "path": call.path, "cut": reply.is_begun})
                if reply.is_begun:
                    await reply.end_cut()
                    return
        text = f"{_MAX_TRIES} replicas were lost before they answered: try again later"
        raise ApiError(503, text, code="replica_lost")


class _Reply:
    """A reply on its way to a client.

    The start waits for the first part of the body, so that there is none when the replica is lost
    before it.

    Attributes:
        is_begun: whether the client has a part of it.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self.is_begun = False

    async def pass_on(self, message: Message) -> None:
        """Sends a message of the replica."""
        if message["type"] == "http.response.start":
            # Ray gives the reply an id of its own, and the replica's log has this one.
            names = {b"x-request-id": b"x-replica-request-id"}
            headers = [(names.get(name, name), value) for name, value in message["headers"]]
            self._start = {**message, "headers": headers}
            return
        if not self.is_begun:
            assert self._start is not None
            self.is_begun = True
            await self._send(self._start)
        await self._send(message)

    async def end_cut(self) -> None:
        """Ends a reply that its replica cannot end.

        Raises:
            ConnectionError: it is no stream of events; the server then ends the connection.
        """
        assert self._start is not None
        kind = dict(self._start["headers"]).get(b"content-type", b"")
        if not kind.startswith(b"text/event-stream"):
            raise ConnectionError("the replica was lost in the middle of a reply")
        message = "the replica that made this reply was lost: send the request again"
        body = json.dumps(ApiError(503, message, code="replica_lost").body())
        await self._send(
            {"type": "http.response.body", "body": f"data: {body}\n\n".encode(), "more_body": False}
        )


async def _wait_until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
