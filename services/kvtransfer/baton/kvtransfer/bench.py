"""Measure KV transfer beside two bare ZeroMQ sockets: same machine, same run, same bytes, taken in turn.

The bare pair is one PUSH and one PULL with zero-copy frames, whose receiver looks at nothing and keeps nothing. Ours
checks a keyed tag and an xxh3-128 for each block on both sides, and copies each block to its place, which is a GPU's
memory if asked. Over shm the bare pair are unix sockets. Exporter and importer are two processes. Rates are medians
over the rounds; the processor's time is both processes', in all of their threads, which other work on the machine
stretches less than the rates.
"""

from __future__ import annotations

import json
import mmap
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import msgspec
import numpy as np
import psutil
import zmq

from baton.kvtransfer.device_memory import DeviceMemory
from baton.kvtransfer.exporter import Exporter
from baton.kvtransfer.importer import Importer
from baton.kvtransfer.imports import Fetched, FetchFailed
from baton.kvtransfer.loop import TransferThread
from baton.kvtransfer.memory import BlockMemory, Bytes, HostMemory
from baton.kvtransfer.settings import MIB, TransferConfig
from baton.kvtransfer.side import Side
from baton.kvtransfer.sockets import RECEIVE_QUEUE, SEND_QUEUE
from baton.kvtransfer.transports.cuda_ipc import CudaIpcTransport
from baton.kvtransfer.transports.ipc import IpcTransport
from baton.kvtransfer.transports.shm import ShmTransport
from baton.kvtransfer.transports.tcp import TcpTransport
from baton.kvtransfer.transports.transport import Transport
from baton.kvtransfer.wire import DIGEST_NBYTES, layout_fingerprint

