"""A client that records: every token of an answer with its log-probability, when it came, and which way it went.

What `baton verify` and `baton chaos` look at a server with. It asks for completions of token ids, as streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from baton.errors import ConfigError
from baton.own_http import client_of

MOST_TRIES = 30
"""For a question that a busy server refuses: all are asked at once, which a slow one cannot take."""
NUM_LOGPROBS = 3
"""Likeliest tokens that are asked for beside each."""


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt, and how its answer is sampled."""

    prompt: Sequence[int]
    settings: Mapping[str, Any]
    """Fields of a request, which are those of `SamplingParams` too."""

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken at each position."""
        return bool(self.settings["temperature"] == 0)


@dataclass(slots=True)
class Answer:
    """One stream as it came, or what is compared with one."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    leads: list[float] = field(default_factory=list)
    """By how much the likeliest token leads the next, at each position."""
    finish_reason: str | None = None
    num_cached: int = 0
    """Tokens of the prompt that were not computed."""
    route: str = ""
    """As x-baton-route tells it."""
    request_id: str = ""
    error: str | None = None
    is_cut: bool = False
    """Whether the error is that the connection was refused or ended early."""
    longest_pause_s: float = 0.0
    """Between two events, the request counted as one."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running stack."""

    client: httpx.AsyncClient
    model: str
    max_model_len: int

    async def read(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Read what a route tells, asked with a body or without.

        Raises:
            ConfigError: it is not told to us.
        """
        url = self.client.base_url.join(path)
        try:
            response = await (self.client.get(path) if body is None else self.client.post(path, json=body))
            if response.is_error:
                raise ConfigError(f"{url}: {response.status_code}: {_message(response.content)}")
            return response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise ConfigError(f"{url}: no server answers there ({error!r}). Start one with `baton up`.") from None

    async def text(self, path: str) -> str:
        """Read a route's text, as that of /metrics.

        Raises:
            ConfigError: nobody answers.
        """
        try:
            return (await self.client.get(path)).raise_for_status().text
        except httpx.HTTPError as error:
            raise ConfigError(f"{self.client.base_url.join(path)}: no server answers there ({error!r}).") from None

    async def ask(
        self,
        question: Question,
        headers: Mapping[str, str],
        salt: str,
        on_token: Callable[[Answer], None] | None = None,
    ) -> Answer:
        """Record one answer; a failure is one more thing to record. Who is told to come again later does."""
        answer = Answer(request_id=uuid.uuid4().hex)
        body = {
            **question.settings,
            "model": self.model,
            "prompt": question.prompt,
            "logprobs": NUM_LOGPROBS,
            "cache_salt": salt,
            "return_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {**headers, "x-baton-explain": "1", "x-request-id": answer.request_id}
        tries_left = MOST_TRIES
        try:
            while tries_left:
                tries_left -= 1
                async with self.client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
                    if response.status_code == 429 and tries_left:
                        await asyncio.sleep(float(response.headers.get("retry-after", "1")))
                        continue
                    if response.is_error:
                        answer.error = f"{response.status_code}: {_message(await response.aread())}"
                        return answer
                    answer.route = response.headers.get("x-baton-route", "")
                    await _read(response, answer, on_token)
                    break
        except httpx.HTTPError as error:
            answer.error, answer.is_cut = repr(error), isinstance(error, httpx.TransportError)
        if answer.error is None and answer.finish_reason is None:
            answer.error = "the stream ended before its answer"
        return answer


@contextlib.asynccontextmanager
async def connected(url: str, api_key: str | None, timeout_s: float = 600.0) -> AsyncIterator[Server]:
    """Find out what a server serves, and close the connections in the end.

    Raises:
        ConfigError: nobody answers there, or not to us.
    """
    base = url.rstrip("/").removesuffix("/v1")
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(max_connections=None)
    options = {"base_url": base, "headers": headers, "limits": limits, "timeout": timeout_s}
    async with client_of(httpx.AsyncClient, url, **options) as client:
        card = (await Server(client, "", 0).read("/v1/models"))["data"][0]
        yield Server(client, str(card["id"]), card["max_model_len"] or 2048)


async def _read(response: httpx.Response, answer: Answer, on_token: Callable[[Answer], None] | None) -> None:
    last_at = time.monotonic()
    async for line in response.aiter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        now = time.monotonic()
        answer.longest_pause_s, last_at = max(answer.longest_pause_s, now - last_at), now
        event = json.loads(line[6:])
        if "error" in event:
            answer.error = f"{event['error'].get('code')}: {event['error'].get('message')}"
            return
        if usage := event.get("usage"):
            answer.num_cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        for choice in event["choices"]:
            _take(choice, answer)
            if on_token is not None:
                on_token(answer)


def _take(choice: Mapping[str, Any], answer: Answer) -> None:
    answer.token_ids += choice.get("token_ids") or ()
    answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    table = choice.get("logprobs") or {}
    answer.logprobs += table.get("token_logprobs") or ()
    for row in table.get("top_logprobs") or ():
        answer.leads.append(lead_of(row.values()))


def lead_of(logprobs: Any) -> float:
    """By how much the likeliest leads the next; where there is no next, by anything."""
    ranked = sorted(logprobs, reverse=True)
    return float(ranked[0] - ranked[1]) if len(ranked) > 1 else float("inf")


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return body[:200].decode(errors="replace")
