"""A stream of events and its states, on a transport that is only a list. No sockets, no clock but the test's."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.processes import HANG_S

from baton.errors import Unavailable
from baton.metrics import RouterMetrics
from baton.router import event_stream
from baton.router.config import RouterConfig
from baton.router.event_stream import KEEP_ALIVE, EventStream, OpenStreams, StreamState

pytestmark = pytest.mark.asyncio


class FakeFlow:
    """The server's view of whether a client reads."""

    write_paused = False


class FakeTransport:
    """Keeps what is written straight to the connection."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_aborted = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None:
        self.is_aborted = True


class FakeServer:
    """uvicorn's side of one request, as far as a stream knows it."""

    __module__ = "uvicorn.protocols.http.httptools_impl"
    chunked_encoding = True

    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.flow = FakeFlow()
        self.disconnected = False
        self.messages: list[Any] = []
        self.reads = asyncio.Event()
        """Set while the client reads."""
        self.reads.set()
        self.left = asyncio.Event()

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        self.messages.append(message)

    async def receive(self) -> Any:
        await self.left.wait()
        return {"type": "http.disconnect"}

    @property
    def status(self) -> int:
        """The answer's status."""
        status: int = self.messages[0]["status"]
        return status

    @property
    def bodies(self) -> list[bytes]:
        """What the stream's task has sent."""
        return [message["body"] for message in self.messages[1:]]


class World:
    """One stream with its table, server and client."""

    def __init__(self, **config: Any) -> None:
        self.metrics = RouterMetrics("m")
        self.table = OpenStreams(RouterConfig(model="m", **config), self.metrics)
        self.num_gone = 0
        self.stream: EventStream = self.table.open(self.on_gone)
        self.server = FakeServer()
        self.task: asyncio.Task[None] | None = None

    def on_gone(self) -> None:
        self.num_gone += 1

    async def serve(self) -> None:
        """Begin to serve, as far as it goes by itself."""
        self.task = asyncio.create_task(self.stream({}, self.server.receive, self.server.send))
        await settle()

    async def open(self) -> None:
        """Bring the stream to where its first event is written."""
        await self.serve()
        self.stream.push(b"first")
        await settle()
        assert self.stream.state is StreamState.OPEN

    async def ended(self) -> None:
        """Wait for the end."""
        assert self.task is not None
        await asyncio.wait_for(self.task, HANG_S)


async def settle() -> None:
    """Let all that is ready run."""
    for _ in range(10):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def world(**config: Any) -> AsyncIterator[World]:
    made = World(**config)
    yield made
    if made.task is not None:
        made.task.cancel()
        await asyncio.gather(made.task, return_exceptions=True)
    assert len(made.table.served) == 0


async def test_a_stream_opens_with_its_first_data_and_ends_when_closed() -> None:
    async with world() as made:
        await made.serve()
        assert (made.stream.state, made.server.messages) == (StreamState.WAITING, [])
        assert len(made.table.served) == 1
        made.stream.push(b"first")
        await settle()
        assert made.stream.state is StreamState.OPEN
        assert (made.server.status, made.server.bodies) == (200, [b"first"])
        made.stream.push(b"last")
        made.stream.close()
        assert made.stream.state.name == "ENDING"
        await made.ended()
        assert made.server.bodies == [b"first", b"last", b""]
        assert [message["more_body"] for message in made.server.messages[1:]] == [True, True, False]
        assert (made.stream.state, made.num_gone) == (StreamState.OVER, 0)


async def test_what_is_pushed_in_one_step_is_one_write_past_the_task() -> None:
    async with world() as made:
        await made.open()
        for data in (b"a", b"bc", b"d"):
            made.stream.push(data)
        assert made.server.transport.written == []
        await settle()
        assert made.server.transport.written == [b"4\r\nabcd\r\n"]
        assert made.server.bodies == [b"first"]


async def test_all_streams_of_a_step_are_written_by_one_callback() -> None:
    async with world() as made:
        await made.open()
        other = made.table.open(made.on_gone)
        made.stream.push(b"a")
        other.push(b"b")
        assert made.table._fresh == [made.stream, other]
        await settle()
        assert made.table._fresh == []


async def test_a_paused_connection_is_left_to_the_task_which_waits_for_the_client() -> None:
    async with world() as made:
        await made.open()
        made.server.flow.write_paused = True
        made.server.reads.clear()
        made.stream.push(b"a")
        await settle()
        made.stream.push(b"b")
        await settle()
        assert (made.server.transport.written, made.server.bodies) == ([], [b"first"])
        made.server.reads.set()
        await settle()
        assert made.server.bodies == [b"first", b"a", b"b"]


async def test_an_end_before_any_data_is_an_empty_answer() -> None:
    async with world() as made:
        made.stream.close()
        await made.serve()
        await made.ended()
        assert (made.server.status, made.server.bodies) == (200, [b""])


@pytest.mark.parametrize("is_served", [False, True])
async def test_an_error_before_the_head_is_an_answer_of_its_own(is_served: bool) -> None:
    async with world() as made:
        if is_served:
            await made.serve()
        made.stream.push(b"never sent")
        made.stream.fail(Unavailable("later"))
        if not is_served:
            await made.serve()
        await made.ended()
        assert made.server.status == 503
        headers = dict(made.server.messages[0]["headers"])
        assert (headers[b"content-type"], headers[b"retry-after"]) == (b"application/json", b"1")
        assert json.loads(made.server.bodies[0])["error"]["message"] == "later"


