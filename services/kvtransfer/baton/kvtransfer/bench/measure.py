"""Measure KV transfer beside what is bare: same machine, same run, same bytes, taken in turn.

The bare pair is one PUSH and one PULL with zero-copy frames, whose receiver looks at nothing and keeps nothing; over shm
these are unix sockets. Beside `cuda_ipc` it is one copy of all bytes from GPU to GPU in one process. Ours checks a keyed tag
and the sum of each block on both sides, and copies each block to its place, which is a GPU's memory if asked. Exporter
and importer are two processes. Rates are medians over the rounds; the processor's time is both processes', in all of
their threads, which other work on the machine stretches less than the rates.

Then single transfers: the stations of the one that took the median time, and what is left of a transfer after its last
blocks were published, when the others were published some time apart, as a prefill's chunks are.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import psutil
import zmq

from baton.kvtransfer.bench.plan import BenchSide, Plan, device_array
from baton.kvtransfer.importer import Importer
from baton.kvtransfer.imports import Fetched, FetchFailed
from baton.kvtransfer.loop import TransferThread
from baton.kvtransfer.sockets import RECEIVE_QUEUE

_DEADLINE_S = 120.0
NUM_SINGLE = 9
"""Transfers of which the median's stations are told, and as many whose exposed part is."""


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
    """The same bytes over what is bare and over ours."""

    plan: Plan
    bare: Rounds
    ours: Rounds
    stations: dict[str, float]
    """Milliseconds at which a single transfer reached each; and that both sides were in calls of their memories."""
    exposed_ms: float
    """Of a single transfer, after its last blocks were published."""

    @property
    def ratio(self) -> float:
        """Ours over bare."""
        return self.ours.rate / self.bare.rate

    def __str__(self) -> str:
        return (
            f"{self.plan.scheme:8} {self.plan.device:4} block {self.plan.block_nbytes >> 10:5} KiB "
            f"{'scattered' if self.plan.scattered else 'adjacent ':9} {self.plan.num_transfers} open: "
            f"bare {self.bare.rate:6.2f} GB/s {self.bare.cpu_s:.2f} s/GB, "
            f"ours {self.ours.rate:6.2f} GB/s {self.ours.cpu_s:.2f} s/GB, {100 * self.ratio:.0f} %, "
            f"exposed {self.exposed_ms:.2f} ms; {self.timeline}"
        )

    @property
    def timeline(self) -> str:
        """Where the milliseconds of a single transfer went."""
        return "  ".join(f"{name} {at:.2f}" for name, at in self.stations.items())


