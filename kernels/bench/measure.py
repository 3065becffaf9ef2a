"""Measure on the device at hand: its ceilings, an operation's time, a table of both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

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
    unit: str  # GB/s or TFLOP/s
    peer: str = ""
    peer_us: float | None = None

    def line(self, ceilings: Ceilings) -> str:
        """Give the line, with the share of the ceiling and the peer's time where there is one."""
        ceiling = ceilings.copy_gbps if self.unit == "GB/s" else ceilings.matmul_tflops
        peer = (
            ""
            if self.peer_us is None
            else f"{self.peer} {self.peer_us:.1f} us ({self.peer_us / self.us:.2f}x)"
        )
        share = 100 * self.achieved / ceiling
        return f"| {self.op} | {self.shape} | {self.us:.1f} | {self.achieved:.0f} {self.unit} | {share:.0f} % | {peer} |"


def time_us(
    call: Callable[[Any], object], sets: Sequence[Any], *, replays: int = 7, min_calls: int = 8
) -> float:
    """Give the median microseconds of call(one of the sets), launch gaps excluded.

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
    times = []
    for _ in range(replays):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return 1000 * median(times[1:]) / (rounds * len(sets))


def measure_ceilings() -> Ceilings:
    """Time a copy of 4 GiB and a product of 8192-cubed random bf16 matrices."""
    source = torch.empty(1 << 30, dtype=torch.int32, device="cuda").random_()
    to = torch.empty_like(source)
    # By events alone: a captured copy becomes a memcpy node, which reached 2.7 TB/s where the plain call
    # reaches 4.3.
    copies = []
    for _ in range(8):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        to.copy_(source)
        end.record()
        end.synchronize()
        copies.append(1000 * begin.elapsed_time(end))
    copy = median(copies[2:])
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    product = time_us(lambda a: torch.mm(a, b, out=out), [a])
    return Ceilings(2 * source.nbytes / copy / 1e3, 2 * 8192**3 / product / 1e6)


def report(rows: Sequence[Row], ceilings: Ceilings) -> None:
    """Print the table, as kernels/README.md has it."""
    print("| op | shape | us | achieved | of peak | beside |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(row.line(ceilings))
