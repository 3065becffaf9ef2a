"""Text pieces to an event stream, or to one JSON body.

`EventStream` is the transport: bytes in, at any pace; out as the client reads them, one write for all that waits. A
client that does not read is bounded, and then told so. `StreamSink` and `CollectSink` are what a flow speaks to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

import orjson
from starlette.responses import Response

from baton.errors import BatonError
from baton.messages import Token, TokenLogprobs
from baton.metrics import RouterMetrics
from baton.router.config import RouterConfig
from baton.router.dispatcher import Running
from baton.router.openai.chunks import DONE, KEEP_ALIVE, ChatChunks, CompletionChunks, error_event
from baton.router.openai.refusals import error_object, error_of
from baton.router.openai.tools import ToolCall, ToolCallParser
from baton.router.sink import Usage

Scope = MutableMapping[str, Any]
Receive = Callable[[], Any]
Send = Callable[[MutableMapping[str, Any]], Any]
_EVENTS = "text/event-stream; charset=utf-8"
_GRACE_S = 10.0
"""For the last words to a slow client."""


class SlowClient(BatonError):
    """The client does not read."""

    status = 408


class OpenStreams:
    """All streams that are open: one clock for their keep-alives and for those that do not read."""

    def __init__(self, config: RouterConfig, metrics: RouterMetrics) -> None:
        self._config = config
        self._metrics = metrics
        self._streams: set[EventStream] = set()
        self._fresh: list[EventStream] = []
        """Streams with new data since the last flush."""
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._streams)

    def start(self) -> None:
        """Begin to look after streams."""
        self._task = asyncio.get_running_loop().create_task(self._tick())

    async def close(self) -> None:
        """Stop looking after them."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def open(self, on_gone: Callable[[], None]) -> EventStream:
        """Make a stream; `on_gone` is called when its client has left or does not read."""
        return EventStream(self, self._config, on_gone)

    def add(self, stream: EventStream) -> None:
        """Look after a stream."""
        self._streams.add(stream)

    def remove(self, stream: EventStream) -> None:
        """Its client has all of it, or is gone."""
        self._streams.discard(stream)

    def has(self, stream: EventStream) -> bool:
        """Whether a stream is still open."""
        return stream in self._streams

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

    def count_slow(self) -> None:
        """Count a client that did not read."""
        self._metrics.slow_clients.inc()

    def count_gone(self) -> None:
        """Count a client that left."""
        self._metrics.client_disconnects.inc()

    async def _tick(self) -> None:
        keep_alive_s, slow_s = self._config.keep_alive_s, self._config.slow_client_s
        while True:
            await asyncio.sleep(max(min(1.0, keep_alive_s / 4, slow_s / 4), 0.02))
            now = time.monotonic()
            for stream in list(self._streams):
                stream.tick(now, keep_alive_s, slow_s)


