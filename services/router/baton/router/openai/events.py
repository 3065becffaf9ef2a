"""An answer as server-sent events: sinks that write a fixed frame for each choice and the parts between.

A token of plain text builds one string and nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from baton.errors import BatonError
from baton.messages import Token, read_rows
from baton.requests.chat import ChatRequest
from baton.requests.completions import CompletionRequest
from baton.router.event_stream import EventStream
from baton.router.openai.logprobs import CompletionLogprobs, Echo, chat_logprob, completion_logprobs
from baton.router.openai.open_request import Tally
from baton.router.openai.parts import CallArguments, CallBegins, Part, Reasoning, Refusal
from baton.router.sink import Usage
from baton.text import Tokenizer

_DONE = b"data: [DONE]\n\n"
_NO_REASON = b'"finish_reason":null,"stop_reason":null'


class AnswerEvents:
    """What the events of one HTTP request share, of however many prompts: their frame, the usage, the end."""

    def __init__(
        self,
        request: ChatRequest | CompletionRequest,
        frame: Mapping[str, Any],
        stream: EventStream,
        tally: Tally,
        tokenizer: Tokenizer,
        on_failed: Callable[[], None],
    ) -> None:
        """Write `frame`, the fields that all events share, before their choices."""
        self.head = b"data: " + orjson.dumps(frame)[:-1] + b',"choices":['
        self.push = stream.push
        self.tokenizer = tokenizer
        self.skips_special = request.skip_special_tokens is not False
        self.as_ids = bool(request.return_tokens_as_token_ids)
        options = request.stream_options
        self._with_usage = bool(options and options.include_usage)
        in_each = self._with_usage and options and options.continuous_usage_stats
        self.running = copy.copy(tally) if in_each else None
        """The usage so far, counted token by token, for clients that want it in each event."""
        self.with_token_ids = bool(request.return_token_ids)
        self.with_logprobs = request.logprobs is not None and request.logprobs is not False
        self.names_function = isinstance(request, ChatRequest) and request.names_function
        self.is_plain = not (self.with_token_ids or self.with_logprobs)
        self._tail = b'],"usage":null}\n\n' if self._with_usage else b"]}\n\n"
        self._stream = stream
        self._tally = tally
        self._on_failed = on_failed

    def tail(self) -> bytes:
        return self._tail if self.running is None else self._usage_tail(self.running)

    def end(self, usage: Usage) -> None:
        """A prompt's answer has ended."""
        if self._tally.end(usage):
            last = self.head + self._usage_tail(self._tally) if self._with_usage else b""
            self._stream.close(last + _DONE)

    def fail(self, error: BatonError) -> None:
        """A prompt has failed, and all others with it."""
        self._stream.fail(error)
        self._on_failed()

    def _usage_tail(self, tally: Tally) -> bytes:
        return b'],"usage":' + orjson.dumps(tally.usage()) + b"}\n\n"


