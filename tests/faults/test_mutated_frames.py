"""Frames of the services' own messages, changed at random: decoders refuse or read them, live sockets go on for others.

FRAMES and LIVE_FRAMES say how many; `make soak` draws a million and a hundred thousand. Those of KV that come from
strangers are in tests/kvtransfer/test_transfer.py.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import zmq
from tests.processes import eventually
from tests.router.test_flow import ANSWER, PROMPT, World
from tests.worker.small_router import Link
from tests.worker.test_mailbox import INFO

from baton.kvtransfer import wire
from baton.messages import (
    BadMessage,
    Blocks,
    Cancel,
    ChoiceStart,
    Ended,
    Hello,
    LegError,
    Legs,
    Load,
    OpenLeg,
    Outputs,
    Start,
    Ticket,
    Token,
    TokenLogprobs,
    Transfer,
    Welcome,
    decode_to_router,
    decode_to_worker,
    encode,
)
from baton.prompt import Prompt
from baton.protocol import SamplingParams
from baton.router.pool import Worker
from baton.router.workers import WorkerClient
from baton.wakeup import Wakeup
from baton.worker.mailbox import Mailbox

pytestmark = pytest.mark.usefixtures("quiet_log")
NUM_FRAMES = int(os.environ.get("FRAMES", "40000"))
NUM_LIVE = int(os.environ.get("LIVE_FRAMES", "4000"))
ID, HEX = bytes(range(16)), bytes(range(16)).hex()
SECRET = b"s" * 16
AT_ONCE = 1000
"""Frames that are sent before the other side is heard: below what a socket keeps for who does not read."""

_TICKET = Ticket(ID, 1, SECRET, "layout", "tcp://127.0.0.1:1", "i", 3)
_PARAMS = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=5, stop=["a"], logit_bias={4: 1.0}, n=2)
TO_WORKER: Sequence[bytes] = [
    encode(each)
    for each in (
        Hello("router", True, "", 3, [OpenLeg(HEX, 1, [0, 1])]),
        Start(
            HEX,
            1,
            "decode",
            Prompt([1, 2, 3]),
            [ChoiceStart(0, [9]), ChoiceStart(1)],
            _PARAMS,
            7,
            0,
            9.0,
            b"s",
            _TICKET,
        ),
        Cancel(HEX, 1, 0),
    )
]
_TOKEN = Token(HEX, 1, 0, 3, 9, "length", None, 1, 1, TokenLogprobs([9, 8], [-0.1, -2.0], [1, 2]))
TO_ROUTER: Sequence[bytes] = [
    encode(each)
    for each in (
        Welcome(INFO, Load(num_running=3)),
        Outputs(
            "w",
            "i",
            [_TOKEN],
            Load(),
            [Ended(HEX, 1, LegError("internal", "x"))],
            [Transfer(HEX, 1, "i", 3, 9, 0.1, 0.1)],
        ),
        Legs("i", 3, [OpenLeg(HEX, 1, [0])]),
        Blocks("w", "i", 1, [ID], [ID], True),
    )
]
TO_EXPORTER = [
    wire.seal(each, SECRET) for each in (wire.Fetch(ID, 0, "layout", 0, 4, b"h" * 16), wire.Credit(ID, 0, 4))
]
TO_IMPORTER = [
    wire.seal(each, SECRET)
    for each in (wire.Blocks(ID, 0, "layout", 0, b"h" * 32, b"c" * 32), wire.End(ID, 0, 1, 0.5, b"meta"))
]


def mutated(frames: Sequence[bytes], rng: random.Random) -> bytes:
    """Change one of the frames: bits, bytes, its end, a piece of another in it."""
    frame = bytearray(rng.choice(frames))
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(frame) + 1)
        match rng.randrange(6):
            case 0 if at < len(frame):
                frame[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(frame):
                frame[at] = rng.choice((0, 1, 0x7F, 0x80, 0x90, 0xC0, 0xC6, 0xCF, 0xDB, 0xDD, 0xDF, 0xFF))
            case 2:
                frame[at:at] = rng.randbytes(rng.choice((1, 4, 9)))
            case 3:
                del frame[at : at + rng.choice((1, 4, 9))]
            case 4 if at:
                del frame[at:]
            case _:
                other = rng.choice(frames)
                begin = rng.randrange(len(other))
                frame[at : at + 8] = other[begin : begin + rng.choice((2, 8, 40))]
    return bytes(frame)


def to_exporter(frame: bytes) -> object:
    return wire.parse(frame, wire.TO_EXPORTER)


def to_importer(frame: bytes) -> object:
    return wire.parse(frame, wire.TO_IMPORTER)


@pytest.mark.parametrize(
    ("name", "frames", "decode"),
    [
        ("to worker", TO_WORKER, decode_to_worker),
        ("to router", TO_ROUTER, decode_to_router),
        ("to exporter", TO_EXPORTER, to_exporter),
        ("to importer", TO_IMPORTER, to_importer),
    ],
)
def test_a_decoder_reads_a_mutated_frame_or_refuses_it(
    name: str, frames: Sequence[bytes], decode: Callable[[bytes], object]
) -> None:
    rng, num_read = random.Random(name), 0
    for frame in frames:
        decode(frame)
    for _ in range(NUM_FRAMES // 4):
        try:
            decode(mutated(frames, rng))
            num_read += 1
        except (BadMessage, wire.BadFrame):
            pass
    assert num_read < NUM_FRAMES // 4


# -- live sockets -----------------------------------------------------------------------------------------------------


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    made = Mailbox(Wakeup())
    yield made
    made.close()


def test_a_worker_that_is_sent_mutated_frames_hears_others_as_before(mailbox: Mailbox) -> None:
    endpoint = mailbox.bind("tcp://127.0.0.1:*")
    mailbox.start(INFO)
    rng, context = random.Random(1), zmq.Context()
    evil, good = context.socket(zmq.DEALER), Link(endpoint, "good")
    try:
        evil.setsockopt(zmq.LINGER, 0)
        evil.setsockopt(zmq.SNDHWM, 0)
        evil.connect(endpoint)
        evil.send(encode(Hello("evil")))
        for sent in range(0, NUM_LIVE // 2, AT_ONCE):
            for _ in range(AT_ONCE):
                evil.send_multipart([mutated(TO_WORKER, rng)] * (1 + (rng.random() < 0.01)))
            good.info = None
            eventually(lambda: (good.pump(), good.info)[1], f"an answer after {sent + AT_ONCE} frames")
            mailbox.take()
            while evil.poll(0):
                evil.recv()
        assert mailbox.dropped["garbage"] > NUM_LIVE // 10
        assert mailbox._thread.is_alive()
        assert len(mailbox._peers) < NUM_LIVE  # each a router's name that decodes; they are forgotten in 10 s
    finally:
        evil.close()
        good.socket.close()
        context.destroy(linger=0)


@pytest.mark.asyncio
async def test_a_router_that_is_sent_mutated_frames_serves_the_others_streams() -> None:
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    world, rng = World(), random.Random(2)
    bad: list[str] = []
    good = world.join("d", "decode")
    client = WorkerClient(
        context,
        f"tcp://127.0.0.1:{port}",
        world.config,
        world.pool.on_message,
        lambda _client, reason: bad.append(reason),
    )
    evil = Worker(client, INFO, Load())
    try:
        running = world.begin(max_tokens=len(ANSWER))
        while not socket.poll(0):
            client.hello(Hello("r"))
            await asyncio.sleep(0.001)
        identity = socket.recv_multipart()[0]
        world.pool._of_client[client] = evil
        num_sent = 0
        for at in range(len(ANSWER)):
            for _ in range(NUM_LIVE // 2 // len(ANSWER)):
                socket.send_multipart([identity, mutated(TO_ROUTER, rng)])
                num_sent += 1
                if num_sent % AT_ONCE == 0:
                    await asyncio.sleep(0)
            mark = f"the end of part {at}".encode()
            socket.send_multipart([identity, mark, mark])
            num_bad = len(bad)
            while "2 frames" not in bad[num_bad:]:
                await asyncio.sleep(0.001)
            assert not running.is_over
            world.say(good, running, at)
        assert running.is_over
        assert world.heard.tokens == {0: ANSWER}
        assert world.heard.is_ended
        assert len(bad) > NUM_LIVE // 10
        assert len(PROMPT) == world.heard.usage.num_prompt  # type: ignore[union-attr]
        assert not world.dispatcher.flows
    finally:
        client.close()
        socket.close()
        await world.pool.close()
        context.destroy(linger=0)
