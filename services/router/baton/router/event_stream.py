"""EventStream: bytes in, at any pace; out as one client reads them, one write for all that waits.

A client that does not read is bounded, and then told so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from baton.errors import BatonError
from baton.metrics import RouterMetrics
from baton.router.config import RouterConfig
from baton.router.json_answers import send_json
from baton.router.openai.refusals import OPENAI_FORM, ErrorForm, error_object, error_of
from baton.router.repeated import Repeated

KEEP_ALIVE = b": keep-alive\n\n"
_EVENTS = "text/event-stream; charset=utf-8"
_GRACE_S = 10.0
"""For the last words to a slow client."""


class StreamState(Enum):
    """Where a stream stands; drawn above `EventStream`."""

    WAITING = auto()
    OPEN = auto()
    ENDING = auto()
    OVER = auto()
    GONE = auto()


_WAITING, _OPEN, _ENDING, _OVER, _GONE = StreamState


#             first data                 close, fail, a slow client                 all is written
#   WAITING ─────────────▶ OPEN ──────────────────────────────────────▶ ENDING ─────────────────────▶ OVER
#      │                                                                  ▲
#      └──────── close; fail: the error is an answer of its own ──────────┘
#   WAITING, OPEN, ENDING ── the client leaves, or does not read even its last words ──▶ GONE
#
# WAITING and OPEN take data; in OPEN the head has been sent. ENDING writes what waits. Whoever makes the data hears by
# `on_gone` that nobody reads it any more: once, and only if the stream took data till then.
class EventStream(Response):
    """One client's stream of server-sent events.

    Its task opens the answer, ends it, and waits where the client is slow. Between, `flush` writes straight from the
    event loop: waking the task, under a dozen frames of framework, would cost more than all else that a token costs.
    """

    def __init__(
        self,
        table: OpenStreams,
        config: RouterConfig,
        metrics: RouterMetrics,
        on_gone: Callable[[], None],
        form: ErrorForm,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", "content-type": _EVENTS})
        self.state = _WAITING
        self._table = table
        self._metrics = metrics
        self._limit = config.stream_buffer_nbytes
        self._on_gone = on_gone
        self._form = form
        self._parts: list[bytes] = []
        self._nbytes = self._allowance = 0
        self._is_fresh = False
        self._refusal: BatonError | None = None
        self._server: Any = None
        """The server's side of the request, while the answer is open and nothing else is writing."""
        self._raw_send: Send | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[Any] | None = None
        self._write_began_at = 0.0
        self._last_data_at = time.monotonic()

    # -- for sinks ----------------------------------------------------------------------------------------

    def push(self, data: bytes) -> None:
        """Queue data. Never waits; a client that lets too much wait is ended."""
        state = self.state
        if state is not _OPEN and state is not _WAITING:
            return
        self._parts.append(data)
        self._nbytes += len(data)
        if self._nbytes > self._limit + self._allowance:
            self._end_slow()
        elif not self._is_fresh:
            self._is_fresh = True
            self._table.flush_soon(self)

    def push_all(self, data: bytes) -> None:
        """Queue data that comes at once however fast its client reads: it does not count as waiting for the client."""
        self._allowance += len(data)
        self.push(data)

    def close(self, last: bytes = b"") -> None:
        """Nothing follows but `last`."""
        if last:
            self.push_all(last)
        if self._takes_data:
            self.state = _ENDING
        self._wake()

    def fail(self, error: BatonError) -> None:
        """End with an error: as an answer of its own while the head is not sent, else as the last event."""
        if self.state is _WAITING:
            self._refusal = error
            self.close()
        else:
            self.close(self._form.event(error_of(error), error.status))

    # -- for the table ------------------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Write what waits, if that needs no waiting; else leave it to the task."""
        self._is_fresh = False
        server = self._server
        if (
            server is None
            or self.state is not _OPEN
            or not self._parts
            or server.flow.write_paused
            or server.disconnected
        ):
            self._wake()
            return
        data = self._take_parts()
        # as the server writes a chunk, without a coroutine and a message for it
        server.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        self._last_data_at = now

    def tick(self, now: float, keep_alive_s: float, slow_s: float) -> None:
        """Keep a silent connection alive; end one whose client has not read for long."""
        if self._write_began_at and now - self._write_began_at > slow_s:
            self._end_slow()
        elif self._takes_data and not self._parts and now - self._last_data_at > keep_alive_s:
            self.push(KEEP_ALIVE)

    # -- the connection -----------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream to its end."""
        self._writer = asyncio.current_task()
        self._table.served.add(self)
        watch = asyncio.get_running_loop().create_task(self._watch(receive))
        try:
            self._raw_send = scope.get("baton.send", send)
            await self._serve(send, self._raw_send)
        except asyncio.CancelledError:
            if self.state is not _GONE:
                raise
        finally:
            watch.cancel()
            self._server = None
            self._table.served.discard(self)
            if self.state is not _GONE:
                self._stop(_OVER)  # data was taken till now if the server ends, or the connection broke under a write
            # they lead back here: what ends is to go at once, not with a collection that stops all streams
            self._on_gone, self._writer, self._raw_send = _nothing, None, None

    async def _serve(self, send: Send, send_body: Send) -> None:
        while self.state is _WAITING and not self._parts:
            await self._wait()
        if self._refusal is not None and self.state is _ENDING:
            await self._send_refusal(send, self._refusal)
            return
        if self.state is _GONE:
            return
        if self.state is _WAITING:
            self.state = _OPEN
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        server = _known_server(send_body)
        while self.state is not _GONE:
            if self._parts:
                self._server = None
                self._write_began_at = time.monotonic()
                await send_body({"type": "http.response.body", "body": self._take_parts(), "more_body": True})
                self._last_data_at, self._write_began_at = time.monotonic(), 0.0
            elif self.state is _ENDING:
                await send_body({"type": "http.response.body", "body": b"", "more_body": False})
                return
            else:
                self._server = server
                await self._wait()

    async def _send_refusal(self, send: Send, error: BatonError) -> None:
        replaced = (b"content-type", b"cache-control", b"content-length")
        kept = [(name, value) for name, value in self.raw_headers if name not in replaced]
        await send_json(
            send,
            error.status,
            self._form.body(error_of(error), error.status),
            before=kept,
            after=[(b"retry-after", b"1")] if error.retryable else [],
        )

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _take_parts(self) -> bytes:
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._nbytes = self._allowance = 0
        return data

    @property
    def _takes_data(self) -> bool:
        return self.state is _WAITING or self.state is _OPEN

    def _stop(self, state: StreamState) -> bool:
        """Take no more data, and tell who makes it; whether any was taken till now."""
        took, self.state = self._takes_data, state
        if took:
            self._on_gone()
        return took

    async def _watch(self, receive: Receive) -> None:
        """See the client leave."""
        while (await receive())["type"] != "http.disconnect":
            pass
        if self._stop(_GONE):
            self._metrics.client_disconnects.inc()
        self._wake()
        # a write that waits for a client that is gone would wait for ever
        if self._write_began_at and self._writer is not None:
            self._writer.cancel()

    def _end_slow(self) -> None:
        """Drop what waits, say why, and leave after a short grace."""
        if self._stop(_ENDING):
            self._metrics.slow_clients.inc()
            error = error_object(
                "The client did not read its stream in time, so it was ended. Read faster, or ask without stream.",
                408,
                code="slow_client",
            )
            self._parts = [self._form.event(error, 408)]
            asyncio.get_running_loop().call_later(_GRACE_S, self._abort)
        self._wake()

    def _abort(self) -> None:
        """Leave a client that has not even read its last words."""
        if self.state is _ENDING and self._writer is not None:
            self.state = _GONE
            self._writer.cancel()
            # closing would wait for the client to read what is in the connection's buffer
            transport = getattr(getattr(self._raw_send, "__self__", None), "transport", None)
            if transport is not None:
                transport.abort()


