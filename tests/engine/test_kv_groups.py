"""How layers are grouped, what a group still reads, and what of a prefix counts as known."""

from __future__ import annotations

import dataclasses

import torch
from tests.engine.test_scheduler import make, run_until_computed, sequence, step

from baton.block_hash import block_name
from baton.engine.kv_cache import KVCacheSpec
from baton.engine.prefix_cache import PrefixCache
from baton.engine.windows import Reach


@dataclasses.dataclass
class Layers:
    """What a KV spec asks of a model's."""

    windows: list[int | None]
    num_kv_heads: int = 2
    head_dim: int = 8
    is_encoder: bool = False
    latent: object = None

    def windows_within(self, max_model_len: int) -> tuple[int | None, ...]:
        return tuple(None if window is None or window >= max_model_len else window for window in self.windows)


def spec_of(*windows: int | None, max_model_len: int = 1000) -> KVCacheSpec:
    return KVCacheSpec.of(Layers(list(windows)), 16, torch.float32, max_model_len)  # type: ignore[arg-type]


def test_layers_that_see_all_are_one_group_with_the_line_that_fingerprints_know() -> None:
    spec = spec_of(None, None, 4096)
    assert [(group.layers, group.kind) for group in spec.groups] == [((0, 1, 2), "full")]
    assert spec.describe() == "block-major 3x2x16x2x8 float32"


def test_groups_have_as_many_layers_as_the_smallest_kind() -> None:
    spec = spec_of(64, 64, None, 64, 64, None)
    assert [group.layers for group in spec.groups] == [(2, 5), (0, 1), (3, 4)]
    assert spec.windows == (None, 64, 64)
    assert spec.places == [(1, 0), (1, 1), (0, 0), (2, 0), (2, 1), (0, 1)]
    assert spec.block_shape == (2, 2, 16, 2, 8)
    assert spec.describe() != spec_of(64, 64, 64, 64, None, None).describe()


def test_a_kind_with_few_more_layers_makes_no_group_of_its_own_for_them() -> None:
    assert [group.layers for group in spec_of(64, None, 64, None, 64).groups] == [(1, 3), (0, 2), (4,)]
    assert [len(group.layers) for group in spec_of(*[64, None] * 4, 64).groups] == [4, 5]


def test_what_travels_goes_block_after_block_and_of_windows_only_the_end() -> None:
    reach = Reach(4, (None, 6))
    assert reach.first_block(1, 4) == 2  # the last token, computed again, sees position 10
    assert list(reach.wanted(1, 4, 4)) == [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert (reach.num_wanted(0, 4), reach.num_wanted(3, 4)) == (6, 2)


def test_a_window_bounds_what_a_sequence_holds() -> None:
    reach = Reach(16, (None, 4096), largest_chunk=512)
    assert reach.num_held(100_000) == 6250 + (4096 + 512) // 16 + 2
    assert reach.num_held(1000) == 2 * 63


def test_a_hit_needs_every_group_and_of_windows_only_what_they_reach() -> None:
    scheduler = make(windows=(None, 6))
    prompt = list(range(20))
    a = sequence("a", prompt, max_new=2)
    run_until_computed(scheduler, a)
    scheduler.finish(a)
    cache = scheduler.cache
    assert cache is not None
    for at in (0, 1):  # out of the window's reach at 16 tokens
        _forget(cache, block_name(a.block_hashes[at], 1))
    b = sequence("b", prompt)
    scheduler.add(b)
    assert step(scheduler)["b"] == (16, 4)
    scheduler.finish(b)
    _forget(cache, block_name(b.block_hashes[3], 1))
    c = sequence("c", prompt)
    scheduler.add(c)
    assert step(scheduler)["c"] == (0, 16), "no shorter beginning has its window's blocks"
    scheduler.pool.verify()


def test_of_a_fetch_that_failed_only_what_all_groups_can_go_on_from_is_kept() -> None:
    scheduler = make(block_size=4, windows=(None, 6))
    a = sequence("a", 24)
    _, names = scheduler.receive(a)
    assert len(names) == 6 + 2
    assert len(scheduler.reserve(a, 7)) == 7
    assert scheduler.admit(a, 7) == 0, "of the windows' blocks only the end's were asked for"
    run_until_computed(scheduler, a)
    c = sequence("c", [*a.token_ids[:24], *range(500, 508)])
    _, names = scheduler.receive(c)
    assert (c.num_computed, len(names)) == (24, 4)
    scheduler.reserve(c, 4)
    assert scheduler.admit(c, 3) == 4, "what is known reaches as far back as any window"
    assert c.num_computed == 28
    for each in (a, c):
        scheduler.finish(each)
    assert scheduler.pool.num_held == 0


def test_readers_of_the_log_hear_of_the_first_groups_blocks() -> None:
    scheduler = make(windows=(None, 6))
    cache = scheduler.cache
    assert cache is not None
    cache.record_events = True
    a = sequence("a", 20)
    run_until_computed(scheduler, a)
    assert cache.drain_events() == [("stored", block_hash) for block_hash in a.block_hashes[:5]]
    assert cache.hashes() == a.block_hashes[:5]
    scheduler.finish(a)
    cache.clear()
    assert cache.drain_events() == [("evicted", block_hash) for block_hash in a.block_hashes[:5]]


def _forget(cache: PrefixCache, name: bytes) -> None:
    """Have the pool give one cached block up."""
    block_id = cache._block_of[name]
    cache._forget(block_id)
    cache._pool.unmark(block_id)
