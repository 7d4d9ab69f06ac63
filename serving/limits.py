"""What happens to a request before its route: its log line, the key, and the limits of its body."""

import asyncio
import hmac
from collections.abc import Callable
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medusa_trt.serving.errors import ApiError
from medusa_trt.serving.log import RequestRecord, write_fault
from medusa_trt.serving.options import ServingOptions
from medusa_trt.serving.page import PAGE_PATHS

_OPEN_PATHS = PAGE_PATHS | {"/health", "/ready", "/metrics"}
"""Paths that need no key: the page, and what probes and Prometheus read; they tell of no text."""


class Gate:
    """Logs each request, and refuses those without a key and those that are too large or slow."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        options: ServingOptions,
        api_keys: tuple[bytes, ...],
        log: Callable[[dict[str, object]], None],
    ) -> None:
        """Stands before an application.

        Args:
            app: the application.
            options: the limits.
            api_keys: a client must send one of them, if there are any.
            log: writes what it gets as one line.
        """
        self._app, self._options, self._api_keys, self._log = app, options, api_keys, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; see the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(scope["method"], scope["path"])
        scope.setdefault("state", {})["record"] = record
        has_begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", record.id.encode()),
                ]
            await send(message)

        try:
            await self._answer(scope, receive, send_with_id, record)
        except Exception as error:
            write_fault(error)
            fault = ApiError(500, "the server failed: its log has the error", code="internal")
            record.note_error(fault)
            # An answer that has begun is cut: the server closes the connection.
            if not has_begun:
                await fault.response()(scope, receive, send_with_id)
        finally:
            self._log(record.describe())

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, record: RequestRecord
    ) -> None:
        # An answer to HEAD is one to GET, of which the server sends the headers alone.
        scope_of_get = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            self._check_key(scope)
            body = await self._read_body(scope, receive, record)
        except ApiError as error:
            record.note_error(error)
            await error.response()(scope, receive, send)
        else:
            if body is not None:
                await self._app(scope_of_get, _replay(body, receive), send)

    def _check_key(self, scope: Scope) -> None:
        if not self._api_keys or scope["path"] in _OPEN_PATHS:
            return
        sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = sent.partition(b" ")
        # All keys are compared, so that the time tells nothing of which one is nearly right.
        matches = [hmac.compare_digest(key.strip(), known) for known in self._api_keys]
        if scheme.lower() != b"bearer" or not any(matches):
            raise ApiError(
                401,
                "this server needs a key: send the header 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    async def _read_body(
        self, scope: Scope, receive: Receive, record: RequestRecord
    ) -> bytes | None:
        """Reads the body; None if the client has left before its end."""
        limit = self._options.max_body_bytes
        sizes = [value for name, value in scope["headers"] if name == b"content-length"]
        if sizes and int(sizes[0]) > limit:
            raise _too_large(limit)
        parts: list[bytes] = []
        num_bytes, is_complete = 0, False
        left_s = self._options.timeout_s - (perf_counter() - record.start_s)
        end = asyncio.get_running_loop().time() + left_s
        while not is_complete:
            try:
                rest_s = end - asyncio.get_running_loop().time()
                message = await asyncio.wait_for(receive(), rest_s)
            except asyncio.TimeoutError as error:
                raise ApiError(
                    408,
                    "the body did not arrive in time: send it faster, or a smaller one",
                    code="timeout",
                    headers={"connection": "close"},
                ) from error
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            num_bytes += len(parts[-1])
            if num_bytes > limit:
                raise _too_large(limit)
            is_complete = not message.get("more_body", False)
        return b"".join(parts)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than {limit} bytes: send a smaller one",
        code="request_too_large",
        headers={"connection": "close"},
    )


def _replay(body: bytes, receive: Receive) -> Receive:
    """Makes a function that first returns the body, then what the client does next."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again
