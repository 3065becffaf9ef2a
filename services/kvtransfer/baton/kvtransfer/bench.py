"""Measure KV transfer beside two bare ZeroMQ sockets: same machine, same run, same bytes, taken in turn.

The bare pair is one PUSH and one PULL with zero-copy frames, whose receiver looks at nothing and keeps nothing. Ours
checks a keyed tag and an xxh3-128 for each block on both sides, and copies each block to its place. Source and sink
are two processes. Rates are medians over the rounds.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Literal, cast

import msgspec
import numpy as np
import zmq

from baton.kvtransfer.exporter import Exporter
from baton.kvtransfer.importer import Importer
from baton.kvtransfer.loop import TransferThread
from baton.kvtransfer.memory import HostMemory
from baton.kvtransfer.receiving import Fetched, FetchFailed
from baton.kvtransfer.settings import MIB, TransferConfig
from baton.kvtransfer.sockets import Context, make_context
from baton.kvtransfer.transports.ipc import IpcTransport
from baton.kvtransfer.transports.tcp import TcpTransport
from baton.kvtransfer.transports.transport import Transport
from baton.kvtransfer.wire import DIGEST_NBYTES, layout_fingerprint

Scheme = Literal["tcp", "ipc"]
_EPOCH = 0
_DEADLINE_S = 120.0


class Plan(msgspec.Struct, frozen=True):
    """What is moved, and how; both processes are told."""

    scheme: Scheme = "tcp"
    block_nbytes: int = 2 * MIB
    num_blocks: int = 32
    """Of one transfer."""
    num_transfers: int = 4
    """Open at the same time."""
    repeats: int = 4
    """Of all transfers in a round, the next one beginning when one ends."""
    scattered: bool = False
    """Whether blocks lie apart in both memories, as in an old pool, or side by side."""
    num_sockets: int = TransferConfig().num_stripes
    frame_nbytes: int = TransferConfig().frame_nbytes

    @property
    def round_nbytes(self) -> int:
        return self.block_nbytes * self.num_blocks * self.total_transfers

    @property
    def total_transfers(self) -> int:
        return self.num_transfers * self.repeats

    @property
    def config(self) -> TransferConfig:
        return TransferConfig(num_sockets=self.num_sockets, frame_nbytes=self.frame_nbytes)

    def memory(self, fill: int) -> HostMemory:
        """Make a memory of all transfers' blocks, each page touched."""
        num_blocks = self.num_blocks * self.num_transfers
        return HostMemory(np.full(num_blocks * self.block_nbytes, fill, dtype=np.uint8), num_blocks)

    def block_ids(self, transfer: int) -> list[int]:
        """Give the blocks of one transfer; the next set of transfers has the same again."""
        transfer %= self.num_transfers
        if self.scattered:
            return list(range(transfer, self.num_blocks * self.num_transfers, self.num_transfers))
        return list(range(transfer * self.num_blocks, (transfer + 1) * self.num_blocks))

    def hashes(self) -> list[bytes]:
        """Give stand-ins for block hashes."""
        return [index.to_bytes(DIGEST_NBYTES, "big") for index in range(self.num_blocks)]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Rates in GB/s (1e9 bytes), a number for each round."""

    plan: Plan
    bare: tuple[float, ...]
    ours: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Ours over bare, medians."""
        return statistics.median(self.ours) / statistics.median(self.bare)

    def __str__(self) -> str:
        return (
            f"{self.plan.scheme:4} block {self.plan.block_nbytes >> 10:5} KiB "
            f"{'scattered' if self.plan.scattered else 'adjacent ':9} {self.plan.num_sockets} sockets: "
            f"bare {statistics.median(self.bare):5.2f} GB/s, ours {statistics.median(self.ours):5.2f} GB/s, "
            f"{100 * self.ratio:.0f} %"
        )


class _BenchTicket(msgspec.Struct, frozen=True):
    request_id: bytes
    secret: bytes
    layout: str
    source: str
    epoch: int = _EPOCH
    source_incarnation: str = "bench"