async def test_an_error_in_the_middle_is_the_last_event() -> None:
    async with world() as made:
        await made.open()
        made.stream.push(b"a")
        made.stream.fail(Unavailable("later"))
        await made.ended()
        sent = b"".join(made.server.bodies)
        assert sent.startswith(b"firstadata: ")
        assert json.loads(sent.removeprefix(b"firstadata: "))["error"]["message"] == "later"
        assert made.server.messages[-1]["more_body"] is False


async def test_what_comes_after_the_end_is_dropped() -> None:
    async with world() as made:
        await made.open()
        for _ in range(2):
            made.stream.close()
            made.stream.push(b"late")
            made.stream.fail(Unavailable("late"))
        await made.ended()
        made.stream.close()
        made.stream.push(b"later")
        made.stream.fail(Unavailable("later"))
        assert made.server.bodies == [b"first", b""]
        assert (made.stream.state, made.num_gone) == (StreamState.OVER, 0)


@pytest.mark.parametrize("is_open", [False, True])
async def test_a_client_that_leaves_is_told_of_once(is_open: bool) -> None:
    async with world() as made:
        await (made.open() if is_open else made.serve())
        made.server.left.set()
        await made.ended()
        made.stream.push(b"unread")
        made.stream.close()
        made.stream.fail(Unavailable("unread"))
        assert (made.stream.state, made.num_gone) == (StreamState.GONE, 1)
        assert made.metrics.client_disconnects.value == 1
        assert len(made.server.messages) == (2 if is_open else 0)


async def test_a_client_that_leaves_ends_a_write_that_waits_for_it() -> None:
    async with world() as made:
        await made.open()
        made.server.flow.write_paused = True
        made.server.reads.clear()
        made.stream.push(b"a")
        await settle()
        made.server.left.set()
        await made.ended()
        assert (made.stream.state, made.num_gone) == (StreamState.GONE, 1)


async def test_a_client_that_leaves_after_the_end_is_no_loss() -> None:
    async with world() as made:
        await made.open()
        made.server.flow.write_paused = True
        made.server.reads.clear()
        made.stream.push(b"last")
        await settle()
        made.stream.close()
        made.server.left.set()
        await made.ended()
        assert (made.stream.state, made.num_gone) == (StreamState.GONE, 0)
        assert made.metrics.client_disconnects.value == 0


async def test_a_client_that_lets_too_much_wait_is_told_so_and_then_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "_GRACE_S", 0.0)
    async with world(stream_buffer_nbytes=10) as made:
        await made.open()
        made.server.flow.write_paused = True
        made.server.reads.clear()
        made.stream.push(b"a" * 6)
        made.stream.push(b"b" * 6)
        assert (made.stream.state, made.num_gone) == (StreamState.ENDING, 1)
        assert made.metrics.slow_clients.value == 1
        (words,) = made.stream._parts
        assert b"slow_client" in words
        await made.ended()
        assert (made.stream.state, made.server.transport.is_aborted) == (StreamState.GONE, True)


async def test_a_slow_client_that_reads_again_gets_its_last_words() -> None:
    async with world(stream_buffer_nbytes=10) as made:
        await made.open()
        made.stream.push(b"a" * 11)
        await made.ended()
        assert b"slow_client" in made.server.bodies[1]
        assert (made.stream.state, made.num_gone) == (StreamState.OVER, 1)


async def test_a_write_that_takes_too_long_ends_the_stream() -> None:
    async with world() as made:
        await made.open()
        made.server.flow.write_paused = True
        made.server.reads.clear()
        made.stream.push(b"a")
        await settle()
        began = made.stream._write_began_at
        made.stream.tick(began + 59, keep_alive_s=10, slow_s=60)
        assert made.stream.state is StreamState.OPEN
        made.stream.tick(began + 61, keep_alive_s=10, slow_s=60)
        assert (made.stream.state, made.num_gone) == (StreamState.ENDING, 1)


async def test_a_silent_stream_is_kept_alive_and_a_busy_one_is_not() -> None:
    async with world() as made:
        await made.serve()
        silent_since = made.stream._last_data_at
        made.stream.tick(silent_since + 9, keep_alive_s=10, slow_s=60)
        assert made.stream.state is StreamState.WAITING
        made.stream.tick(silent_since + 11, keep_alive_s=10, slow_s=60)
        await settle()
        assert (made.stream.state, made.server.bodies) == (StreamState.OPEN, [KEEP_ALIVE])
        made.stream.push(b"a")
        made.stream.tick(silent_since + 1000, keep_alive_s=10, slow_s=60)
        await settle()
        assert made.server.transport.written == [b"1\r\na\r\n"]


async def test_a_server_that_ends_lets_go_of_the_request() -> None:
    async with world() as made:
        await made.open()
        assert made.task is not None
        made.task.cancel()
        await asyncio.gather(made.task, return_exceptions=True)
        assert (made.stream.state, made.num_gone) == (StreamState.OVER, 1)


async def test_a_server_that_is_not_known_gets_all_data_by_messages() -> None:
    async with world() as made:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        made.task = asyncio.create_task(made.stream({}, made.server.receive, send))
        for data in (b"a", b"b"):
            made.stream.push(data)
            await settle()
        made.stream.close()
        await made.ended()
        assert [message.get("body") for message in sent] == [None, b"a", b"b", b""]