class ChatEvents:
    """A sink: a chat as events of chat.completion.chunk."""

    __slots__ = (
        *("_answer", "_choice_end", "_echoed", "_heads", "_is_plain", "_plain_end", "_prompt_ids", "_push", "_running"),
        *("_with_calls", "end", "fail"),
    )

    def __init__(self, answer: AnswerEvents, prompt_ids: list[int], echoed: str = "") -> None:
        """Begin each choice with `echoed`, which stands before it."""
        self._answer = answer
        self._echoed = echoed
        self._prompt_ids = prompt_ids
        self._heads: dict[int, bytes] = {}
        self._with_calls: set[int] = set()
        self._push = answer.push
        self._running = answer.running
        self._is_plain = answer.is_plain
        self._choice_end = b'},"logprobs":null,%b,"token_ids":null}' % _NO_REASON
        self._plain_end = self._choice_end + answer.tail()
        self.end, self.fail = answer.end, answer.fail

    def push(
        self,
        choice: int,
        shown: str | list[Part],
        token: Token,
        finish_reason: str | None,
        stop_reason: int | str | None,
    ) -> None:
        """Write a token's events; that of the role stands before the first, and how the choice ended is in the last."""
        head = self._heads.get(choice)
        if head is None:
            head = self._begin(choice, token)
        end = self._plain_end
        if self._running is not None:
            self._running.count()
            end = self._choice_end + self._answer.tail()
        if self._is_plain and finish_reason is None and type(shown) is str:
            self._push(b"".join((head, orjson.dumps(shown), end)))
        else:
            self._write(choice, (shown,) if isinstance(shown, str) else shown, token, finish_reason, stop_reason)

    def _begin(self, choice: int, token: Token) -> bytes:
        """Write the role, before any token counts; return what an event of text begins with."""
        answer = self._answer
        if self._running is not None and not self._heads:
            self._running.begin(token, len(self._prompt_ids))
        head = answer.head + b'{"index":%d,"delta":' % choice
        ids = orjson.dumps(self._prompt_ids if answer.with_token_ids else None)
        role = b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":'
        self._push(head + role + ids + answer.tail().removeprefix(b"]"))
        head = self._heads[choice] = head + b'{"content":'
        if self._echoed:
            self._push(head + orjson.dumps(self._echoed) + self._choice_end + answer.tail())
        return head

    def _write(
        self, choice: int, parts: Sequence[Part], token: Token, finish_reason: str | None, stop_reason: int | str | None
    ) -> None:
        """Write a token's parts: its score and its id go with the first, how the choice ended with the last."""
        answer = self._answer
        begun = [self._begin_event(choice, part) for part in parts]
        if not begun and (finish_reason is not None or answer.with_logprobs or answer.with_token_ids):
            begun = [self._begin_event(choice, "")]
        if finish_reason == "stop" and choice in self._with_calls and not answer.names_function:
            finish_reason = "tool_calls"
        scores, ids = b"null", b"null"
        if token.logprobs is not None and answer.with_logprobs:
            row = chat_logprob(
                token.logprobs, answer.tokenizer, skips_special=answer.skips_special, as_ids=answer.as_ids
            )
            scores = orjson.dumps({"content": [row]})
        if answer.with_token_ids:
            ids = b"[%d]" % token.token_id
        for i, event in enumerate(begun, 1):
            reason = _reason(finish_reason, stop_reason) if i == len(begun) else _NO_REASON
            self._push(event + b',"logprobs":%b,%b,"token_ids":%b}' % (scores, reason, ids) + answer.tail())
            scores, ids = b"null", b"[]" if answer.with_token_ids else b"null"

    def _begin_event(self, choice: int, part: Part) -> bytes:
        """Write an event up to the end of its delta."""
        if isinstance(part, str):
            return self._heads[choice] + orjson.dumps(part) + b"}"
        return self._answer.head + b'{"index":%d,"delta":' % choice + orjson.dumps(self._delta(choice, part))

    def _delta(self, choice: int, part: Reasoning | Refusal | CallBegins | CallArguments) -> dict[str, Any]:
        if isinstance(part, CallBegins):
            self._with_calls.add(choice)
            function = {"name": part.name, "arguments": part.arguments}
            call = {"index": part.index, "id": part.call_id, "type": "function", "function": function}
            return {"tool_calls": [call]}
        if isinstance(part, CallArguments):
            return {"tool_calls": [{"index": part.index, "function": {"arguments": part.arguments}}]}
        if isinstance(part, Reasoning):
            return {"reasoning": part.text, "reasoning_content": part.text}
        return {"refusal": part.text}


