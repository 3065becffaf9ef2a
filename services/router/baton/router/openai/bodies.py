"""An answer as one JSON body: a sink that keeps tokens and parts, and the bodies that are made of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import msgspec

from baton.errors import BatonError
from baton.messages import Token, read_rows, write_row
from baton.requests.chat import ChatRequest
from baton.requests.completions import CompletionRequest
from baton.router.openai.json_pieces import (
    NULL,
    ROWS,
    Columns,
    Once,
    Pieces,
    joined_pieces,
    list_pieces,
    object_pieces,
    rows_at_once,
)
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


_NO_ROW = write_row(None)


class Collected:
    """One choice of a whole answer."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.token_ids: list[int] = []
        self.logprobs: list[msgspec.Raw] = []
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

    def score(self) -> float:
        """Return its tokens' log-probabilities together."""
        return sum(row.logprobs[0] for row in read_rows(self.logprobs) if row is not None)

    def drop_last(self) -> None:
        """Forget the token that ended it, which is no part of the answer."""
        del self.token_ids[-1], self.logprobs[-1]

    def message(self, echoed: str = "") -> dict[str, Any]:
        """Return it as an assistant's message, behind what is echoed."""
        text = echoed + "".join(self.text)
        message = _MESSAGE | {
            "content": None if (self.calls or self.reasoning) and not text.strip() else text,
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
        self.prompt_logprobs: list[msgspec.Raw] | None = None
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
        collected.logprobs.append(_NO_ROW if token.logprobs is None else write_row(token.logprobs))
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


def chat_pieces(
    request: ChatRequest, sink: CollectSink, tokenizer: Tokenizer, prompt_ids: list[int]
) -> dict[str, Pieces]:
    """Write what a chat's body has beside its frame and its usage."""
    choices = (chat_choice(request, i, choice, tokenizer) for i, choice in enumerate(sink.choices))
    return {
        "choices": joined_pieces(choices),
        "prompt_logprobs": list_pieces(sink.prompt_logprobs, partial(prompt_logprobs_table, tokenizer=tokenizer), ROWS),
        "prompt_token_ids": list_pieces(prompt_ids if request.return_token_ids else None),
    }


def chat_choice(request: ChatRequest, index: int, choice: Collected, tokenizer: Tokenizer) -> Iterator[bytes]:
    """Write one choice of a chat."""
    skips, as_ids = request.skip_special_tokens is not False, bool(request.return_tokens_as_token_ids)

    def write(rows: Sequence[msgspec.Raw]) -> list[dict[str, Any]]:
        read = (row for row in read_rows(rows) if row is not None)
        return [chat_logprob(row, tokenizer, skips_special=skips, as_ids=as_ids) for row in read]

    short = {
        "index": index,
        "message": choice.message(request.echoed),
        "finish_reason": "tool_calls" if ends_with_calls(request, choice) else choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "prompt_logprobs": None,  # the body has it, once for all choices
    }
    scores: Pieces = NULL
    if request.logprobs:
        num_rows = rows_at_once(len(request.logprob_token_ids or ()))
        scores = chain((b'{"content":',), list_pieces(choice.logprobs, write, num_rows), (b"}",))
    token_ids = choice.token_ids if request.return_token_ids else None
    yield from object_pieces(short, {"logprobs": scores, "token_ids": list_pieces(token_ids)})


def ends_with_calls(request: ChatRequest, choice: Collected) -> bool:
    """Whether a choice ended for its calls; with a named function, as everywhere, it just stops."""
    return choice.finish_reason == "stop" and bool(choice.calls) and not request.names_function


class CompletionAnswer:
    """One prompt's choices in the body of a completion, each after the prompt's text if that is echoed."""

    def __init__(
        self, request: CompletionRequest, sink: CollectSink, tokenizer: Tokenizer, prompt: list[int], echo: Echo | None
    ) -> None:
        self._request = request
        self._sink = sink
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._echo = echo
        self._echoed = Columns()
        self._skips_special = request.skip_special_tokens is not False
        self._as_ids = bool(request.return_tokens_as_token_ids)
        self._end = tokenizer.visible_end(prompt, skip_special_tokens=self._skips_special)

    def choices(self, first: int) -> Iterator[Pieces]:
        """Write a choice after the other, numbered from `first` on."""
        request, sink = self._request, self._sink
        asked = sink.prompt_logprobs if request.prompt_logprobs is not None else None
        # the same for every choice, so written once
        table = list_pieces(asked, partial(prompt_logprobs_table, tokenizer=self._tokenizer), ROWS)
        prompt_ids = list_pieces(self._prompt if request.return_token_ids else None)
        beside = {"prompt_logprobs": Once(table), "prompt_token_ids": Once(prompt_ids)}
        for index, choice in enumerate(sink.choices):
            yield self._choice(first + index, choice, beside, writes_echo=index == 0)

    def _choice(
        self, index: int, choice: Collected, beside: Mapping[str, Pieces], *, writes_echo: bool
    ) -> Iterator[bytes]:
        request, echo = self._request, self._echo
        token_ids = [] if request.answers_nothing else choice.token_ids
        short = {
            "index": index,
            "text": ("" if echo is None else echo.text) + ("" if request.answers_nothing else "".join(choice.text)),
            "finish_reason": "length" if request.answers_nothing else choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if writes_echo:
            yield from self._write_echo()
        long: dict[str, Pieces] = {
            "logprobs": NULL if request.logprobs is None else self._scores(token_ids, choice.logprobs),
            "token_ids": list_pieces(token_ids if request.return_token_ids else None),
        }
        yield from object_pieces(short, {**long, **beside})

    def _write_echo(self) -> Iterator[bytes]:
        """Write the prompt's scores, as they stand before those of each choice."""
        if self._echo is None or self._request.logprobs is None:
            return
        for at in range(0, len(self._prompt), ROWS):
            part = slice(at, at + ROWS)
            rows = read_rows((self._sink.prompt_logprobs or [])[part]) or [None] * len(self._prompt[part])
            columns = completion_logprobs(
                self._prompt[part], rows, self._echo.offsets[part], self._tokenizer, as_ids=self._as_ids
            )
            self._echoed.add(columns)
            yield b""

    def _scores(self, token_ids: list[int], rows: list[msgspec.Raw]) -> Iterator[bytes]:
        written = Columns()
        scores = CompletionLogprobs(
            self._tokenizer, self._end, self._echo, skips_special=self._skips_special, as_ids=self._as_ids
        )
        num_rows = rows_at_once(len(self._request.logprob_token_ids or ()))
        for at in range(0, max(len(token_ids), 1), num_rows):  # a choice without tokens has columns without values
            part = slice(at, at + num_rows)
            written.add(scores.table(token_ids[part], read_rows(rows[part]) if token_ids else []))
            yield b""
        yield from self._echoed.then(written)