class EventStream(Response):
    """One client's stream of server-sent events.

    Its task opens the answer, ends it, and waits where the client is slow. Between, `flush` writes straight from the
    event loop: waking the task, under a dozen frames of framework, would cost more than all else that a token costs.
    """

    def __init__(self, table: OpenStreams, config: RouterConfig, on_gone: Callable[[], None]) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", "content-type": _EVENTS})
        self._table = table
        self._limit = config.stream_buffer_nbytes
        self._on_gone = on_gone
        self._parts: list[bytes] = []
        self._nbytes = 0
        self._is_fresh = False
        self._has_begun = False
        self._is_closed = False
        self._is_gone = False
        self._early_error: BatonError | None = None
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
        if self._is_closed:
            return
        self._parts.append(data)
        self._nbytes += len(data)
        if self._nbytes > self._limit:
            self._end_slow()
        elif not self._is_fresh:
            self._is_fresh = True
            self._table.flush_soon(self)

    def close(self) -> None:
        """Nothing follows."""
        self._is_closed = True
        self._wake()

    def fail(self, error: BatonError) -> None:
        """End with an error: as an answer of its own if nothing was sent yet, else as the last event."""
        if self._is_closed:
            return
        if self._writer is None or not (self._has_begun or self._parts):
            self._early_error = error
        else:
            self.push(error_event(error_of(error)))
        self.close()

    # -- for the table ------------------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Write what waits, if that needs no waiting; else leave it to the task."""
        self._is_fresh = False
        server = self._server
        if server is None or self._is_closed or not self._parts:
            self._wake()
            return
        if server.flow.write_paused or server.disconnected:
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
        elif not self._is_closed and not self._parts and now - self._last_data_at > keep_alive_s:
            self.push(KEEP_ALIVE)

    # -- the connection -----------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream to its end."""
        self._writer = asyncio.current_task()
        self._table.add(self)
        watch = asyncio.get_running_loop().create_task(self._watch(receive))
        try:
            self._raw_send = scope.get("baton.send", send)
            await self._serve(send, self._raw_send)
        except asyncio.CancelledError:
            if not self._is_gone:
                raise
        finally:
            watch.cancel()
            self._server = None
            self._table.remove(self)
            if not self._is_closed:  # the server is ending, or the connection broke under a write
                self._is_closed = True
                self._on_gone()

    async def _serve(self, send: Send, send_body: Send) -> None:
        while not (self._parts or self._is_closed):
            await self._wait()
        if self._early_error is not None:
            await _send_error(send, self._early_error, self.raw_headers)
            return
        if self._is_gone:
            return
        self._has_begun = True
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        server = _known_server(send_body)
        while not self._is_gone:
            if self._parts:
                self._server = None
                self._write_began_at = time.monotonic()
                await send_body({"type": "http.response.body", "body": self._take_parts(), "more_body": True})
                self._last_data_at, self._write_began_at = time.monotonic(), 0.0
            elif self._is_closed:
                await send_body({"type": "http.response.body", "body": b"", "more_body": False})
                return
            else:
                self._server = server
                await self._wait()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _take_parts(self) -> bytes:
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._nbytes = 0
        return data

    async def _watch(self, receive: Receive) -> None:
        """See the client leave."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        if not self._is_closed:
            self._table.count_gone()
            self._is_closed = True
            self._on_gone()
        self._wake()
        # a write that waits for a client that is gone would wait for ever
        if self._write_began_at and self._writer is not None:
            self._writer.cancel()

    def _end_slow(self) -> None:
        """Drop what waits, say why, and leave after a short grace."""
        if not self._is_closed:
            self._table.count_slow()
            error = error_object(
                "The client did not read its stream in time, so it was ended. Read faster, or ask without stream.",
                408,
                code="slow_client",
            )
            self._parts = [error_event(error)]
            self._is_closed = True
            self._on_gone()
            asyncio.get_running_loop().call_later(_GRACE_S, self._abort)
        self._wake()

    def _abort(self) -> None:
        """Leave a client that has not even read its last words."""
        if self._table.has(self) and self._writer is not None:
            self._is_gone = True
            self._writer.cancel()
            # closing would wait for the client to read what is in the connection's buffer
            transport = getattr(getattr(self._raw_send, "__self__", None), "transport", None)
            if transport is not None:
                transport.abort()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def _known_server(send: Send) -> Any:
    """Give uvicorn's side of a request whose answer goes out in chunks; None for a server that we do not know."""
    server: Any = getattr(send, "__self__", None)
    is_known = type(server).__module__ == "uvicorn.protocols.http.httptools_impl"
    return server if is_known and server.chunked_encoding else None


async def _send_error(send: Send, error: BatonError, headers: Iterable[tuple[bytes, bytes]]) -> None:
    body = orjson.dumps(error_of(error))
    kept = [(k, v) for k, v in headers if k not in (b"content-type", b"cache-control", b"content-length")]
    kept += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.retryable:
        kept.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": error.status, "headers": kept})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class Answer:
    """All prompts of one HTTP request: it ends when the last of them does, and fails as one."""

    def __init__(self, num_prompts: int) -> None:
        self.running: list[Running] = []
        self.num_open = num_prompts
        self.hides_tokens = False
        """The client asked for the prompts only: what was generated is not counted."""

    def cancel(self) -> None:
        """Nobody waits any more."""
        for running in self.running:
            running.cancel()

    def usage(self) -> dict[str, object]:
        """The OpenAI usage object of all of it, so far."""
        usages = [running.job.usage for running in self.running]
        prompt = sum(usage.num_prompt for usage in usages)
        completion = 0 if self.hides_tokens else sum(usage.num_completion for usage in usages)
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": sum(usage.num_cached for usage in usages)},
        }


