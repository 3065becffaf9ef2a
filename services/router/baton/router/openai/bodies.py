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


def chat_choice(
    request: ChatRequest, index: int, choice: Collected, tokenizer: Tokenizer, prompt_logprobs: object = None
) -> dict[str, Any]:
    skips = request.skip_special_tokens is not False
    rows = [chat_logprob(row, tokenizer, skips_special=skips) for row in choice.logprobs if row is not None]
    return {
        "index": index,
        "message": choice.message(),
        "logprobs": {"content": rows} if request.logprobs else None,
        "finish_reason": "tool_calls" if choice.finish_reason == "stop" and choice.calls else choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "token_ids": choice.token_ids if request.return_token_ids else None,
        "prompt_logprobs": prompt_logprobs,
    }


def completion_choice(
    request: CompletionRequest,
    index: int,
    choice: Collected,
    sink: CollectSink,
    tokenizer: Tokenizer,
    prompt_ids: list[int],
    echo: Echo | None,
) -> dict[str, Any]:
    """Return a prompt's choice, after the prompt's text if that is echoed."""
    text, token_ids, rows = "".join(choice.text), choice.token_ids, choice.logprobs
    if request.answers_nothing:
        text, token_ids, rows = "", [], []
    scores = None
    if request.logprobs is not None:
        skips = request.skip_special_tokens is not False
        scores = CompletionLogprobs(tokenizer, prompt_ids, echo, skips_special=skips).table(token_ids, rows)
    if echo is not None:
        text = echo.text + text
        if scores is not None:
            prompt_rows = sink.prompt_logprobs or [None] * len(prompt_ids)
            first = completion_logprobs(prompt_ids, prompt_rows, echo.offsets, tokenizer)
            scores = {name: values + scores[name] for name, values in first.items()}
    asked = sink.prompt_logprobs if request.prompt_logprobs is not None else None
    return {
        "index": index,
        "text": text,
        "logprobs": scores,
        "finish_reason": "length" if request.answers_nothing else choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "token_ids": token_ids if request.return_token_ids else None,
        "prompt_logprobs": prompt_logprobs_table(asked, tokenizer),
        "prompt_token_ids": prompt_ids if request.return_token_ids else None,
    }
