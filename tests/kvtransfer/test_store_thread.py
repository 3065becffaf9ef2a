"""A store with its socket and threads, and two workers' tiers over it, with blocks on a CPU and, where there is one, on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.kvtransfer.blocks import wait_until
from tests.kvtransfer.live_store import LiveStore

from baton.kvtransfer.store.tier import StoreTier

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")),
]


def names(count: int) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in range(count)]


def load(tier: StoreTier, wanted: list[bytes], block_ids: list[int]) -> int:
    """Load blocks, as an engine would over many turns; return how many are good."""
    lookup = tier.look_up(wanted)
    wait_until(lambda: lookup.num_blocks is not None)
    assert lookup.num_blocks
    tier.load(lookup, block_ids[: lookup.num_blocks])
    ended: list[int] = []
    wait_until(lambda: bool(ended), lambda: ended.extend(loaded.num_blocks for loaded in tier.poll()))
    return ended[0]


def is_told(parts: LiveStore, count: int) -> Callable[[], bool]:
    return lambda: parts.told >= set(names(count))


@pytest.mark.parametrize("device", DEVICES)
def test_blocks_cross_from_worker_to_worker_bit_by_bit(parts: LiveStore, device: str) -> None:
    (kv, tier), (other_kv, other) = parts.worker(device), parts.worker(device)
    kv.normal_()
    block_ids = [3, 4, 5, 9, 8, 20]
    tier.save(names(6), block_ids)
    tier.guard(block_ids)
    saved = kv.clone()
    kv.zero_()  # its blocks are given to others at once
    wait_until(is_told(parts, 6), other.hear)
    wait_until(lambda: other.counts().num_used == 6, other.hear)
    places = [30, 31, 1, 2, 7, 39]
    assert load(other, names(6), places) == 6
    assert torch.equal(other_kv[places], saved[block_ids])
    assert other.counts().num_loaded == 6
    wait_until(lambda: parts.thread.store.num_loans == 0)


def test_a_store_that_is_started_anew_reads_its_blocks_from_disk(parts: LiveStore) -> None:
    kv, tier = parts.worker("cpu")
    kv.normal_()
    tier.save(names(3), [1, 2, 3])
    wait_until(lambda: len(parts.thread.store.disk or ()) == 3)
    parts.stop()
    parts.told.clear()
    parts.start("second")
    wait_until(is_told(parts, 3))
    wait_until(lambda: parts.thread.store.num_clients == 1)
    wait_until(lambda: parts.thread.store.slots.num_writing > 0, tier.hear)  # it has asked for slots anew
    wait_until(lambda: tier.counts().num_used == 3 and tier.has_stock, tier.hear)
    assert load(tier, names(3), [5, 6, 7]) == 3
    assert torch.equal(kv[5:8], kv[1:4])
    assert parts.thread.store.counts.num_read == 3