class StreamSink:
    """A flow's tokens as chunks on a stream."""

    __slots__ = (
        "_answer",
        "_begun",
        "_chunks",
        "_offset",
        "_shows_every_token",
        "_stream",
        "_tools",
        "_with_logprobs",
        "_with_usage",
        "before",
        "hides_tokens",
    )

    def __init__(
        self,
        stream: EventStream,
        chunks: ChatChunks | CompletionChunks,
        answer: Answer,
        *,
        offset: int,
        with_logprobs: bool,
        shows_every_token: bool,
        with_usage: bool,
    ) -> None:
        self.before: Callable[[int, Token], bytes] | None = None
        """Gives what stands before a choice's first text: the echoed prompt."""
        self.hides_tokens = False
        self._stream = stream
        self._chunks = chunks
        self._answer = answer
        self._offset = offset
        self._with_logprobs = with_logprobs
        self._with_usage = with_usage
        self._shows_every_token = with_logprobs or shows_every_token
        self._begun: set[int] = set()
        self._tools: dict[int, ToolCallParser] | None = None

    def parse_tools(self) -> None:
        """Give tool calls as such, not as text."""
        self._tools = {}

    def push(
        self, choice: int, text: str, token: Token, finish_reason: str | None, stop_reason: int | str | None
    ) -> None:
        index = self._offset + choice
        if choice not in self._begun:
            self._begun.add(choice)
            head = self._chunks.first(index)
            if self.before is not None:
                head += self.before(index, token)
            if head:
                self._stream.push(head)
        if self._tools is not None:
            text, finish_reason = self._take_tools(index, text, finish_reason)
        if (text or self._shows_every_token) and not self.hides_tokens:
            logprobs = token.logprobs if self._with_logprobs else None
            self._stream.push(self._chunks.piece(index, text, logprobs, token.token_id))
        if finish_reason is not None:
            if self.hides_tokens:
                finish_reason = "length"
            self._stream.push(self._chunks.finish(index, finish_reason, stop_reason))

    def end(self, _usage: Usage) -> None:
        self._answer.num_open -= 1
        if self._answer.num_open == 0:
            if self._with_usage:
                self._stream.push(self._chunks.usage(self._answer.usage()))
            self._stream.push(DONE)
            self._stream.close()

    def fail(self, error: BatonError) -> None:
        self._stream.fail(error)
        self._answer.cancel()

    def _take_tools(self, index: int, text: str, finish_reason: str | None) -> tuple[str, str | None]:
        """Write finished calls; give the text that is none, and how the choice ends."""
        assert self._tools is not None
        assert isinstance(self._chunks, ChatChunks)
        parser = self._tools.setdefault(index, ToolCallParser())
        parts = parser.push(text) if text else []
        if finish_reason is not None:
            parts += parser.flush()
        number = parser.num_calls - sum(isinstance(part, ToolCall) for part in parts)
        rest = ""
        for part in parts:
            if isinstance(part, str):
                rest += part
            else:
                self._stream.push(self._chunks.delta(index, {"tool_calls": [part.as_message(number)]}))
                number += 1
        if parser.num_calls and not rest.strip():
            rest = ""  # white space between calls is nobody's text
        if finish_reason == "stop" and parser.num_calls:
            finish_reason = "tool_calls"
        return rest, finish_reason


class Collected:
    """One choice of a unary answer."""

    __slots__ = ("finish_reason", "logprobs", "parts", "stop_reason", "token_ids")

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs | None] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None


class CollectSink:
    """A flow's tokens, kept until the whole answer is there."""

    def __init__(self, answer: Answer, done: asyncio.Future[None], n: int) -> None:
        self.choices = [Collected() for _ in range(n)]
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self._answer = answer
        self._done = done

    def push(
        self, choice: int, text: str, token: Token, finish_reason: str | None, stop_reason: int | str | None
    ) -> None:
        collected = self.choices[choice]
        if text:
            collected.parts.append(text)
        collected.token_ids.append(token.token_id)
        collected.logprobs.append(token.logprobs)
        if token.prompt_logprobs is not None:
            self.prompt_logprobs = token.prompt_logprobs
        if finish_reason is not None:
            collected.finish_reason, collected.stop_reason = finish_reason, stop_reason

    def end(self, _usage: Usage) -> None:
        self._answer.num_open -= 1
        if self._answer.num_open == 0 and not self._done.done():
            self._done.set_result(None)

    def fail(self, error: BatonError) -> None:
        if not self._done.done():
            self._done.set_exception(error)
        self._answer.cancel()
