"""The HTTP protocol with a bounded head: so many bytes, so many seconds; and refusals that are error objects.

Only HTTP/1.1 is spoken: a request that offers to change to another protocol is answered as if it did not. A client of
HTTP/1.0 knows no chunks, so its answers end with the connection.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from baton.router.half_closed import HalfClosed, may_wait
from baton.router.openai.refusals import error_object


class _BoundedProtocol(HttpToolsProtocol):
    """Ends a connection whose request head is too long, or too long on its way."""

    max_head_nbytes: int
    head_s: float
    _head_nbytes = 0
    _is_in_head = True
    _head_timer: asyncio.TimerHandle | None = None
    _half_closed: HalfClosed | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_s, self._refuse_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._half_closed is not None:
            self._half_closed.stop()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Go on while an answer may be waited for; a connection of which nothing is left ends."""
        if self.pipeline or not may_wait(self.cycle, is_whole=self._is_in_head and not self._head_nbytes):
            return False
        self.cycle.keep_alive = False
        self._half_closed = HalfClosed(self.transport, self.cycle)
        return True

    def data_received(self, data: bytes) -> None:
        if self._is_in_head:
            self._head_nbytes += len(data)
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(self.head_s, self._refuse_late)
        self._unset_keepalive_if_required()
        self._feed(data)
        # what follows the head in the same piece of data is body, and does not count
        if self._is_in_head and self._head_nbytes > self.max_head_nbytes and not self.transport.is_closing():
            self._refuse(431, f"The request's head exceeds the limit of {self.max_head_nbytes} bytes.")

    def _feed(self, data: bytes) -> None:
        """Parse what came; the parser stops behind a head that offers another protocol, and takes no body for it."""
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data = self._head_without_offer() + data[offer.args[0] :]
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
                return
            else:
                return

    def _head_without_offer(self) -> bytes:
        """Begin anew with the head that was just read, less the offer of another protocol."""
        method, version = self.parser.get_method(), self.parser.get_http_version()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        lines = [b"%b: %b" % (name, value) for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join((b"%b %b HTTP/%b" % (method, self.url, version.encode()), *lines, b"", b""))

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise httptools.HttpParserError("CONNECT is not served")
            return  # it comes again, without its offer
        self._is_in_head = False
        self._head_nbytes = 0
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._is_in_head = True
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.scope["http_version"] == "1.0":
            app = _AnswerToTheEnd(cycle, app)
        super()._start_asgi_task(cycle, app)

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


class _AnswerToTheEnd:
    """An application whose answer is not cut into chunks: the end of the connection is its end."""

    def __init__(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.transport = cycle.transport
        self._cycle = cycle
        self._app = app
        cycle.chunked_encoding = False

    async def __call__(self, scope: Any, receive: Any, _send: Any) -> None:
        await self._app(scope, receive, self.send)

    async def send(self, message: Any) -> None:
        # uvicorn counts down a length that was never declared: let it be what comes now
        self._cycle.expected_content_length = len(message.get("body", b""))
        await self._cycle.send(message)


def bounded_protocol(max_head_nbytes: int, head_s: float) -> type[HttpToolsProtocol]:
    """Make uvicorn's protocol with these bounds; uvicorn builds the instances, so they stand in the class."""
    return type("BoundedProtocol", (_BoundedProtocol,), {"max_head_nbytes": max_head_nbytes, "head_s": head_s})
