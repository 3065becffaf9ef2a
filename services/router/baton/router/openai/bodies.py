"""An answer as one JSON body: a sink that keeps tokens and parts, and the bodies that are made of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from baton.errors import BatonError
from baton.messages import Token, TokenLogprobs
from baton.requests.chat import ChatRequest
from baton.requests.completions import CompletionRequest
from baton.router.openai.logprobs import (
    CompletionLogprobs,
    Echo,
    chat_logprob,
    completion_logprobs,
    prompt_logprobs_table,
)
from baton.router.openai.open_request import Tally
from baton.router.openai.parts import CallArguments, CallBegins, Part, Reasoning
from baton.router.sink import Usage
from baton.text import Tokenizer

_MESSAGE: dict[str, Any] = {
    "role": "assistant",
    **dict.fromkeys(("content", "refusal", "annotations", "audio", "function_call")),
}
BODY: dict[str, Any] = dict.fromkeys(("service_tier", "system_fingerprint", "kv_transfer_params"))
"""What every body has, as vLLM's have: clients look for keys without asking whether they are there."""


class Collected:
    """One choice of a whole answer."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs | None] = []
        self.finish_reason = ""
        self.stop_reason: int | str | None = None

    def add(self, part: Part) -> None:
        if isinstance(part, str):
            self.text.append(part)
        elif isinstance(part, CallBegins):
            function = {"name": part.name, "arguments": part.arguments}
            self.calls.append({"id": part.call_id, "type": "function", "function": function})
        elif isinstance(part, CallArguments):
            self.calls[part.index]["function"]["arguments"] += part.arguments
        else:
            (self.reasoning if isinstance(part, Reasoning) else self.refusal).append(part.text)

    def message(self) -> dict[str, Any]:
        """Return it as an assistant's message."""
        text = "".join(self.text)
        message = _MESSAGE | {
            "content": None if self.calls and not text.strip() else text,
            "refusal": "".join(self.refusal) or None,
            "tool_calls": self.calls,
            "reasoning": "".join(self.reasoning) or None,
        }
        if self.reasoning:
            message["reasoning_content"] = message["reasoning"]
        return message


class CollectSink:
    """A prompt's tokens, kept until the whole answer is there; `done` when that of every prompt is."""

    def __init__(self, n: int, tally: Tally, done: asyncio.Future[None], on_failed: Callable[[], None]) -> None:
        self.choices = [Collected() for _ in range(n)]
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self._tally = tally
        self._done = done
        self._on_failed = on_failed

    def push(
        self,
        choice: int,
        shown: str | list[Part],
        token: Token,
        finish_reason: str | None,
        stop_reason: int | str | None,
    ) -> None:
        collected = self.choices[choice]
        if type(shown) is str:
            collected.text.append(shown)
        else:
            for part in shown:
                collected.add(part)
        collected.token_ids.append(token.token_id)
        collected.logprobs.append(token.logprobs)
        if token.prompt_logprobs is not None:
            self.prompt_logprobs = token.prompt_logprobs
        if finish_reason is not None:
            collected.finish_reason, collected.stop_reason = finish_reason, stop_reason

    def end(self, usage: Usage) -> None:
        if self._tally.end(usage) and not self._done.done():
            self._done.set_result(None)

    def fail(self, error: BatonError) -> None:
        """The prompt has failed, and all others with it."""
        if not self._done.done():
            self._done.set_exception(error)
        self._on_failed()


def chat_choice(request: ChatRequest, index: int, choice: Collected, tokenizer: Tokenizer) -> dict[str, Any]:
    skips = request.skip_special_tokens is not False
    rows = [chat_logprob(row, tokenizer, skips_special=skips) for row in choice.logprobs if row is not None]
    return {
        "index": index,
        "message": choice.message(),
        "logprobs": {"content": rows} if request.logprobs else None,
        "finish_reason": "tool_calls" if choice.finish_reason == "stop" and choice.calls else choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "token_ids": choice.token_ids if request.return_token_ids else None,
        "prompt_logprobs": None,  # the body has it, once for all choices
    }


def chat_body(request: ChatRequest, sink: CollectSink, tokenizer: Tokenizer, prompt_ids: list[int]) -> dict[str, Any]:
    """Return what a chat's body has beside its frame and its usage."""
    asked = sink.prompt_logprobs if request.prompt_logprobs is not None else None
    return {
        "choices": [chat_choice(request, i, choice, tokenizer) for i, choice in enumerate(sink.choices)],
        "prompt_logprobs": prompt_logprobs_table(asked, tokenizer),
        "prompt_token_ids": prompt_ids if request.return_token_ids else None,
    }


def completion_choices(
    request: CompletionRequest,
    first: int,
    sink: CollectSink,
    tokenizer: Tokenizer,
    prompt: list[int],
    echo: Echo | None,
) -> list[dict[str, Any]]:
    """Return a prompt's choices, numbered from `first` on, each after the prompt's text if that is echoed."""
    echoed = None
    if echo is not None and request.logprobs is not None:
        rows = sink.prompt_logprobs or [None] * len(prompt)
        echoed = completion_logprobs(prompt, rows, echo.offsets, tokenizer)
    asked = sink.prompt_logprobs if request.prompt_logprobs is not None else None
    beside = {
        "prompt_logprobs": prompt_logprobs_table(asked, tokenizer),
        "prompt_token_ids": prompt if request.return_token_ids else None,
    }
    choices = []
    for index, choice in enumerate(sink.choices, first):
        scores = None
        if request.logprobs is not None:
            skips = request.skip_special_tokens is not False
            new = CompletionLogprobs(tokenizer, prompt, echo, skips_special=skips)
            scores = new.table([], []) if request.answers_nothing else new.table(choice.token_ids, choice.logprobs)
            if echoed is not None:
                scores = {name: values + scores[name] for name, values in echoed.items()}
        choices.append(_completion_choice(request, index, choice, echo, scores) | beside)
    return choices


def _completion_choice(
    request: CompletionRequest, index: int, choice: Collected, echo: Echo | None, scores: dict[str, Any] | None
) -> dict[str, Any]:
    token_ids = [] if request.answers_nothing else choice.token_ids
    return {
        "index": index,
        "text": ("" if echo is None else echo.text) + ("" if request.answers_nothing else "".join(choice.text)),
        "logprobs": scores,
        "finish_reason": "length" if request.answers_nothing else choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "token_ids": token_ids if request.return_token_ids else None,
    }
