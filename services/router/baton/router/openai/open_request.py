"""OpenRequest: one HTTP request's prompts on their way: checked, begun and cancelled together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from baton.errors import InvalidRequest, Unavailable
from baton.messages import ModelFacts, Token
from baton.prompt import Prompt
from baton.protocol import SamplingParams, check_answer_len, check_prompt
from baton.requests.chat import ChatRequest
from baton.requests.completions import CompletionRequest
from baton.router.auth import salt_of
from baton.router.flow import Flow
from baton.router.generation import Generation, hash_prompt
from baton.router.http_request import Caller
from baton.router.openai.parts import AnswerParser, AnswerParts, Shown
from baton.router.router_state import RouterState
from baton.router.sink import ChoiceText, Sink, Usage
from baton.text import AnswerText, bad_words_ids

_INLINE_TOKENS = 4096
"""Prompts up to here are hashed on the loop: a fifth of a millisecond."""


class Tally:
    """Counts tokens, and prompts whose answers have not ended."""

    def __init__(self, num_prompt: int, num_open: int, *, hides_completion: bool) -> None:
        self._num_prompt = num_prompt
        """Tokens of all prompts."""
        self._num_open = num_open
        self._hides_completion = hides_completion
        self._num_cached = 0
        self._num_completion = 0

    def begin(self, token: Token, prompt_len: int) -> None:
        """Count what a prompt found in caches, which its first token tells."""
        self._num_cached += min(token.num_cached, prompt_len)

    def count(self) -> None:
        """Count one token."""
        self._num_completion += 1

    def end(self, usage: Usage) -> bool:
        """Count a prompt whose answer has ended; whether all have."""
        self._num_cached += usage.num_cached
        self._num_completion += usage.num_completion
        self._num_open -= 1
        return self._num_open == 0

    def usage(self) -> dict[str, object]:
        """Return OpenAI's usage object."""
        completion = 0 if self._hides_completion else self._num_completion
        return {
            "prompt_tokens": self._num_prompt,
            "total_tokens": self._num_prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": self._num_cached},
        }


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
        """Check prompts and parameters against the model.

        Raises:
            InvalidRequest: the model cannot do it, or its context does not hold it.
            Unavailable: no worker has come yet.
        """
        facts = router.dispatcher.last_facts  # those of all workers are alike, but for the parts of their hash chains
        if facts is None:
            raise Unavailable("No decode worker is ready. Try again in a few seconds.")
        defaults = {name: v for name, v in router.sampling_defaults.items() if getattr(request, name) is None}
        if defaults:
            params = params.replace(**defaults)
        if params.bad_words:
            params = params.replace(bad_words_ids=bad_words_ids(router.tokenizer, params.bad_words))
        params.check_vocab(facts.vocab_size, facts.eos_token_ids)
        _check_lengths(prompts, params, facts, request)
        router.config.limits.check_scores(params, sum(map(len, prompts)))
        limit_s = router.config.request_timeout_s
        deadline = time.time() + min(caller.timeout_s or limit_s, limit_s)
        salt = salt_of(caller.tenant, request.cache_salt)
        self.generations = [
            Generation(prompt, params, salt, request.priority or 0, deadline, caller.public_id) for prompt in prompts
        ]
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Set when a whole answer is there."""
        self.tally = Tally(sum(map(len, prompts)), len(prompts), hides_completion=request.max_tokens == 0)
        self._router = router
        self._block_size = facts.block_size
        self._explains = caller.explain
        self._running = caller.running

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
                texts = [self._text(generation, new_parser) for _ in range(generation.params.n)]
                self._running.append(self._router.dispatcher.start(Flow(generation, texts, sink)))
        except BaseException:
            self.cancel()
            raise
        return self._route_headers() if self._explains else {}

    async def wait(self, http: Request) -> None:
        """Wait until the sinks have the whole answer, or the client has left and needs none."""
        left = asyncio.get_running_loop().create_task(_left(http))
        try:
            await asyncio.wait((self.done, left), return_when=asyncio.FIRST_COMPLETED)
            if not self.done.done():
                self._router.metrics.client_disconnects.inc()
                raise HTTPException(499, "The client has left.")  # nobody reads it
            self.done.result()
        except BaseException:
            self.cancel()
            raise
        finally:
            left.cancel()

    def _text(self, generation: Generation, new_parser: Callable[[], AnswerParser] | None) -> ChoiceText[Shown]:
        parser = None if new_parser is None else new_parser()
        marks = () if parser is None else parser.marks
        text = AnswerText(self._router.tokenizer, generation.prompt.token_ids, generation.params, marks)
        return text if parser is None else AnswerParts(text, parser)

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


async def _left(http: Request) -> None:
    """Return when the client has left."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _check_lengths(
    prompts: Sequence[Prompt], params: SamplingParams, facts: ModelFacts, request: ChatRequest | CompletionRequest
) -> None:
    """Refuse prompts, or prompts with their answers, that the context does not hold."""
    says_completion = getattr(request, "max_completion_tokens", None) is not None
    field = "max_completion_tokens" if says_completion else "max_tokens"
    for index, prompt in enumerate(prompts):
        try:
            check_prompt(prompt, facts.vocab_size, facts.max_model_len)
            check_answer_len(prompt, params, facts.max_model_len, max_tokens_field=field)
        except InvalidRequest as error:
            raise (error if len(prompts) == 1 else error.of(f"prompt {index}")) from None