class OpenStreams:
    """All streams that are open: one clock for their keep-alives and for those that do not read, one write a step."""

    def __init__(self, config: RouterConfig, metrics: RouterMetrics) -> None:
        self._config = config
        self._metrics = metrics
        self.served: set[EventStream] = set()
        """From the start of their answer to its end."""
        self._fresh: list[EventStream] = []
        """Streams with new data since the last flush."""
        self._loop = asyncio.get_running_loop()
        ticking = Repeated(max(min(1.0, config.keep_alive_s / 4, config.slow_client_s / 4), 0.02), self._tick)
        self.start, self.close = ticking.start, ticking.close

    def open(self, on_gone: Callable[[], None], form: ErrorForm = OPENAI_FORM) -> EventStream:
        """Make a stream; `on_gone` is called when its client has left or does not read."""
        return EventStream(self, self._config, self._metrics, on_gone, form)

    def flush_soon(self, stream: EventStream) -> None:
        """Write a stream's new data when all of this step's tokens are in."""
        if not self._fresh:
            self._loop.call_soon(self._flush)
        self._fresh.append(stream)

    def _flush(self) -> None:
        fresh, self._fresh = self._fresh, []
        now = time.monotonic()
        for stream in fresh:
            stream.flush(now)

    def _tick(self) -> None:
        keep_alive_s, slow_s, now = self._config.keep_alive_s, self._config.slow_client_s, time.monotonic()
        for stream in list(self.served):
            stream.tick(now, keep_alive_s, slow_s)


def _nothing() -> None:
    """Nobody is left to be told."""


def _known_server(send: Send) -> Any:
    """Find uvicorn's side of a request whose answer goes out in chunks; None for a server that we do not know."""
    server: Any = getattr(send, "__self__", None)
    is_known = type(server).__module__ == "uvicorn.protocols.http.httptools_impl"
    return server if is_known and server.chunked_encoding else None
