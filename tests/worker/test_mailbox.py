"""The control socket: who is met, who is lost, what is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from tests.processes import HANG_S, eventually
from tests.worker.small_router import Link

from baton.curve import CurveKeys
from baton.errors import ConfigError
from baton.messages import Cancel, Hello, Load, ModelFacts, Outputs, Token, ToRouter, Welcome, WorkerInfo, encode
from baton.router.config import RouterConfig
from baton.router.workers import WorkerClient
from baton.wakeup import Wakeup
from baton.worker import mailbox as module
from baton.worker.mailbox import Mailbox, Peer, PeerLost
from baton.worker.settings import WorkerConfig

INFO = WorkerInfo(
    worker_id="w",
    incarnation="i",
    legs=("decode",),
    control="",
    kv="",
    layout="",
    model=ModelFacts(name="tiny", max_model_len=64, vocab_size=100, block_size=16),
)
Open = Callable[..., tuple[Mailbox, str]]


@pytest.fixture
def open_mailbox() -> Iterator[Open]:
    opened: list[Mailbox] = []

    def make(**keys: Any) -> tuple[Mailbox, str]:
        mailbox = Mailbox(Wakeup())
        opened.append(mailbox)
        endpoint = mailbox.bind("tcp://127.0.0.1:*", **keys)
        mailbox.start(INFO)
        return mailbox, endpoint

    yield make
    for mailbox in opened:
        mailbox.close()


def take(mailbox: Mailbox, kind: type) -> Any:
    """Wait for the first arrival of a kind."""
    found: list[Any] = []

    def look() -> bool:
        found.extend(a for a in mailbox.take() if isinstance(a, kind))
        return bool(found)

    eventually(look, f"a {kind.__name__} arrives")
    return found[0]


def outputs(*tokens: Token) -> Outputs:
    return Outputs("w", "i", list(tokens), Load())


def test_hello_is_answered_without_the_loop(open_mailbox: Open) -> None:
    mailbox, endpoint = open_mailbox()
    mailbox.load = Load(num_running=7)
    link = Link(endpoint, "r1")
    eventually(lambda: (link.pump(), link.info)[1], "welcome")
    assert link.info == INFO
    assert link.load.num_running == 7


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this system has no IPv6")
@pytest.mark.asyncio
async def test_a_router_reaches_a_worker_over_ipv6() -> None:
    answers: asyncio.Queue[ToRouter] = asyncio.Queue()

    def on_message(_client: WorkerClient, message: ToRouter) -> None:
        answers.put_nowait(message)

    def on_bad_message(_client: WorkerClient, reason: str) -> None:
        raise AssertionError(reason)

    mailbox = Mailbox(Wakeup())
    endpoint = mailbox.bind("tcp://::1:*", announce="::1")
    assert endpoint.startswith("tcp://[::1]:")
    mailbox.start(INFO)
    context: zmq.Context[Any] = zmq.Context()
    client = WorkerClient(context, endpoint, RouterConfig(), on_message, on_bad_message)
    try:
        welcome = None
        async with asyncio.timeout(HANG_S):
            while welcome is None:  # what is said before the connection stands is dropped
                client.hello(Hello("r1"))
                with contextlib.suppress(TimeoutError):
                    welcome = await asyncio.wait_for(answers.get(), 0.1)
        assert isinstance(welcome, Welcome)
        assert welcome.info == INFO
    finally:
        client.close()
        context.destroy(linger=0)
        mailbox.close()


def test_a_worker_is_refused_while_no_router_takes_it(open_mailbox: Open) -> None:
    mailbox, endpoint = open_mailbox()
    assert mailbox.refusal() == ""
    first, second = Link(endpoint, "r1"), Link(endpoint, "r2")
    first.hello = Hello("r1", refusal="block_size is 32, and 16 on d0")
    eventually(lambda: (first.pump(), mailbox.refusal())[1] == "block_size is 32, and 16 on d0", "it hears why")
    eventually(lambda: (second.pump(), first.pump(), mailbox.refusal())[2] == "", "another router takes it")
    second.hello = Hello("r2", refusal="it serves 'x', this router 'y'")
    eventually(lambda: (second.pump(), first.pump(), mailbox.refusal())[2], "both refuse")
    first.hello = Hello("r1")
    eventually(lambda: (second.pump(), first.pump(), mailbox.refusal())[2] == "", "the first takes it")


def test_the_load_comes_by_itself_when_nothing_else_does(open_mailbox: Open) -> None:
    _, endpoint = open_mailbox()
    link = Link(endpoint, "r1")
    eventually(lambda: (link.pump(), link.num_outputs >= 3)[1], "three reports")


def test_a_router_that_connects_anew_gets_what_is_left_for_it(open_mailbox: Open) -> None:
    mailbox, endpoint = open_mailbox()
    first = Link(endpoint, "r1")
    eventually(lambda: (first.pump(), first.info)[1], "welcome")
    first.send(Cancel("a" * 32, 0))
    peer, _ = take(mailbox, tuple)
    first.socket.close()
    second = Link(endpoint, "r1")
    eventually(lambda: (second.pump(), second.info)[1], "welcome on the new connection")
    mailbox.post(peer, outputs(Token("a" * 32, 0, 0, 5, 9)))
    eventually(lambda: (second.pump(), second.answer("a" * 32).ids() == [9])[1], "the token comes there")


def test_what_a_stranger_asks_for_is_dropped(open_mailbox: Open) -> None:
    mailbox, endpoint = open_mailbox()
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)
    socket.send(encode(Cancel("b" * 32, 0)))
    eventually(lambda: mailbox.dropped["stranger"] == 1, "it is counted")
    assert not mailbox.take()
    socket.close()


def test_a_roll_call_that_was_left_in_an_older_connection_says_nothing() -> None:
    mailbox = Mailbox(Wakeup())
    mailbox._info = INFO
    for identity, number in ((b"1", 5), (b"2", 6), (b"1", 4), (b"2", 7)):
        mailbox._on_message(identity, Hello("r1", number=number))
    arrived: list[Any] = mailbox.take()
    assert [hello.number for _, hello in arrived] == [5, 6, 7]
    assert arrived[0][0].identity == b"2"
    mailbox.close()


def test_a_pause_of_ones_own_is_not_the_routers_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox = Mailbox(Wakeup())
    mailbox._info = INFO
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    mailbox._on_message(b"1", Hello("r1"))
    mailbox._forget_silent()
    now[0] += 60.0
    mailbox._forget_silent()
    assert not mailbox.take()
    for _ in range(24):
        now[0] += 0.5
        mailbox._forget_silent()
    assert isinstance(mailbox.take()[0], PeerLost)
    mailbox.close()


def test_a_silent_router_is_lost(open_mailbox: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUTER_SILENCE_S", 0.3)
    mailbox, endpoint = open_mailbox()
    link = Link(endpoint, "r1")
    eventually(lambda: (link.pump(), link.info)[1], "welcome")
    assert take(mailbox, PeerLost).peer.router_id == "r1"


def test_a_router_that_does_not_read_is_bounded_and_lost(open_mailbox: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BACKLOG", 50)
    mailbox, endpoint = open_mailbox()
    link = Link(endpoint, "r1")
    eventually(lambda: (link.pump(), link.info)[1], "welcome")
    link.send(Cancel("c" * 32, 0))
    peer: Peer = take(mailbox, tuple)[0]
    heavy = outputs(*(Token("c" * 32, 0, 0, i, i) for i in range(2000)))

    def is_lost() -> bool:
        for _ in range(200):
            mailbox.post(peer, heavy)
        return any(isinstance(arrival, PeerLost) for arrival in mailbox.take())

    eventually(is_lost, "it is given up")
    assert not peer.backlog


def test_only_who_has_the_keys_is_heard(open_mailbox: Open) -> None:
    public, secret = zmq.curve_keypair()
    mailbox, endpoint = open_mailbox(keys=CurveKeys(public, secret))
    context = zmq.Context.instance()
    strangers_public, strangers_secret = zmq.curve_keypair()
    sockets = []
    for pair in (None, (strangers_public, strangers_secret), (public, secret)):
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        if pair is not None:
            socket.curve_serverkey = public
            socket.curve_publickey, socket.curve_secretkey = pair
        socket.connect(endpoint)
        with contextlib.suppress(zmq.Again):  # a stranger may be turned away before it sends: it would wait for ever
            socket.send(encode(Hello(f"router {len(sockets)}")), zmq.NOBLOCK)
            socket.send(encode(Cancel(f"{len(sockets):032d}", 0)), zmq.NOBLOCK)
        sockets.append(socket)
    _, cancel = take(mailbox, tuple)
    assert cancel.request_id == f"{2:032d}"
    assert not mailbox.take()
    for socket in sockets:
        socket.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "auto"])
def test_an_address_for_others_without_keys_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="curve"):
        WorkerConfig(host=host, announce_host="here")


def test_an_address_that_is_taken_is_said(open_mailbox: Open) -> None:
    _, endpoint = open_mailbox()
    other = Mailbox(Wakeup())
    with pytest.raises(ConfigError, match="cannot be bound"):
        other.bind(endpoint)
    other.close()
