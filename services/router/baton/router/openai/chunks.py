"""Chunks of a stream: a fixed frame for each choice, and the text between. Nothing is built per token but one string."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import orjson

from baton.messages import TokenLogprobs

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
TokenText = Callable[[int], str]
_MIN_LOGPROB = -9999.0
"""JSON has no infinity."""


class Chunks(Protocol):
    """How one API writes a stream."""

    def first(self, choice: int) -> bytes:
        """Give what stands before a choice's first text."""
        ...

    def piece(self, choice: int, text: str, logprobs: TokenLogprobs | None, token_id: int) -> bytes:
        """Give a token's chunk."""
        ...

    def finish(self, choice: int, finish_reason: str, stop_reason: int | str | None) -> bytes:
        """Give the chunk that ends a choice."""
        ...

    def usage(self, usage: dict[str, object]) -> bytes:
        """Give the chunk with the usage of all."""
        ...


class _Frames:
    """Heads of chunks by choice, made once a stream."""

    object_name: str

    def __init__(
        self, answer_id: str, created: int, model: str, *, with_usage: bool, with_token_ids: bool, token_text: TokenText
    ) -> None:
        self._common = b'data: {"id":%b,"object":"%b","created":%d,"model":%b,"choices":[' % (
            orjson.dumps(answer_id),
            self.object_name.encode(),
            created,
            orjson.dumps(model),
        )
        self._tail = b'],"usage":null}\n\n' if with_usage else b"]}\n\n"
        self.running_usage: Callable[[], dict[str, object]] | None = None
        """Gives the usage so far, for clients that want it in each chunk."""
        self._with_token_ids = with_token_ids
        self._token_text = token_text
        self._heads: dict[int, bytes] = {}

    def usage(self, usage: dict[str, object]) -> bytes:
        """Give the chunk with the usage of all."""
        return self._common + b'],"usage":' + orjson.dumps(usage) + b"}\n\n"

    def _end(self) -> bytes:
        if self.running_usage is None:
            return self._tail
        return b'],"usage":' + orjson.dumps(self.running_usage()) + b"}\n\n"


class ChatChunks(_Frames):
    """chat.completion.chunk"""

    object_name = "chat.completion.chunk"

    def first(self, choice: int) -> bytes:
        """Give the chunk that says who speaks."""
        head = self._common + b'{"index":%d,"delta":' % choice
        self._heads[choice] = head + b'{"content":'
        return head + b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}' + self._end()

    def piece(self, choice: int, text: str, logprobs: TokenLogprobs | None, token_id: int) -> bytes:
        """Give a token's chunk."""
        if logprobs is None and not self._with_token_ids and self.running_usage is None:
            return b"".join(
                (self._heads[choice], orjson.dumps(text), b'},"logprobs":null,"finish_reason":null}', self._tail)
            )
        scores = b"null" if logprobs is None else orjson.dumps({"content": [chat_logprob(logprobs, self._token_text)]})
        ids = b',"token_ids":[%d]' % token_id if self._with_token_ids else b""
        rest = b'},"logprobs":%b,"finish_reason":null%b}' % (scores, ids)
        return self._heads[choice] + orjson.dumps(text) + rest + self._end()

    def delta(self, choice: int, delta: dict[str, Any]) -> bytes:
        """Give a chunk with any other delta, such as a tool call."""
        head = self._common + b'{"index":%d,"delta":' % choice
        return head + orjson.dumps(delta) + b',"logprobs":null,"finish_reason":null}' + self._end()

    def finish(self, choice: int, finish_reason: str, stop_reason: int | str | None) -> bytes:
        """Give the chunk that ends a choice."""
        return self._common + (
            b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%b","stop_reason":%b}'
            % (choice, finish_reason.encode(), orjson.dumps(stop_reason))
            + self._end()
        )


