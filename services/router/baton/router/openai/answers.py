"""From a checked request to its answer: prompts to flows, flows to a stream or a body."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from baton.errors import ContextTooLong, InvalidRequest, Unavailable
from baton.messages import ModelFacts, Token
from baton.protocol import SamplingParams, check_prompt
from baton.router.auth import salt_of
from baton.router.config import RouterConfig
from baton.router.dispatcher import Dispatcher
from baton.router.generation import Generation, hash_prompt
from baton.router.openai.chunks import (
    ChatChunks,
    CompletionChunks,
    chat_logprob,
    completion_logprobs,
    prompt_logprobs_table,
)
from baton.router.openai.requests import ChatRequest, CompletionRequest
from baton.router.openai.tools import parse_tool_calls
from baton.router.sink import Sink
from baton.router.sse import Answer, Collected, CollectSink, OpenStreams, StreamSink
from baton.router.text_pool import TextPool
from baton.text import AnswerText, bad_words_ids

_INLINE_TOKENS = 4096
"""Prompts up to here are hashed on the loop: a fifth of a millisecond."""


class UnknownModel(InvalidRequest):
    """The request names a model that is not served."""

    status = 404


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and under which conditions."""

    request_id: str
    tenant: bytes
    timeout_s: float | None
    explain: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    body: dict[str, Any]
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Pending:
    """An answer that is being collected: await `done`, then `make` it; `cancel` it when nobody waits."""

    done: asyncio.Future[None]
    make: Callable[[], Reply]
    cancel: Callable[[], None]


