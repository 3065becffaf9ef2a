"""The HTTP protocol with a bounded head: so many bytes, so many seconds; and refusals that are error objects."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from baton.router.openai.refusals import error_object


class _BoundedProtocol(HttpToolsProtocol):
    """Ends a connection whose request head is too long, or too long on its way."""

    max_head_nbytes: int
    head_s: float
    _head_nbytes = 0
    _is_in_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_s, self._refuse_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_in_head:
            self._head_nbytes += len(data)
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(self.head_s, self._refuse_late)
        super().data_received(data)
        # what follows the head in the same piece of data is body, and does not count
        if self._is_in_head and self._head_nbytes > self.max_head_nbytes and not self.transport.is_closing():
            self._refuse(431, f"The request's head exceeds the limit of {self.max_head_nbytes} bytes.")

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._head_nbytes = 0
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_head = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _refuse_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(408, f"The request's head did not arrive within {self.head_s:g} s.")

    def _refuse(self, status: int, message: str) -> None:
        body = orjson.dumps(error_object(message, status))
        reason = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}[status]
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, reason, len(body), body)
        )
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bounded_protocol(max_head_nbytes: int, head_s: float) -> type[HttpToolsProtocol]:
    """Make uvicorn's protocol with these bounds; uvicorn builds the instances, so they stand in the class."""
    return type("BoundedProtocol", (_BoundedProtocol,), {"max_head_nbytes": max_head_nbytes, "head_s": head_s})
