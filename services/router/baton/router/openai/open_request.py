"""OpenRequest: one HTTP request's prompts on their way: checked, begun and cancelled together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from baton.errors import refuse
from baton.messages import Token
from baton.metrics import RouterMetrics
from baton.prompt import Prompt
from baton.protocol import SamplingParams
from baton.requests.beams import beams_of
from baton.requests.chat import ChatRequest
from baton.requests.completions import CompletionRequest
from baton.router.auth import salt_of
from baton.router.beam_flow import BeamFlow
from baton.router.flow import Flow, flow_of
from baton.router.generation import Generation, hash_prompt
from baton.router.http_request import Caller
from baton.router.openai.model_checks import facts_of
from baton.router.openai.parts import AnswerParser, AnswerParts, Shown
from baton.router.router_state import RouterState
from baton.router.sink import ChoiceText, Sink, Usage
from baton.text import AnswerText

_INLINE_TOKENS = 4096
"""Prompts up to here are hashed on the loop: a fifth of a millisecond."""


class Tally:
    """Counts tokens, and prompts whose answers have not ended."""

    def __init__(self, num_prompt: int, num_open: int, *, hides_completion: bool) -> None:
        self._num_prompt = num_prompt
        """Tokens of all prompts."""
        self._num_open = num_open
        self._hides_completion = hides_completion
        self._num_cached = self._num_restored = 0
        self._num_completion = 0
        self.parsed: list[AnswerParts] = []
        """Answers in which thoughts are told apart."""

    def begin(self, token: Token, prompt_len: int) -> None:
        """Count what a prompt found in caches, which its first token tells."""
        num_cached = min(token.num_cached, prompt_len)
        self._num_cached += num_cached
        self._num_restored += min(token.num_restored, num_cached)

    def count(self) -> None:
        """Count one token."""
        self._num_completion += 1

    def end(self, usage: Usage) -> bool:
        """Count a prompt whose answer has ended; whether all have."""
        self._num_cached += usage.num_cached
        self._num_restored += usage.num_restored
        self._num_completion += usage.num_completion
        self._num_open -= 1
        return self._num_open == 0

    def usage(self) -> dict[str, object]:
        """Return OpenAI's usage object, with what was cached by where it lay: in a worker's device, or its host."""
        device = self._num_cached - self._num_restored
        completion = 0 if self._hides_completion else self._num_completion
        usage: dict[str, object] = {
            "prompt_tokens": self._num_prompt,
            "total_tokens": self._num_prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": {
                "cached_tokens": self._num_cached,
                "cached_tokens_by_tier": {"device": device, "host": self._num_restored},
            },
        }
        if self.parsed:
            reasoning = sum(answer.num_reasoning for answer in self.parsed)
            usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
        return usage


@contextlib.contextmanager
def reading(router: RouterState, params: SamplingParams, caller: Caller) -> Iterator[None]:
    """Have a request's prompt rendered and tokenized inside, if there is one that could make it welcome.

    Raises:
        QueueFull: as `OpenRequest.start` would.
    """
    if caller.pin is not None:
        yield
        return
    share = router.tenants.of(caller.tenant).share
    router.dispatcher.check_busy(params, caller.tenant, share, router.text.wait_s)
    router.dispatcher.reading.add(share, params.n)
    try:
        yield
    finally:
        router.dispatcher.reading.add(share, -params.n)


class OpenRequest:
    """What chat and completions do alike."""

    def __init__(
        self,
        router: RouterState,
        request: ChatRequest | CompletionRequest,
        params: SamplingParams,
        prompts: Sequence[Prompt],
        caller: Caller,
    ) -> None:
        """Take what `check_with_model` has let pass.

        Raises:
            InvalidRequest: its key may not give this priority.
        """
        limit_s = router.config.request_timeout_s
        deadline = time.monotonic() + min(caller.timeout_s or limit_s, limit_s)
        salt = salt_of(caller.tenant, request.cache_salt)
        tenant, priority = caller.tenant, caller.priority(request.priority)
        router.tenants.check_priority(tenant, priority)
        share, facts = router.tenants.of(tenant).share, facts_of(router)
        self.generations = [
            Generation(
                *(prompt, params, salt, priority, deadline, caller.public_id, 0, caller.pin, tenant, share),
                beams_of(request, params, facts.max_model_len - len(prompt)),
            )
            for prompt in prompts
        ]
        if request.use_beam_search and 2 * params.n > facts.vocab_size:
            raise refuse("n", params.n, f"this model has {facts.vocab_size} tokens, half of which may be beams")
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Set when a whole answer is there."""
        self.tally = Tally(sum(map(len, prompts)), len(prompts), hides_completion=request.max_tokens == 0)
        self._shows_reasoning = not isinstance(request, ChatRequest) or request.include_reasoning is not False
        self._router = router
        self._block_size = facts.block_size
        self._eos_token_ids = facts.eos_token_ids
        self._explains = caller.explain
        self._running = caller.running

    @property
    def flows(self) -> list[Flow[Any]]:
        """One a prompt, in order, as far as they were begun."""
        return [running.flow for running in self._running]

    def cancel(self) -> None:
        """Nobody waits any more."""
        for running in self._running:
            running.cancel()

    async def start(
        self, sinks: Sequence[Sink[Any]], new_parser: Callable[[], AnswerParser] | None = None
    ) -> dict[str, str]:
        """Send all prompts on their way, or none; return headers with the route, for those who asked for it."""
        try:
            for generation, sink in zip(self.generations, sinks, strict=True):
                if len(generation.prompt) > _INLINE_TOKENS:
                    await self._hash_aside(generation)
                self._running.append(self._router.dispatcher.start(self._flow(generation, sink, new_parser)))
        except BaseException:
            self.cancel()
            raise
        return self._route_headers() if self._explains else {}

    def _flow(
        self, generation: Generation, sink: Sink[Any], new_parser: Callable[[], AnswerParser] | None
    ) -> Flow[Any]:
        if generation.beams is not None:
            return BeamFlow(generation, generation.beams, sink, self._eos_token_ids)
        return flow_of(generation, self.texts(generation, new_parser), sink)

    async def wait(self, http: Request) -> None:
        """Wait until the sinks have the whole answer, or the client has left and needs none."""
        try:
            await unless_left(http, self.done, self._router.metrics)
        except BaseException:
            self.cancel()
            raise

    def texts(self, generation: Generation, new_parser: Callable[[], AnswerParser] | None) -> list[ChoiceText[Shown]]:
        """Make the texts of a prompt's choices."""
        params, tokenizer = generation.params, self._router.tokenizer
        parsers = [None if new_parser is None else new_parser() for _ in range(params.n)]
        marks = () if parsers[0] is None else parsers[0].marks
        end = tokenizer.visible_end(
            generation.prompt.token_ids, skip_special_tokens=params.skip_special_tokens, shown=marks
        )
        texts: list[ChoiceText[Shown]] = []
        for parser in parsers:
            text = AnswerText(tokenizer, end, params, marks)
            if parser is not None:
                parts = AnswerParts(text, parser, shows_reasoning=self._shows_reasoning)
                self.tally.parsed.append(parts)
            texts.append(text if parser is None else parts)
        return texts

    async def _hash_aside(self, generation: Generation) -> None:
        """Hash a long prompt's blocks in a thread."""
        router = self._router
        for parts in router.pool.cache_parts():
            args = (generation, parts, router.config.cache_key, self._block_size)
            generation.hashes[parts] = await router.text.run(hash_prompt, *args)

    def _route_headers(self) -> dict[str, str]:
        """Describe the route of the first prompt."""
        decision = self._running[0].decision
        if decision is None:
            return {}
        chosen = decision.chosen
        parts = [f"path={chosen.path}", f"decode={chosen.decode}"]
        if chosen.prefill is not None:
            parts.append(f"prefill={chosen.prefill}")
        parts.append(f"cost_ms={chosen.cost_ms:.3f}")
        parts += [f"{name}={value:.3f}" for name, value in chosen.terms.items()]
        return {"x-baton-route": "; ".join(parts)}


async def unless_left(http: Request, done: asyncio.Future[None], metrics: RouterMetrics) -> None:
    """Wait until something is done, or the client has left; that counts, and ends it.

    Raises:
        HTTPException: the client has left; nobody reads it.
    """
    left = asyncio.get_running_loop().create_task(_left(http))
    try:
        await asyncio.wait((done, left), return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            metrics.client_disconnects.inc()
            raise HTTPException(499, "The client has left.")
        done.result()
    finally:
        left.cancel()
        done.cancel()


async def _left(http: Request) -> None:
    """Return when the client has left."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