def measure(plan: Plan | None = None, *, rounds: int = 7) -> Measurement:
    """Move the plan's bytes in turn over bare sockets and over ours, and give the rates."""
    plan = plan or Plan()
    child = subprocess.Popen(
        [sys.executable, "-m", "baton.kvtransfer.bench", "--source", msgspec.json.encode(plan).decode()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        hello = json.loads(child.stdout.readline())
        sink = _Sink(plan, child, hello["bare"], hello["endpoint"])
        sink.bare_round()
        sink.our_round(0)
        bare, ours = [], []
        for index in range(1, rounds + 1):
            bare.append(plan.round_nbytes / sink.bare_round() / 1e9)
            ours.append(plan.round_nbytes / sink.our_round(index) / 1e9)
        sink.close()
    finally:
        child.stdin.close()
        child.wait(timeout=10)
    return Measurement(plan, tuple(bare), tuple(ours))


class _Sink:
    def __init__(self, plan: Plan, child: subprocess.Popen[str], bare: str, endpoint: str) -> None:
        self._plan = plan
        self._child = child
        self._endpoint = endpoint
        self._context = make_context(plan.config)
        self._pull = self._context.socket(zmq.PULL)
        self._pull.setsockopt(zmq.RCVHWM, plan.config.receive_queue)
        self._pull.connect(bare)
        self._layout = layout_fingerprint(plan.block_nbytes)
        self._importer = Importer(
            plan.memory(0),
            self._layout,
            incarnation="sink",
            config=plan.config,
            transports=_transports(plan.scheme),
        )

    def bare_round(self) -> float:
        """Give the seconds that one round takes over bare sockets."""
        started = time.perf_counter()
        self._say("bare")
        missing = self._plan.round_nbytes
        while missing:
            missing -= len(self._pull.recv(copy=False).buffer)
        return time.perf_counter() - started

    def our_round(self, index: int) -> float:
        """Give the seconds that one round takes over ours, `num_transfers` being open at any time."""
        started = time.perf_counter()
        self._say(f"ours {index}")
        next_transfer = 0
        while next_transfer < self._plan.num_transfers:
            self._fetch(index, next_transfer)
            next_transfer += 1
        deadline = time.monotonic() + _DEADLINE_S
        while self._importer.num_open:
            self._importer.poll(100)
            for event in self._importer.events():
                assert not isinstance(event, FetchFailed), event
                if isinstance(event, Fetched) and next_transfer < self._plan.total_transfers:
                    self._fetch(index, next_transfer)
                    next_transfer += 1
            assert time.monotonic() < deadline, "the transfer does not end"
        return time.perf_counter() - started

    def close(self) -> None:
        self._pull.close(linger=0)
        self._importer.close()
        self._context.term()

    def _fetch(self, index: int, transfer: int) -> None:
        ticket = _BenchTicket(_request_id(index, transfer), bytes(16), self._layout, self._endpoint)
        self._importer.fetch(ticket, 0, self._plan.hashes(), self._plan.block_ids(transfer))

    def _say(self, line: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()


def _serve_source(plan: Plan) -> None:
    """Be the other process: send what the lines of the standard input ask for."""
    memory = plan.memory(1)
    context: Context = make_context(plan.config)
    push = context.socket(zmq.PUSH)
    push.setsockopt(zmq.SNDHWM, plan.config.send_queue)
    bare = _transports(plan.scheme)[0]
    layout = layout_fingerprint(plan.block_nbytes)
    exporter = Exporter(
        memory, layout, incarnation="bench", config=plan.config, transports=_transports(plan.scheme)
    )
    thread = TransferThread(exporter).start()
    print(json.dumps({"bare": bare.bind(push, 0), "endpoint": exporter.endpoint}), flush=True)
    for line in sys.stdin:
        if line.startswith("bare"):
            _send_bare(plan, memory, push)
            continue
        exporter.events()
        for transfer in range(plan.total_transfers):
            request_id = _request_id(int(line.split()[1]), transfer)
            exporter.offer(_BenchTicket(request_id, bytes(16), layout, ""))
            exporter.publish(request_id, _EPOCH, plan.block_ids(transfer), plan.hashes())
            exporter.finish(request_id, _EPOCH)
    thread.stop()
    push.close(linger=0)
    bare.close()
    context.term()


def _send_bare(plan: Plan, memory: HostMemory, push: zmq.Socket[bytes]) -> None:
    frame_blocks = max(1, plan.frame_nbytes // plan.block_nbytes)
    num_blocks = plan.num_blocks * plan.num_transfers
    for _ in range(plan.repeats):
        for first in range(0, num_blocks, frame_blocks):
            (view,) = memory.stage(range(first, min(num_blocks, first + frame_blocks))).views
            push.send(view, copy=False)


def _request_id(index: int, transfer: int) -> bytes:
    return index.to_bytes(8, "big") + transfer.to_bytes(8, "big")


def _transports(scheme: Scheme) -> tuple[Transport, ...]:
    return (TcpTransport(),) if scheme == "tcp" else (IpcTransport(),)


def main(arguments: list[str]) -> None:
    """Print a table: `python -m baton.kvtransfer.bench [rounds]`."""
    if arguments[:1] == ["--source"]:
        _serve_source(msgspec.json.decode(arguments[1], type=Plan))
        return
    rounds = int(arguments[0]) if arguments else 7
    for scheme in cast(tuple[Scheme, ...], ("tcp", "ipc")):
        for block_nbytes, num_blocks, scattered in (
            (2 * MIB, 32, False),
            (128 << 10, 512, False),
            (128 << 10, 512, True),
        ):
            plan = Plan(scheme=scheme, block_nbytes=block_nbytes, num_blocks=num_blocks, scattered=scattered)
            print(measure(plan, rounds=rounds), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
