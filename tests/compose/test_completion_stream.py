"""The raw client of `baton bench serve`, against a server that writes exactly what a test says."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.processes import HANG_S

from baton.bench.completion_stream import Endpoint, Outcome

pytestmark = pytest.mark.asyncio
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text: str, **fields) -> bytes:
    return b"data: " + json.dumps({"choices": [{"text": text, **fields}]}).encode() + b"\n\n"


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
LAST = b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\ndata: [DONE]\n\n"


async def answered(*pieces: bytes, body: dict | None = None) -> tuple[Outcome, bytes]:
    """Ask a server that writes these pieces, and closes."""
    asked = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split()[0])
        asked.extend(head + await reader.readexactly(length))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        outcome = Outcome()
        await Endpoint(f"http://127.0.0.1:{port}/v1", "a-key").ask(body or {"prompt": [1]}, outcome, timeout_s=HANG_S)
        return outcome, bytes(asked)


@pytest.mark.parametrize("size", [1, 3, 50, 10_000])
async def test_tokens_are_counted_however_the_stream_is_cut(size) -> None:
    whole = b"".join(
        chunk(each) for each in (event('a "choices":[{ b'), event("\n\n data:"), event("c"), LAST)
    ) + chunk(b"")
    outcome, asked = await answered(HEAD, *(whole[i : i + size] for i in range(0, len(whole), size)))
    assert outcome.error is None
    assert (outcome.num_tokens, outcome.num_events, outcome.num_prompt, outcome.num_cached) == (3, 3, 7, 2)
    assert len(outcome.gaps_s) == 2
    assert 0 < outcome.first_s <= outcome.total_s
    assert asked.startswith(b"POST /v1/completions HTTP/1.1\r\n")
    assert b"authorization: Bearer a-key" in asked


async def test_tokens_of_one_event_count_as_gaps_of_nothing_and_an_empty_last_event_as_none() -> None:
    outcome, _ = await answered(HEAD, chunk(event("a b c") + LAST), chunk(b""))
    assert (outcome.num_tokens, outcome.num_events, outcome.gaps_s) == (3, 1, [0.0, 0.0])
    outcome, _ = await answered(HEAD, *[chunk(event("a"))] * 4, chunk(LAST), chunk(b""))
    assert (outcome.num_tokens, outcome.num_events, len(outcome.gaps_s)) == (3, 3, 2)


async def test_ids_of_an_answer_are_kept_where_they_are_asked_for() -> None:
    pieces = (chunk(event("a", token_ids=[5]) + event("b", token_ids=[6, 7]) + LAST), chunk(b""))
    outcome, _ = await answered(HEAD, *pieces, body={"return_token_ids": True})
    assert outcome.token_ids == [5, 6, 7]


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ([b"HTTP/1.1 429 Too Many\r\ncontent-length: 8\r\n\r\nlater, p"], "429: later, p"),
        ([HEAD, chunk(event("a"))], "ended before the answer"),
        ([HEAD, chunk(b'data: {"error": {"message": "worker lost"}}\n\n'), chunk(b"")], "worker lost"),
        ([b"SSH-2.0-x\r\n\r\n"], "not HTTP"),
        ([], "ended before the answer"),
    ],
)
async def test_what_goes_wrong_is_told(pieces, says) -> None:
    outcome, _ = await answered(*pieces)
    assert says in str(outcome.error)


async def test_nobody_there_is_a_failure_of_the_request_not_of_the_run() -> None:
    outcome = Outcome()
    await Endpoint("http://127.0.0.1:1", None).ask({}, outcome, timeout_s=HANG_S)
    assert "Connect" in str(outcome.error) or "refused" in str(outcome.error)