def measure(plan: Plan | None = None, *, rounds: int = 7) -> Measurement:
    """Move the plan's bytes in turn over what is bare and over ours, and give the rates."""
    plan = plan or Plan()
    child = subprocess.Popen(
        [sys.executable, "-m", "baton.kvtransfer.bench.exporting", msgspec.json.encode(plan).decode()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        importing = _Importing(plan, child)
        bare = _Counting(plan, child.pid, importing.bare_round)
        ours = _Counting(plan, child.pid, importing.our_round)
        for index in range(rounds + 1):  # the first warms up
            bare.run(index)
            ours.run(index)
        singles = [importing.single("one") for _ in range(NUM_SINGLE)]
        exposed_ms = [importing.single("chunks")[0] for _ in range(NUM_SINGLE)]
        importing.close()
    finally:
        child.stdin.close()
        child.wait(timeout=30)
    by_time = sorted((stations for _, stations in singles), key=lambda stations: stations["done"])
    return Measurement(plan, bare.rounds(), ours.rounds(), by_time[NUM_SINGLE // 2], statistics.median(exposed_ms))


class _Counting:
    """Runs rounds, and counts what they take."""

    def __init__(self, plan: Plan, exporter_pid: int, run: Callable[[], None]) -> None:
        self._plan = plan
        self._processes = psutil.Process(), psutil.Process(exporter_pid)
        self._run = run
        self._rates: list[float] = []
        self._cpu_s = 0.0

    def run(self, index: int) -> None:
        cpu_s, started_at = self._cpu_now(), time.perf_counter()
        self._run()
        if index > 0:
            self._rates.append(self._plan.round_nbytes / (time.perf_counter() - started_at) / 1e9)
            self._cpu_s += self._cpu_now() - cpu_s

    def rounds(self) -> Rounds:
        moved = self._plan.round_nbytes * len(self._rates) / 1e9
        return Rounds(tuple(self._rates), self._cpu_s / moved)

    def _cpu_now(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)


class _Importing:
    def __init__(self, plan: Plan, child: subprocess.Popen[str]) -> None:
        self._plan = plan
        self._child = child
        hello = self._heard()
        self._endpoint = hello["endpoint"]
        self._context = zmq.Context(io_threads=plan.config.num_stripes)
        self._pull = self._context.socket(zmq.PULL)
        self._pull.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE)
        self._pull.connect(hello["bare"])
        self._stirs = threading.Event()
        self._ours = BenchSide(plan, 0, self._stirs.set)
        self._importer = Importer(self._ours.side)
        self._thread = TransferThread(self._importer).start()
        self._next_number = 0
        self._copy = _device_copy(plan) if plan.scheme == "cuda_ipc" else None

    def bare_round(self) -> None:
        """Move one round's bytes without us."""
        if self._copy is not None:
            self._copy()
            return
        self._say("bare")
        missing = self._plan.round_nbytes
        while missing:
            missing -= len(self._pull.recv(copy=False).buffer)

    def our_round(self) -> None:
        """Move one round's bytes over ours, `num_transfers` being open at any time."""
        first = self._begin("round", self._plan.total_transfers)
        for transfer in range(self._plan.num_transfers):
            self._fetch(first, transfer)
        next_transfer = self._plan.num_transfers
        while self._importer.num_open:
            for _ in self._ends():
                if next_transfer < self._plan.total_transfers:
                    self._fetch(first, next_transfer)
                    next_transfer += 1

    def single(self, command: str) -> tuple[float, dict[str, float]]:
        """Move one transfer; return milliseconds: of its exposed part, and of its stations."""
        number = self._begin(command)
        timeline = self._ours.timed.timeline
        timeline.clear()
        timeline.first("asked")
        self._fetch(number, 0)
        (end,) = self._ends()
        timeline.last("done")
        self._say("times")
        theirs = self._heard()
        timeline.times |= theirs["times"]
        in_memory = {"exporter's memory": theirs["in_memory_s"], "importer's memory": timeline.in_memory_s}
        return 1000 * end.exposed_s, timeline.milliseconds() | {name: 1000 * s for name, s in in_memory.items()}

    def close(self) -> None:
        self._pull.close(linger=0)
        self._thread.stop()
        self._context.term()

    def _begin(self, command: str, count: int = 1) -> int:
        """Have transfers offered; return the first one's number."""
        first, self._next_number = self._next_number, self._next_number + count
        self._say(f"{command} {first}")
        self._heard()
        return first

    def _fetch(self, first: int, transfer: int) -> None:
        ticket = self._plan.ticket(first + transfer, self._endpoint)
        self._importer.fetch(ticket, 0, self._plan.hashes(), self._plan.block_ids(transfer))

    def _ends(self) -> list[Fetched]:
        """Wait until transfers have ended."""
        ends: list[Fetched] = []
        while not ends:
            assert self._stirs.wait(_DEADLINE_S), "the transfer does not end"
            self._stirs.clear()
            for event in self._importer.events():
                assert not isinstance(event, FetchFailed), event
                if isinstance(event, Fetched):
                    ends.append(event)
        return ends

    def _say(self, line: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def _heard(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        answer: dict[str, Any] = json.loads(self._child.stdout.readline())
        return answer


def _device_copy(plan: Plan) -> Callable[[], None]:
    """Return what copies one round's bytes from one GPU to the other, where they lie side by side."""
    import torch

    to, source = (device_array(plan, of_importer=which, fill=0) for which in (True, False))
    count = plan.num_blocks * plan.num_transfers

    def copy() -> None:
        for _ in range(plan.repeats):
            to[:count].copy_(source[:count], non_blocking=True)
        torch.cuda.synchronize(to.device)

    return copy