class CompletionEvents:
    """A sink: one prompt's choices as streamed events of text_completion."""

    __slots__ = (
        *("_answer", "_choice_end", "_echo", "_echo_scores", "_heads", "_hides_answer", "_is_plain", "_offset"),
        *("_plain_end", "_prompt_end", "_prompt_ids", "_push", "_running", "_scores", "end", "fail"),
    )

    def __init__(
        self, answer: AnswerEvents, request: CompletionRequest, prompt_ids: list[int], *, offset: int, echo: Echo | None
    ) -> None:
        """Number the choices from `offset` on; `echo` is the prompt's text, where it stands before the answers."""
        self._answer = answer
        self._prompt_ids = prompt_ids
        self._prompt_end: list[int] | None = None
        self._offset = offset
        self._echo = echo
        self._echo_scores: dict[str, Any] | None = None
        self._hides_answer = request.answers_nothing
        self._heads: dict[int, bytes] = {}
        self._scores: dict[int, CompletionLogprobs] = {}
        """By choice, if they are asked for."""
        self._push = answer.push
        self._running = answer.running
        self._is_plain = answer.is_plain and not self._hides_answer
        self._choice_end = b',"logprobs":null,%b,"token_ids":null}' % _NO_REASON
        self._plain_end = self._choice_end + answer.tail()
        self.end, self.fail = answer.end, answer.fail

    def push(
        self, choice: int, shown: str, token: Token, finish_reason: str | None, stop_reason: int | str | None
    ) -> None:
        """Write a token's event; the echoed prompt stands before the first, and how the choice ended is in the last."""
        head, begins = self._heads.get(choice), False
        if head is None:
            head, begins = self._begin(choice, token), self._echo is None
        end = self._plain_end
        if self._running is not None:
            self._running.count()
            end = self._choice_end + self._answer.tail()
        if self._is_plain and finish_reason is None:
            self._push(b"".join((head, orjson.dumps(shown), end)))
        elif not self._hides_answer:
            scores = None
            if token.logprobs is not None and self._answer.with_logprobs:
                scores = self._scores_of(choice).table([token.token_id], [token.logprobs])
            reason = _reason(finish_reason, stop_reason)
            self._write(choice, shown, scores, [token.token_id], reason=reason, begins=begins)
        elif finish_reason is not None:
            self._write(choice, "", None, [], reason=_reason("length", stop_reason))

    def _begin(self, choice: int, token: Token) -> bytes:
        """Write the echoed prompt, before any token counts; return what this choice's events begin with."""
        if self._running is not None and not self._heads:
            self._running.begin(token, len(self._prompt_ids))
        head = self._heads[choice] = self._answer.head + b'{"index":%d,"text":' % (self._offset + choice)
        if self._echo is not None:
            self._write_echo(choice, self._echo, token)
        return head

    def _scores_of(self, choice: int) -> CompletionLogprobs:
        if choice not in self._scores:
            answer = self._answer
            if self._prompt_end is None:
                self._prompt_end = answer.tokenizer.visible_end(
                    self._prompt_ids, skip_special_tokens=answer.skips_special
                )
            self._scores[choice] = CompletionLogprobs(
                answer.tokenizer, self._prompt_end, self._echo, skips_special=answer.skips_special, as_ids=answer.as_ids
            )
        return self._scores[choice]

    def _write_echo(self, choice: int, echo: Echo, token: Token) -> None:
        """Write the prompt; its scores come with choice 0's first token."""
        answer, rows = self._answer, token.prompt_logprobs
        if answer.with_logprobs and self._echo_scores is None and rows is not None:
            self._echo_scores = completion_logprobs(
                self._prompt_ids, read_rows(rows), echo.offsets, answer.tokenizer, as_ids=answer.as_ids
            )
        self._write(choice, echo.text, self._echo_scores, [], begins=True)

    def _write(
        self,
        choice: int,
        text: str,
        logprobs: dict[str, Any] | None,
        token_ids: list[int],
        *,
        reason: bytes = _NO_REASON,
        begins: bool = False,
    ) -> None:
        ids = b',"token_ids":null'
        if self._answer.with_token_ids:
            ids = b',"token_ids":' + orjson.dumps(token_ids)
            if begins:
                ids += b',"prompt_token_ids":' + orjson.dumps(self._prompt_ids)
        end = b',"logprobs":%b,%b%b}' % (orjson.dumps(logprobs), reason, ids)
        self._push(self._heads[choice] + orjson.dumps(text) + end + self._answer.tail())


def _reason(finish_reason: str | None, stop_reason: int | str | None) -> bytes:
    if finish_reason is None:
        return _NO_REASON
    return b'"finish_reason":%b,"stop_reason":%b' % (orjson.dumps(finish_reason), orjson.dumps(stop_reason))
