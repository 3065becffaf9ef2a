"""What the calls of one message cost between two GPUs: the interpreter's time until they return, and all until the GPU is done.

In one process, whose GPUs read each other as `cuda_ipc` lets two processes do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

from baton.kvtransfer.bench.plan import Plan, device_array
from baton.kvtransfer.device_memory import Sums

REPEATS = 20


def launches(plan: Plan) -> Iterator[str]:
    """Tell of each call, in a line: microseconds of the interpreter, and until the GPU is done."""
    import torch

    from baton.kvtransfer.cuda_copies import CudaCopies

    ours, theirs = (device_array(plan, of_importer=which, fill=0) for which in (True, False))
    ours[:1].copy_(theirs[:1])  # torch lets the GPUs read each other
    copies = CudaCopies(ours)
    address = theirs.data_ptr()
    for count in (16, 32, 64):
        apart, beside = list(range(0, 2 * count, 2)), list(range(count))
        calls: dict[str, Callable[[], Sums]] = {
            "copies and sum, scattered": partial(copies.from_peer, address, apart, apart, ()),
            "copies and sum, adjacent": partial(copies.from_peer, address, beside, beside, ()),
            "sum": partial(copies.sum_up, apart),
        }
        for name, call in calls.items():
            taken = sorted(_time(call, torch.cuda.synchronize) for _ in range(REPEATS))
            returned, done = (1e6 * statistics.median(each) for each in zip(*taken, strict=True))
            rate = count * plan.block_nbytes / done / 1e3
            yield f"{count} blocks, {name}: returned after {returned:.0f} us, done after {done:.0f} us ({rate:.0f} GB/s)"


def _time(call: Callable[[], Sums], synchronize: Callable[[], None]) -> tuple[float, float]:
    synchronize()
    started_at = time.perf_counter()
    sums = call()
    returned = time.perf_counter() - started_at
    synchronize()
    done = time.perf_counter() - started_at
    sums.read()
    return returned, done
