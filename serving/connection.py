"""A connection of a client, which may neither wait for ever nor leave a reply unread for ever."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from medusa_trt.serving.errors import ApiError


class Connection(H11Protocol):
    """A connection with limits of time for what the client has to do.

    uvicorn itself waits for ever for the headers of a request, and for a client that does not read.
    """

    def __init__(self, *args: Any, client_timeout_s: float, **options: Any) -> None:
        """Prepares a connection; uvicorn gives all other arguments."""
        super().__init__(*args, **options)
        self._client_timeout_s = client_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts to wait for the headers of a request."""
        super().connection_made(transport)
        # So the timer runs from when the system's buffer is full, and no reply piles up here.
        transport.set_write_buffer_limits(high=0)
        self._check_head()

    def data_received(self, data: bytes) -> None:
        """Reads what the client sends."""
        super().data_received(data)
        self._check_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the connection."""
        super().connection_lost(exc)
        for timer in (self._head_timer, self._read_timer):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        """Starts to wait for the client to read."""
        super().pause_writing()
        self._read_timer = self.loop.call_later(self._client_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Goes on after the client has read."""
        super().resume_writing()
        if self._read_timer is not None:
            self._read_timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP request."""
        message = "this is no HTTP request, or its headers are larger than 64 KiB: correct it"
        self._refuse(ApiError(400, message, code="invalid_http"))

    def _check_head(self) -> None:
        """Waits for headers where none, or only some of them have arrived."""
        timer, self._head_timer = self._head_timer, None
        waits = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None
        if not waits and timer is not None:
            timer.cancel()
        elif waits:
            call_later = self.loop.call_later
            self._head_timer = timer or call_later(self._client_timeout_s, self._end_waiting)

    def _end_waiting(self) -> None:
        message = "the headers did not arrive in time: send them faster"
        self._refuse(ApiError(408, message, code="timeout"))

    def _refuse(self, error: ApiError) -> None:
        """Sends an error without a request, and closes the connection."""
        if self.transport.is_closing():
            return
        response = error.response()
        headers = [*response.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=error.status, headers=headers),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
