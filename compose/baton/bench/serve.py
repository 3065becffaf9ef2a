"""`baton bench serve`: an open loop of requests against an OpenAI-compatible server, with the measures of `vllm bench serve`.

Requests leave at their times whether or not earlier ones have been answered (Poisson arrivals, or a trace's own times), so a
server that falls behind is seen to; `max_concurrency` closes the loop. Every answer is streamed and counted: a request whose
tokens are not exactly those asked for is a failure, and one failure makes the command end with 1. No torch here.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from baton.bench.completion_stream import Endpoint, Outcome
from baton.bench.goodput import Targets
from baton.bench.loads import Arrival, Load
from baton.bench.router_view import RouterView
from baton.bench.serve_result import Client, Result
from baton.errors import ConfigError
from baton.own_http import client_of
from baton.progress import LongBar


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Whom to ask, and how."""

    url: str
    api_key: str | None = None
    model: str | None = None
    """None: the first that the server names."""
    max_concurrency: int | None = None
    """Most requests at once; None: as they come."""
    label: str = ""
    """What it is called in tables."""

    def client(self) -> httpx.AsyncClient:
        """Open connections to it, for what is not measured."""
        headers = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        url = self.url.rstrip("/").removesuffix("/v1")
        return client_of(httpx.AsyncClient, url, base_url=url, headers=headers, timeout=10.0)


@dataclass(frozen=True, slots=True)
class Served:
    """A server that has answered: its model, and how it is asked."""

    server: Server
    model: str
    max_len: int
    ignores_eos: bool = True
    """Whether it can be told to go on to the length asked for."""

    def body(self, prompt: list[int], output_len: int, *, with_ids: bool) -> dict[str, Any]:
        """Return what is sent."""
        options: dict[str, Any] = {"ignore_eos": True} if self.ignores_eos else {}
        if with_ids:
            options["return_token_ids"] = True
        return {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": output_len,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **options,
        }


async def find(server: Server) -> Served:
    """Ask a server which model it serves, its longest context, and for an answer of two tokens.

    Raises:
        ConfigError: nobody answers there, or not that model, or not to a prompt of token ids.
    """
    model, max_len = await served_model(server)
    refusal = ""
    for served in (Served(server, model, max_len), Served(server, model, max_len, ignores_eos=False)):
        outcome = Outcome()
        await Endpoint(server.url, server.api_key).ask(served.body([20, 21, 22], 2, with_ids=False), outcome)
        if outcome.error is None:
            return served
        refusal = refusal or outcome.error
        if not refusal.startswith(("400", "422")):
            break
    raise ConfigError(f"url={server.url!r} refuses a completion of three token ids: {refusal}")


async def served_model(server: Server) -> tuple[str, int]:
    """Ask a server which model it serves, and its longest context.

    Raises:
        ConfigError: nobody answers there, or not that model.
    """
    try:
        async with server.client() as client:
            answer = await client.get("/v1/models")
            cards: list[dict[str, Any]] = answer.raise_for_status().json()["data"]
            card = next(card for card in cards if server.model in (None, card["id"]))
    except StopIteration:
        names = ", ".join(card["id"] for card in cards)
        raise ConfigError(f"model={server.model!r} is not served at {server.url}. It has {names}.") from None
    except (httpx.HTTPError, LookupError, ValueError) as error:
        url = server.url
        raise ConfigError(f"url={url!r}: no server answers there ({error!r}). Start one with `baton up`.") from None
    return card["id"], card.get("max_model_len") or 4096


async def drive(served: Served, load: Load, targets: Sequence[Targets] = ()) -> Result:
    """Send every request at its time, with a bar of those that have ended."""
    run = _Run(served, load)
    async with served.server.client() as client:
        view = RouterView(client)
        await view.begin()
        with _no_pauses():
            await run.whole()
        meanwhile, transfers = await view.counted(), await view.transfers()
    seconds = run.ended_at - run.began_at - load.warm_up_s
    cost = Client(run.cpu_s, run.num_tokens, max((outcome.late_s for outcome in run.outcomes), default=0.0))
    return Result(load, run.outcomes, max(seconds, 1e-9), cost, targets, meanwhile, transfers)


class _Run:
    """One load on its way."""

    def __init__(self, served: Served, load: Load) -> None:
        self._served = served
        self._endpoint = Endpoint(served.server.url, served.server.api_key)
        limit = served.server.max_concurrency
        self._gate = contextlib.nullcontext() if limit is None else asyncio.Semaphore(limit)
        self._load = load
        self.outcomes: list[Outcome] = []
        """Of what is counted, in the order in which it was sent."""
        self.began_at = self.ended_at = 0.0
        self.cpu_s = 0.0
        self.num_tokens = 0
        """Of all answers."""

    async def whole(self) -> None:
        load = self._load
        with LongBar(total=len(load.arrivals), desc=load.name, unit="request", leave=False) as bar:
            cpu_s, self.began_at = time.process_time(), time.perf_counter()

            async def whole(arrival: Arrival) -> None:
                await self._converse(arrival)
                bar.update()

            async with asyncio.TaskGroup() as tasks:
                for arrival in load.arrivals:
                    tasks.create_task(whole(arrival))
            self.cpu_s, self.ended_at = time.process_time() - cpu_s, time.perf_counter()
        self.outcomes.sort(key=lambda outcome: outcome.sent_s)

    async def _converse(self, arrival: Arrival) -> None:
        due_s, said, answer = arrival.at_s, list[int](), list[int]()
        for number, turn in enumerate(arrival.turns):
            due_s += turn.pause_s
            said = said + answer + turn.tokens
            with_ids = number + 1 < len(arrival.turns)
            outcome = Outcome(input_len=len(said), output_len=turn.output_len, turn=number)
            await asyncio.sleep(max(0.0, self.began_at + due_s - time.perf_counter()))
            outcome.late_s = time.perf_counter() - self.began_at - due_s
            async with self._gate:
                outcome.sent_s = time.perf_counter() - self.began_at
                await self._endpoint.ask(self._served.body(said, turn.output_len, with_ids=with_ids), outcome)
            self.num_tokens += outcome.num_tokens
            outcome.error = outcome.error or self._mistake(outcome, with_ids=with_ids)
            if arrival.at_s >= self._load.warm_up_s:
                self.outcomes.append(outcome)
            if outcome.error is not None:
                return
            due_s, answer, outcome.token_ids = time.perf_counter() - self.began_at, outcome.token_ids, []

    def _mistake(self, outcome: Outcome, *, with_ids: bool) -> str | None:
        """Say what an answer lacks."""
        num_tokens, num_asked = outcome.num_tokens, outcome.output_len
        if num_tokens != num_asked and (self._served.ignores_eos or not 0 < num_tokens < num_asked):
            return f"{num_tokens} tokens came, {num_asked} were asked for"
        if outcome.num_prompt not in (None, outcome.input_len):
            return f"the server counts {outcome.num_prompt} prompt tokens, {outcome.input_len} were sent"
        if with_ids and len(outcome.token_ids) != num_tokens:
            return "the server does not tell its answer's ids (return_token_ids), of which the next turn is made"
        return None


@contextlib.contextmanager
def _no_pauses() -> Iterator[None]:
    """Keep the garbage collector from walking over all outcomes so far, which a token would wait for."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
