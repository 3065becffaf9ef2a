"""Measure on the device at hand: its ceilings, and an operation's time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

import torch


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this device reached in this run: a large copy (bytes read and written) and a large bf16 product of random data."""

    copy_gbps: float
    matmul_tflops: float


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: an operation at a shape."""

    op: str
    shape: str
    us: float
    achieved: float
    unit: Literal["GB/s", "TFLOP/s"]
    peers: dict[str, float] = field(default_factory=dict)
    """Microseconds of others at the same work."""

    def share(self, ceilings: Ceilings) -> float:
        """The part of the ceiling that was reached, 0 to 1."""
        return self.achieved / (ceilings.copy_gbps if self.unit == "GB/s" else ceilings.matmul_tflops)

    @property
    def beside(self) -> str:
        """Name each peer with its time and how many times ours that is."""
        return ", ".join(f"{name} {us:.1f} us ({us / self.us:.2f}x)" for name, us in self.peers.items())


def time_us(call: Callable[[Any], object], sets: Sequence[Any], *, replays: int = 7, min_calls: int = 8) -> float:
    """Measure the median microseconds of call(one of the sets), launch gaps excluded.

    sets: data of the same shape, together larger than the cache, so that a warm cache helps no call. The
    calls are captured into one CUDA graph, whose replays are timed with events.
    """
    for one in sets[:2]:
        call(one)
    torch.cuda.synchronize()
    rounds = -(-min_calls // len(sets))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for one in sets:
                call(one)
    times = [_event_us(graph.replay) for _ in range(replays)]
    return median(times[1:]) / (rounds * len(sets))


def time_peers(calls: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Time each peer; one that does not take the shape is told of and left out."""
    found = {}
    for name, time_it in calls.items():
        try:
            found[name] = time_it()
        except Exception as error:  # whatever another library raises costs none of our own figures
            print(f"{name} was left out: {type(error).__name__}: {str(error)[:200]}", flush=True)
    return found


def measure_ceilings() -> Ceilings:
    """Time a copy of 4 GiB and a product of 8192-cubed random bf16 matrices."""
    source = torch.empty(1 << 30, dtype=torch.int32, device="cuda").random_()
    to = torch.empty_like(source)
    # By events alone: a captured copy becomes a memcpy node, which reached 2.7 TB/s where the plain call
    # reaches 4.3.
    copy = median([_event_us(lambda: to.copy_(source)) for _ in range(8)][2:])
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    product = time_us(lambda a: torch.mm(a, b, out=out), [a])
    return Ceilings(2 * source.nbytes / copy / 1e3, 2 * 8192**3 / product / 1e6)


def _event_us(call: Callable[[], object]) -> float:
    """Measure the microseconds between the device's marks around a call."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    call()
    end.record()
    end.synchronize()
    return 1000.0 * float(begin.elapsed_time(end))
