"""One request to an OpenAI-compatible server, its stream read as raw bytes: the client must cost less than what it measures.

A connection a request, as new users have; no proxy is asked. An event of an answer is told by how it begins, and parsed only
where ids, usage or an error are wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import orjson

_CHOICE = b'"choices":[{', b'"choices": [{'
_USAGE = b'"usage":{', b'"usage": {'


@dataclass(slots=True)
class Outcome:
    """What a client saw of one request."""

    sent_s: float = 0.0
    """Since the load began."""
    late_s: float = 0.0
    """How much later it was sent than it should have been."""
    first_s: float = math.nan
    gaps_s: list[float] = field(default_factory=list)
    """Between tokens: 0 between two that came in one event."""
    total_s: float = math.nan
    input_len: int = 0
    output_len: int = 0
    """Tokens asked for."""
    num_tokens: int = 0
    """Tokens that came."""
    num_events: int = 0
    num_prompt: int | None = None
    """Prompt tokens as the server counts them; None: it does not say."""
    num_cached: int | None = None
    """Of these, in its prefix cache."""
    turn: int = 0
    token_ids: list[int] = field(default_factory=list)
    """Of the answer, where they were asked for."""
    error: str | None = None


class Endpoint:
    """Where completions are asked for."""

    def __init__(self, url: str, api_key: str | None) -> None:
        parts = urlsplit(url.rstrip("/").removesuffix("/v1"))
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        key = f"authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = (
            f"POST {parts.path}/v1/completions HTTP/1.1\r\nhost: {parts.netloc.rpartition('@')[2]}\r\n{key}"
            "accept: text/event-stream\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: "
        ).encode()

    async def ask(self, body: dict[str, Any], outcome: Outcome, *, timeout_s: float = 600.0) -> None:
        """Send one request, and write down what comes and when."""
        text = orjson.dumps(body)
        loop = asyncio.get_running_loop()
        stream = _Stream(self._head + b"%d\r\n\r\n%b" % (len(text), text), loop.create_future())
        stream.with_ids = bool(body.get("return_token_ids"))
        sent_at, transport = time.perf_counter(), None
        try:
            async with asyncio.timeout(timeout_s):
                transport, _ = await loop.create_connection(lambda: stream, self._host, self._port, ssl=self._ssl)
                await stream.over
        except TimeoutError:
            stream.error = f"no end within {timeout_s:g} s"
        except OSError as error:
            stream.error = repr(error)
        finally:
            if transport is not None:
                transport.abort()
        stream.tell(outcome, sent_at)


class _Stream(asyncio.Protocol):
    def __init__(self, request: bytes, over: asyncio.Future[None]) -> None:
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._now = 0.0
        self._is_done = False
        self._usage: dict[str, Any] = {}
        self._times: list[float] = []
        self._ids: list[int] = []
        self.with_ids = False
        self.over = over
        self.error: str | None = None

    # -- of the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"not HTTP: {error}")

    def connection_lost(self, _error: Exception | None) -> None:
        self._end(None if self._is_done else "the connection ended before the answer")

    # -- of the answer

    def on_body(self, body: bytes) -> None:
        *lines, self._rest = (self._rest + body).split(b"\n")
        if self._parser.get_status_code() != 200:
            self._rest = b"\n".join((*lines, self._rest))
            return
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:])

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        self._end(None if status == 200 else f"{status}: {self._rest[:300].decode(errors='replace')}")

    def _take(self, event: bytes) -> None:
        if _CHOICE[0] in event or _CHOICE[1] in event:
            self._times.append(self._now)
            if self.with_ids:
                for choice in orjson.loads(event)["choices"]:
                    self._ids += choice.get("token_ids") or ()
        elif event.strip() == b"[DONE]":
            self._is_done = True
        elif b'"error"' in event:
            with contextlib.suppress(ValueError):
                self.error = str(orjson.loads(event).get("error"))
        if _USAGE[0] in event or _USAGE[1] in event:
            self._usage = orjson.loads(event)["usage"]

    def _end(self, error: str | None) -> None:
        if not self.over.done():
            self.error = self.error or error
            self.over.set_result(None)

    def tell(self, outcome: Outcome, sent_at: float) -> None:
        """Write down what came."""
        outcome.num_tokens = self._usage.get("completion_tokens", len(self._times))
        outcome.num_prompt = self._usage.get("prompt_tokens")
        outcome.num_cached = (self._usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        outcome.token_ids, outcome.error = self._ids, self.error
        times = self._times[: outcome.num_tokens]  # some servers end with an event that has no token
        outcome.num_events = len(times)
        outcome.total_s = self._now - sent_at
        if times:
            outcome.first_s = times[0] - sent_at
            outcome.gaps_s = [later - earlier for earlier, later in pairwise(times)]
            outcome.gaps_s += [0.0] * (outcome.num_tokens - len(times))