class Answers:
    """Serves completions and chats."""

    def __init__(self, config: RouterConfig, text: TextPool, dispatcher: Dispatcher, streams: OpenStreams) -> None:
        self._config = config
        self._text = text
        self._dispatcher = dispatcher
        self._streams = streams

    async def chat(self, request: ChatRequest, caller: Caller) -> Response | Pending:
        """Answer one conversation."""
        model = self.check_model(request.model)
        params = request.sampling_params()
        began = time.monotonic()
        prompt_ids = await self._text.render_chat(
            [message.for_template() for message in request.messages],
            tools=request.used_tools,
            **request.render_options(),
        )
        self._dispatcher.metrics.phase_seconds.observe("tokenize", time.monotonic() - began)
        generations = self._plan([prompt_ids], params, request, caller)
        if request.stream:
            chunks = ChatChunks(
                f"chatcmpl-{uuid.uuid4().hex}",
                int(time.time()),
                model,
                with_usage=request.include_usage,
                with_token_ids=bool(request.return_token_ids),
                token_text=self._text.token_text,
            )
            return await self._stream(request, generations, chunks, caller)
        return await self._collect(
            generations, caller, lambda sinks, answer: self._chat_body(request, model, generations[0], sinks[0], answer)
        )

    async def completion(self, request: CompletionRequest, caller: Caller) -> Response | Pending:
        """Answer one or more prompts."""
        model = self.check_model(request.model)
        params = request.sampling_params()
        began = time.monotonic()
        add = request.add_special_tokens is not False
        prompts = [
            await self._text.encode(prompt, add_special_tokens=add) if isinstance(prompt, str) else prompt
            for prompt in request.prompt
        ]
        self._dispatcher.metrics.phase_seconds.observe("tokenize", time.monotonic() - began)
        generations = self._plan(prompts, params, request, caller)
        if request.stream:
            chunks = CompletionChunks(
                f"cmpl-{uuid.uuid4().hex}",
                int(time.time()),
                model,
                with_usage=request.include_usage,
                with_token_ids=bool(request.return_token_ids),
                token_text=self._text.token_text,
            )
            return await self._stream(request, generations, chunks, caller)
        return await self._collect(
            generations, caller, lambda sinks, answer: self._completion_body(request, model, generations, sinks, answer)
        )

    def check_model(self, name: str | None) -> str:
        """Give the name to answer under.

        Raises:
            UnknownModel: no such model is served here.
        """
        names = self._config.model_names
        if name is None:
            return names[0]
        if name not in names:
            raise UnknownModel(
                f"model={name[:80]!r} is not valid: served here: {', '.join(names)}.",
                field="model",
                code="model_not_found",
            )
        return name

    # -- from prompts to flows ----------------------------------------------------------------------------

    def _plan(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        request: ChatRequest | CompletionRequest,
        caller: Caller,
    ) -> list[Generation]:
        """Check prompts and parameters against the model."""
        facts = self._dispatcher.pool.facts or self._dispatcher.last_facts
        if facts is None:
            raise Unavailable("No decode worker is ready. Try again in a few seconds.")
        if params.bad_words:
            params = params.replace(bad_words_ids=bad_words_ids(self._text.tokenizer, params.bad_words))
        params.check_vocab(facts.vocab_size, facts.eos_token_ids)
        limit_s = self._config.request_timeout_s
        deadline = time.time() + min(caller.timeout_s or limit_s, limit_s)
        salt = salt_of(caller.tenant, request.cache_salt)
        for index, prompt_ids in enumerate(prompts):
            try:
                _check_lengths(prompt_ids, params, facts)
            except InvalidRequest as error:
                if len(prompts) == 1:
                    raise
                raise type(error)(f"prompt {index}: {error}", field=error.field, code=error.code) from None
        return [
            Generation(prompt_ids, params, salt, request.priority or 0, deadline, caller.request_id)
            for prompt_ids in prompts
        ]

    async def _begin(self, generations: Sequence[Generation], sinks: Sequence[Sink[str]], answer: Answer) -> None:
        """Send all prompts on their way, or none."""
        try:
            for generation, sink in zip(generations, sinks, strict=True):
                if len(generation.prompt_ids) > _INLINE_TOKENS:
                    await self._hash_aside(generation)
                prompt_ids, params = generation.prompt_ids, generation.params
                texts = [AnswerText(self._text.tokenizer, prompt_ids, params) for _ in range(params.n)]
                answer.running.append(self._dispatcher.start(generation, texts, sink))
        except BaseException:
            answer.cancel()
            raise

    async def _hash_aside(self, generation: Generation) -> None:
        """Hash a long prompt's blocks in a thread."""
        pool = self._dispatcher.pool
        facts = pool.facts
        if facts is not None:
            for parts in pool.cache_parts():
                args = (generation, parts, self._config.cache_key, facts.block_size)
                generation.hashes[parts] = await self._text.run(hash_prompt, *args)

    async def _stream(
        self,
        request: ChatRequest | CompletionRequest,
        generations: Sequence[Generation],
        chunks: ChatChunks | CompletionChunks,
        caller: Caller,
    ) -> Response:
        answer = Answer(len(generations))
        stream = self._streams.open(answer.cancel)
        if request.continuous_usage:
            chunks.running_usage = answer.usage
        sinks = [
            StreamSink(
                stream,
                chunks,
                answer,
                offset=index * generation.params.n,
                with_logprobs=generation.params.logprobs is not None,
                shows_every_token=bool(request.return_token_ids),
                with_usage=request.include_usage,
            )
            for index, generation in enumerate(generations)
        ]
        if isinstance(request, CompletionRequest) and request.echo:
            assert isinstance(chunks, CompletionChunks)
            for sink, generation in zip(sinks, generations, strict=True):
                sink.before = self._echo(request, chunks, generation)
                sink.hides_tokens = request.answers_nothing
            answer.hides_tokens = request.answers_nothing
        if isinstance(request, ChatRequest) and request.used_tools:
            for sink in sinks:
                sink.parse_tools()
        await self._begin(generations, sinks, answer)
        stream.headers.update(self._route_headers(answer, caller))
        return stream

    async def _collect(
        self,
        generations: Sequence[Generation],
        caller: Caller,
        make_body: Callable[[list[CollectSink], Answer], dict[str, Any]],
    ) -> Pending:
        answer = Answer(len(generations))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sinks = [CollectSink(answer, done, generation.params.n) for generation in generations]
        await self._begin(generations, sinks, answer)

        def make() -> Reply:
            return Reply(make_body(sinks, answer), self._route_headers(answer, caller))

        return Pending(done, make, answer.cancel)

    def _route_headers(self, answer: Answer, caller: Caller) -> dict[str, str]:
        """Give the route of the first prompt, for those who asked for it."""
        decision = answer.running[0].decision
        if not caller.explain or decision is None:
            return {}
        chosen = decision.chosen
        parts = [f"path={chosen.path}", f"decode={chosen.decode}"]
        if chosen.prefill is not None:
            parts.append(f"prefill={chosen.prefill}")
        parts.append(f"cost_ms={chosen.cost_ms:.3f}")
        parts += [f"{name}={value:.3f}" for name, value in chosen.terms.items()]
        return {"x-baton-route": "; ".join(parts)}

    # -- bodies -------------------------------------------------------------------------------------------

    def _chat_body(
        self, request: ChatRequest, model: str, generation: Generation, sink: CollectSink, answer: Answer
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [self._chat_choice(request, i, choice) for i, choice in enumerate(sink.choices)],
            "usage": answer.usage(),
        }
        if request.prompt_logprobs is not None:
            body["prompt_logprobs"] = prompt_logprobs_table(sink.prompt_logprobs, self._text.token_text)
        if request.return_token_ids:
            body["prompt_token_ids"] = generation.prompt_ids
        return body

    def _chat_choice(self, request: ChatRequest, index: int, choice: Collected) -> dict[str, Any]:
        content: str | None = "".join(choice.parts)
        finish_reason = choice.finish_reason
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if request.used_tools:
            message["content"], calls = parse_tool_calls(content or "")
            if calls:
                message["tool_calls"] = [call.as_message() for call in calls]
                finish_reason = "tool_calls" if finish_reason == "stop" else finish_reason
        rows = [chat_logprob(row, self._text.token_text) for row in choice.logprobs if row is not None]
        entry: dict[str, Any] = {
            "index": index,
            "message": message,
            "logprobs": {"content": rows} if request.logprobs else None,
            "finish_reason": finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if request.return_token_ids:
            entry["token_ids"] = choice.token_ids
        return entry

    def _completion_body(
        self,
        request: CompletionRequest,
        model: str,
        generations: Sequence[Generation],
        sinks: Sequence[CollectSink],
        answer: Answer,
    ) -> dict[str, Any]:
        answer.hides_tokens = request.answers_nothing
        choices: list[dict[str, Any]] = []
        for generation, sink in zip(generations, sinks, strict=True):
            for choice in sink.choices:
                choices.append(self._completion_choice(request, len(choices), choice, generation, sink))
        return {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "choices": choices,
            "usage": answer.usage(),
        }

    def _completion_choice(
        self, request: CompletionRequest, index: int, choice: Collected, generation: Generation, sink: CollectSink
    ) -> dict[str, Any]:
        prompt_ids = generation.prompt_ids
        text, token_ids, rows = "".join(choice.parts), choice.token_ids, choice.logprobs
        if request.answers_nothing:
            text, token_ids, rows = "", [], []
        if request.echo:
            text = self._prompt_text(prompt_ids) + text
            token_ids = prompt_ids + token_ids
            rows = (sink.prompt_logprobs or [None] * len(prompt_ids)) + rows
        entry: dict[str, Any] = {
            "index": index,
            "text": text,
            "logprobs": None
            if request.logprobs is None
            else completion_logprobs(rows, self._text.token_text, 0, token_ids),
            "finish_reason": "length" if request.answers_nothing else choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if request.prompt_logprobs is not None:
            entry["prompt_logprobs"] = prompt_logprobs_table(sink.prompt_logprobs, self._text.token_text)
        if request.return_token_ids:
            entry["token_ids"], entry["prompt_token_ids"] = choice.token_ids, prompt_ids
        return entry

    def _echo(
        self, request: CompletionRequest, chunks: CompletionChunks, generation: Generation
    ) -> Callable[[int, Token], bytes]:
        """Make what writes the prompt before an answer; its scores come with choice 0's first token."""
        prompt_ids = generation.prompt_ids
        text = self._prompt_text(prompt_ids)
        table: dict[str, Any] | None = None

        def write(index: int, token: Token) -> bytes:
            nonlocal table
            if request.logprobs is not None and table is None and token.prompt_logprobs is not None:
                table = completion_logprobs(token.prompt_logprobs, self._text.token_text, 0, prompt_ids)
            return chunks.prompt(index, text, table, prompt_ids)

        return write

    def _prompt_text(self, prompt_ids: Sequence[int]) -> str:
        return self._text.tokenizer.decode(prompt_ids, skip_special_tokens=True)


def _check_lengths(prompt_ids: list[int], params: SamplingParams, facts: ModelFacts) -> None:
    """Refuse a prompt, or a prompt with its answer, that the context does not hold."""
    check_prompt(prompt_ids, facts.vocab_size, facts.max_model_len)
    wanted = len(prompt_ids) + (params.max_tokens or 1)
    if wanted > facts.max_model_len:
        raise ContextTooLong(
            f"max_tokens={params.max_tokens} is not valid: with the prompt's {len(prompt_ids)} tokens it makes {wanted}, "
            f"and the context is {facts.max_model_len} tokens. Lower max_tokens or shorten the prompt, or raise "
            f"--max-model-len if the model allows it.",
            field="max_tokens",
            code="context_length_exceeded",
        )