class CompletionChunks(_Frames):
    """text_completion, streamed"""

    object_name = "text_completion"

    def __init__(
        self, answer_id: str, created: int, model: str, *, with_usage: bool, with_token_ids: bool, token_text: TokenText
    ) -> None:
        super().__init__(
            answer_id, created, model, with_usage=with_usage, with_token_ids=with_token_ids, token_text=token_text
        )
        self._offsets: dict[int, int] = {}

    def first(self, choice: int) -> bytes:
        """Give nothing: a completion begins with its text."""
        self._heads[choice] = self._common + b'{"index":%d,"text":' % choice
        return b""

    def prompt(self, choice: int, text: str, logprobs: dict[str, Any] | None, token_ids: list[int]) -> bytes:
        """Give the echoed prompt."""
        self._offsets[choice] = len(text)
        ids = b',"token_ids":' + orjson.dumps(token_ids) if self._with_token_ids else b""
        return (
            self._heads[choice]
            + orjson.dumps(text)
            + b',"logprobs":%b,"finish_reason":null,"stop_reason":null%b}' % (orjson.dumps(logprobs), ids)
            + self._end()
        )

    def piece(self, choice: int, text: str, logprobs: TokenLogprobs | None, token_id: int) -> bytes:
        """Give a token's chunk."""
        if logprobs is None and not self._with_token_ids and self.running_usage is None:
            return b"".join(
                (
                    self._heads[choice],
                    orjson.dumps(text),
                    b',"logprobs":null,"finish_reason":null,"stop_reason":null}',
                    self._tail,
                )
            )
        scores = b"null"
        if logprobs is not None:
            offset = self._offsets.get(choice, 0)
            table = completion_logprobs([logprobs], self._token_text, offset)
            self._offsets[choice] = offset + len(table["tokens"][0])
            scores = orjson.dumps(table)
        ids = b',"token_ids":[%d]' % token_id if self._with_token_ids else b""
        rest = b',"logprobs":%b,"finish_reason":null,"stop_reason":null%b}' % (scores, ids)
        return self._heads[choice] + orjson.dumps(text) + rest + self._end()

    def finish(self, choice: int, finish_reason: str, stop_reason: int | str | None) -> bytes:
        """Give the chunk that ends a choice."""
        return self._common + (
            b'{"index":%d,"text":"","logprobs":null,"finish_reason":"%b","stop_reason":%b}'
            % (choice, finish_reason.encode(), orjson.dumps(stop_reason))
            + self._end()
        )


def error_event(error: dict[str, Any]) -> bytes:
    """Give an error in the middle of a stream; SDKs raise it. No [DONE] follows."""
    return b"data: " + orjson.dumps(error) + b"\n\n"


def chat_logprob(row: TokenLogprobs, token_text: TokenText) -> dict[str, Any]:
    """Give one position in the form of chat completions."""
    entries = [
        {"token": text, "logprob": max(value, _MIN_LOGPROB), "bytes": list(text.encode())}
        for text, value in zip(map(token_text, row.token_ids), row.logprobs, strict=True)
    ]
    return entries[0] | {"top_logprobs": entries[1:]}


def completion_logprobs(
    rows: list[TokenLogprobs | None], token_text: TokenText, offset: int, token_ids: list[int] | None = None
) -> dict[str, Any]:
    """Give positions in the form of completions; a position without scores (a prompt's first) has null.

    `token_ids` are needed only where rows may be None.
    """
    tokens: list[str] = []
    values: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    offsets: list[int] = []
    for i, row in enumerate(rows):
        token_id = row.token_ids[0] if row is not None else (token_ids or [])[i]
        text = token_text(token_id)
        tokens.append(text)
        offsets.append(offset)
        offset += len(text)
        if row is None:
            values.append(None)
            tops.append(None)
            continue
        scores = [max(value, _MIN_LOGPROB) for value in row.logprobs]
        values.append(scores[0])
        top = {token_text(t): s for t, s in zip(row.token_ids[1:], scores[1:], strict=True)}
        tops.append(top | {text: scores[0]})
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def prompt_logprobs_table(
    rows: list[TokenLogprobs | None] | None, token_text: TokenText
) -> list[dict[str, Any] | None] | None:
    """Give vLLM's prompt_logprobs: for each token of the prompt, token id to score, rank and text."""
    if rows is None:
        return None
    return [
        None
        if row is None
        else {
            str(token_id): {"logprob": max(value, _MIN_LOGPROB), "rank": rank, "decoded_token": token_text(token_id)}
            for token_id, value, rank in zip(row.token_ids, row.logprobs, row.ranks, strict=True)
        }
        for row in rows
    ]