Scheme = Literal["tcp", "ipc", "shm", "cuda_ipc"]
Device = Literal["cpu", "cuda"]
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
    device: Device = "cpu"
    """Where the blocks of both sides lie; those of the bare sockets are the host's in any case."""
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

    def host_memory(self, fill: int) -> HostMemory:
        """Make a memory of all transfers' blocks, each page touched."""
        num_blocks = self.num_blocks * self.num_transfers
        if self.scheme != "shm":
            return HostMemory(self.host_array(fill), num_blocks)
        fd = os.memfd_create("baton-bench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, num_blocks * self.block_nbytes)
        shared = np.frombuffer(mmap.mmap(fd, 0), dtype=np.uint8)
        shared[:] = fill
        return HostMemory(shared, num_blocks, fd=fd)

    def host_array(self, fill: int) -> Bytes:
        """Make the bytes of all transfers' blocks."""
        return np.full(self.num_blocks * self.num_transfers * self.block_nbytes, fill, dtype=np.uint8)

    def memory(self, fill: int) -> BlockMemory:
        """Make such a memory where the plan says."""
        if self.device == "cpu":
            return self.host_memory(fill)
        import torch

        from baton.kvtransfer.cuda_copies import CudaCopies

        shape = self.num_blocks * self.num_transfers, self.block_nbytes
        # the last device: the importer's, fill 0, is the first, so that two GPUs are used where there are two
        device = 0 if fill == 0 else torch.cuda.device_count() - 1
        kv = torch.full(shape, fill, dtype=torch.uint8, device=f"cuda:{device}")
        return DeviceMemory(CudaCopies(kv), frame_nbytes=self.frame_nbytes)

    def side(self, memory: BlockMemory, transport: Transport, on_event: Callable[[], None] = lambda: None) -> Side:
        """Put an exporter's or importer's side together."""
        layout = layout_fingerprint(self.block_nbytes)
        return Side(
            memory=memory,
            layout=layout,
            incarnation="bench",
            transports=(transport,),
            config=self.config,
            on_event=on_event,
        )

    def block_ids(self, transfer: int) -> list[int]:
        """Blocks of one transfer; the next set of transfers has the same again."""
        transfer %= self.num_transfers
        if self.scattered:
            return list(range(transfer, self.num_blocks * self.num_transfers, self.num_transfers))
        return list(range(transfer * self.num_blocks, (transfer + 1) * self.num_blocks))

    def hashes(self) -> list[bytes]:
        """Stand-ins for block hashes."""
        return [index.to_bytes(DIGEST_NBYTES, "big") for index in range(self.num_blocks)]


@dataclass(frozen=True, slots=True)
class Rounds:
    """What one way of moving the bytes gave."""

    rates: tuple[float, ...]
    """GB/s (1e9 bytes), a number for each round."""
    cpu_s: float
    """Seconds of processor time a GB, both processes, over all rounds."""

    @property
    def rate(self) -> float:
        """GB/s, the median."""
        return statistics.median(self.rates)


@dataclass(frozen=True, slots=True)
class Measurement:
    """The same bytes over bare sockets and over ours."""

    plan: Plan
    bare: Rounds
    ours: Rounds

    @property
    def ratio(self) -> float:
        """Ours over bare."""
        return self.ours.rate / self.bare.rate

    def __str__(self) -> str:
        return (
            f"{self.plan.scheme:4} {self.plan.device:4} block {self.plan.block_nbytes >> 10:5} KiB "
            f"{'scattered' if self.plan.scattered else 'adjacent ':9} {self.plan.num_sockets} sockets: "
            f"bare {self.bare.rate:5.2f} GB/s {self.bare.cpu_s:.2f} s/GB, "
            f"ours {self.ours.rate:5.2f} GB/s {self.ours.cpu_s:.2f} s/GB, {100 * self.ratio:.0f} %"
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
        [sys.executable, "-m", "baton.kvtransfer.bench", "--exporter", msgspec.json.encode(plan).decode()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        hello = json.loads(child.stdout.readline())
        importing = _Importing(plan, child, hello["bare"], hello["endpoint"])
        bare = _Counting(plan, child.pid, lambda _: importing.bare_round())
        ours = _Counting(plan, child.pid, importing.our_round)
        for index in range(rounds + 1):  # the first warms up
            bare.run(index)
            ours.run(index)
        importing.close()
    finally:
        child.stdin.close()
        child.wait(timeout=10)
    return Measurement(plan, bare.rounds(), ours.rounds())


class _Counting:
    """Runs rounds, and counts what they take."""

    def __init__(self, plan: Plan, exporter_pid: int, run: Callable[[int], None]) -> None:
        self._plan = plan
        self._processes = psutil.Process(), psutil.Process(exporter_pid)
        self._run = run
        self._rates: list[float] = []
        self._cpu_s = 0.0

    def run(self, index: int) -> None:
        cpu_s, started_at = self._cpu_now(), time.perf_counter()
        self._run(index)
        if index > 0:
            self._rates.append(self._plan.round_nbytes / (time.perf_counter() - started_at) / 1e9)
            self._cpu_s += self._cpu_now() - cpu_s

    def rounds(self) -> Rounds:
        moved = self._plan.round_nbytes * len(self._rates) / 1e9
        return Rounds(tuple(self._rates), self._cpu_s / moved)

    def _cpu_now(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)


class _Importing:
    def __init__(self, plan: Plan, child: subprocess.Popen[str], bare: str, endpoint: str) -> None:
        self._plan = plan
        self._child = child
        self._endpoint = endpoint
        self._context = zmq.Context(io_threads=plan.config.num_stripes)
        self._pull = self._context.socket(zmq.PULL)
        self._pull.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE)
        self._pull.connect(bare)
        self._layout = layout_fingerprint(plan.block_nbytes)
        self._stirs = threading.Event()
        memory = plan.memory(0)
        self._importer = Importer(plan.side(memory, _transport(plan, memory), self._stirs.set))
        self._thread = TransferThread(self._importer).start()

    def bare_round(self) -> None:
        """Move one round's bytes over bare sockets."""
        self._say("bare")
        missing = self._plan.round_nbytes
        while missing:
            missing -= len(self._pull.recv(copy=False).buffer)

    def our_round(self, index: int) -> None:
        """Move one round's bytes over ours, `num_transfers` being open at any time."""
        self._say(f"ours {index}")
        next_transfer = 0
        while next_transfer < self._plan.num_transfers:
            self._fetch(index, next_transfer)
            next_transfer += 1
        while self._importer.num_open:
            assert self._stirs.wait(_DEADLINE_S), "the transfer does not end"
            self._stirs.clear()
            for event in self._importer.events():
                assert not isinstance(event, FetchFailed), event
                if isinstance(event, Fetched) and next_transfer < self._plan.total_transfers:
                    self._fetch(index, next_transfer)
                    next_transfer += 1

    def close(self) -> None:
        self._pull.close(linger=0)
        self._thread.stop()
        self._context.term()

    def _fetch(self, index: int, transfer: int) -> None:
        ticket = _BenchTicket(_request_id(index, transfer), bytes(16), self._layout, self._endpoint)
        self._importer.fetch(ticket, 0, self._plan.hashes(), self._plan.block_ids(transfer))

    def _say(self, line: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()


def _serve_exporter(plan: Plan) -> None:
    """Be the other process: send what the lines of the standard input ask for."""
    memory, bare_blocks = plan.memory(1), plan.host_array(1).data
    context = zmq.Context(io_threads=plan.config.num_stripes)
    push = context.socket(zmq.PUSH)
    push.setsockopt(zmq.SNDHWM, SEND_QUEUE)
    bare = TcpTransport() if plan.scheme == "tcp" else IpcTransport()
    layout = layout_fingerprint(plan.block_nbytes)
    exporter = Exporter(plan.side(memory, _transport(plan, memory)))
    thread = TransferThread(exporter).start()
    print(json.dumps({"bare": bare.bind(push, 0), "endpoint": exporter.endpoint}), flush=True)
    for line in sys.stdin:
        if line.startswith("bare"):
            _send_bare(plan, bare_blocks, push)
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


def _send_bare(plan: Plan, blocks: memoryview, push: zmq.Socket[bytes]) -> None:
    frame_blocks = max(1, plan.frame_nbytes // plan.block_nbytes)
    num_blocks = plan.num_blocks * plan.num_transfers
    for _ in range(plan.repeats):
        for first in range(0, num_blocks, frame_blocks):
            push.send(blocks[first * plan.block_nbytes : (first + frame_blocks) * plan.block_nbytes], copy=False)


def _request_id(index: int, transfer: int) -> bytes:
    return index.to_bytes(8, "big") + transfer.to_bytes(8, "big")


def _transport(plan: Plan, memory: BlockMemory) -> Transport:
    if plan.scheme == "cuda_ipc":
        from baton.kvtransfer.cuda_copies import CudaCopies

        assert isinstance(memory, DeviceMemory)
        assert isinstance(memory.copies, CudaCopies)
        return CudaIpcTransport(memory.copies)
    if plan.scheme == "shm":
        return ShmTransport(memory.fd if isinstance(memory, HostMemory) else None)
    return TcpTransport() if plan.scheme == "tcp" else IpcTransport()


SHAPES = ((2 * MIB, 32, False), (128 << 10, 512, False), (128 << 10, 512, True))
"""Bytes of a block, blocks of a transfer, whether they lie apart: a block of an 8B model, then of the demo model."""


def plans(device: Device = "cpu") -> list[Plan]:
    """What is measured: each transport and shape."""
    return [
        Plan(scheme=scheme, block_nbytes=block_nbytes, num_blocks=num_blocks, scattered=scattered, device=device)
        for scheme in cast(tuple[Scheme, ...], ("tcp", "ipc", "shm" if device == "cpu" else "cuda_ipc"))
        for block_nbytes, num_blocks, scattered in SHAPES
    ]


def main(arguments: list[str]) -> None:
    """Be the exporter of a measurement."""
    assert arguments[0] == "--exporter"
    _serve_exporter(msgspec.json.decode(arguments[1], type=Plan))


if __name__ == "__main__":
    main(sys.argv[1:])
