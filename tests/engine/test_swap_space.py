"""What leaves the device's pool for host memory comes back as it was, or is computed again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.cuda_driver import joint_runs
from baton.engine.pinned_memory import anonymous_memory, piece_slots
from baton.engine.slot_copies import slot_copies
from baton.engine.swap_space import SwapSpace
from baton.host_tier import Copy, SlotCopies

NBYTES = 4096


class Blocks:
    """A device's blocks whose content says what they hold, and slots beside them."""

    def __init__(self, num_blocks: int, num_slots: int) -> None:
        self.kv = torch.zeros((num_blocks, NBYTES // 4), dtype=torch.float32)
        self.memory = anonymous_memory(num_slots * NBYTES)
        self.copies = slot_copies(lambda: self.kv, self.memory)

    def write(self, block_id: int, value: int) -> None:
        self.kv[block_id] = value

    def read(self, block_id: int) -> int:
        assert len(set(self.kv[block_id].tolist())) == 1, "a block is torn"
        return int(self.kv[block_id, 0])


class Late:
    """Copies that are done when told to be, as a GPU's are: bytes move at the latest moment that is allowed."""

    def __init__(self, copies: SlotCopies) -> None:
        self._copies = copies
        self.num_slots = copies.num_slots
        self._open: list[_LateCopy] = []

    def save(self, block_ids: Sequence[int], slots: Sequence[int]) -> Copy:
        return self._start(_LateCopy(list(block_ids), lambda: self._copies.save(block_ids, slots)))

    def load(self, slots: Sequence[int], block_ids: Sequence[int]) -> Copy:
        return self._start(_LateCopy([], lambda: self._copies.load(slots, block_ids)))

    def guard(self, block_ids: Sequence[int]) -> None:
        for copy in self._open:
            if set(copy.reads) & set(block_ids):
                copy.end()

    def end_some(self, num: int) -> None:
        for copy in self._open[:num]:
            copy.end()
        del self._open[:num]

    def close(self) -> None:
        self.end_some(len(self._open))

    def _start(self, copy: _LateCopy) -> _LateCopy:
        self._open.append(copy)
        return copy


class _LateCopy:
    def __init__(self, reads: list[int], move) -> None:
        self.reads = reads
        self._move = move
        self._done: Copy | None = None

    def end(self) -> None:
        self._done = self._done or self._move()

    def is_done(self) -> bool:
        return self._done is not None

    def sums(self) -> list[bytes]:
        assert self._done is not None
        return self._done.sums()


def names(*values: int) -> list[bytes]:
    return [b"%016d" % value for value in values]


def restore(swap: SwapSpace, asked: list[bytes], block_ids: list[int]) -> int:
    lookup = swap.look_up(asked)
    swap.load(lookup, block_ids[: lookup.num_blocks])
    (loaded,) = swap.poll()
    assert loaded.lookup is lookup
    return loaded.num_blocks


def test_blocks_come_back_as_they_were() -> None:
    blocks = Blocks(8, 4)
    swap = SwapSpace(blocks.copies, NBYTES)
    for block_id in (1, 2, 3):
        blocks.write(block_id, 10 + block_id)
    swap.save(names(1, 2, 3), [1, 2, 3])
    blocks.kv.zero_()
    assert restore(swap, names(1, 2, 3, 4), [7, 5, 6]) == 3
    assert [blocks.read(block_id) for block_id in (7, 5, 6)] == [11, 12, 13]
    assert swap.look_up(names(2)).num_blocks == 1
    assert swap.look_up(names(9, 1)).num_blocks == 0


def test_the_least_recently_used_goes_first_and_is_said_to_be_gone() -> None:
    blocks = Blocks(8, 3)
    swap = SwapSpace(blocks.copies, NBYTES)
    swap.save(names(1, 2, 3), [1, 2, 3])
    swap.drop(swap.look_up(names(1)))
    swap.save(names(4), [4])
    assert swap.take_dropped() == names(2)
    assert [swap.look_up(names(n)).num_blocks for n in (1, 2, 3, 4)] == [1, 0, 1, 1]


def test_what_is_cleared_is_not_found_and_a_lookup_keeps_its_slots() -> None:
    blocks = Blocks(8, 3)
    swap = SwapSpace(blocks.copies, NBYTES)
    for block_id in (1, 2):
        blocks.write(block_id, 10 + block_id)
    swap.save(names(1, 2), [1, 2])
    lookup = swap.look_up(names(1))
    swap.clear()
    assert sorted(swap.take_dropped()) == names(1, 2)
    assert swap.look_up(names(1)).num_blocks == 0
    swap.save(names(3, 4, 5), [3, 4, 5])
    assert swap.take_dropped() == names(5)
    swap.load(lookup, [7])
    assert [loaded.num_blocks for loaded in swap.poll()] == [1]
    assert blocks.read(7) == 11
    swap.save(names(5), [5])
    assert swap.take_dropped() == []


def test_what_is_there_is_not_copied_again() -> None:
    blocks = Blocks(8, 3)
    swap = SwapSpace(blocks.copies, NBYTES)
    swap.save(names(1), [1])
    swap.save(names(1), [5])
    assert swap.counts().num_saved == swap.counts().num_used == 1
    assert swap.take_dropped() == []


def test_a_slot_that_is_asked_for_is_not_given_away() -> None:
    blocks = Blocks(8, 2)
    swap = SwapSpace(blocks.copies, NBYTES)
    swap.save(names(1, 2), [1, 2])
    lookup = swap.look_up(names(1, 2))
    swap.save(names(3), [3])
    assert swap.take_dropped() == names(3)
    swap.drop(lookup)
    swap.save(names(3), [3])
    assert len(swap.take_dropped()) == 1


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_a_damaged_block_is_not_used_nor_found_again(damaged: int) -> None:
    blocks = Blocks(8, 4)
    swap = SwapSpace(blocks.copies, NBYTES)
    swap.save(names(1, 2, 3), [1, 2, 3])
    blocks.memory[damaged * NBYTES + 100] ^= 1
    assert restore(swap, names(1, 2, 3), [4, 5, 6]) == damaged
    assert swap.counts().num_damaged == 1
    assert swap.take_dropped() == names(1 + damaged)
    assert swap.look_up(names(1, 2, 3)).num_blocks == damaged


def test_a_block_on_its_way_is_found_already_and_keeps_its_slot() -> None:
    blocks = Blocks(8, 1)
    late = Late(blocks.copies)
    swap = SwapSpace(late, NBYTES)
    blocks.write(1, 11)
    swap.save(names(1), [1])
    swap.save(names(2), [2])
    assert swap.take_dropped() == names(2)
    lookup = swap.look_up(names(1))
    swap.load(lookup, [5])
    assert swap.poll() == []
    late.end_some(2)
    assert [loaded.num_blocks for loaded in swap.poll()] == [1]
    assert blocks.read(5) == 11


def test_a_block_may_come_back_before_the_save_that_it_was_part_of_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Blocks(8, 2)
    ended: list[bool] = []

    class Moved:
        """Has moved its bytes, and sums the last of them still."""

        def __init__(self, copy: Copy) -> None:
            self.sums = copy.sums

        def is_done(self) -> bool:
            return bool(ended)

    save = blocks.copies.save
    monkeypatch.setattr(blocks.copies, "save", lambda block_ids, slots: Moved(save(block_ids, slots)))
    swap = SwapSpace(blocks.copies, NBYTES)
    for block_id in (1, 2):
        blocks.write(block_id, 10 + block_id)
    swap.save(names(1, 2), [1, 2])
    swap.load(swap.look_up(names(1)), [5])
    assert swap.poll() == [], "what it is to be compared with is not known yet"
    ended.append(True)
    assert [loaded.num_blocks for loaded in swap.poll()] == [1]
    assert swap.counts().num_damaged == 0
    assert blocks.read(5) == 11


def test_slots_are_used_as_they_are_pinned() -> None:
    blocks = Blocks(8, 4)
    late = Late(blocks.copies)
    late.num_slots = 0
    swap = SwapSpace(late, NBYTES)
    swap.save(names(1), [1])
    assert swap.take_dropped() == names(1)
    late.num_slots = 2
    swap.save(names(1, 2, 3), [1, 2, 3])
    assert swap.take_dropped() == names(3)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), num_slots=st.integers(1, 6), damages=st.booleans())
def test_whatever_the_order_only_what_was_saved_comes_back(seed: int, num_slots: int, damages: bool) -> None:
    rng = random.Random(seed)
    blocks = Blocks(12, num_slots)
    late = Late(blocks.copies)
    swap = SwapSpace(late, NBYTES)
    open_loads: dict[int, tuple[object, list[int], list[int]]] = {}
    serial = count(1)
    free = list(range(1, 12))
    for _ in range(40):
        kind = rng.choice(["save", "load", "ask", "end", "poll", "damage"])
        if kind == "save" and len(free) >= 3:
            block_ids = rng.sample(free, rng.randint(1, 3))
            values = rng.sample(range(8), len(block_ids))
            for block_id, value in zip(block_ids, values, strict=True):
                blocks.write(block_id, value)
            swap.save(names(*values), block_ids)
            swap.guard(block_ids)
            for block_id in block_ids:  # given to others at once
                blocks.write(block_id, 1000)
        elif kind == "load":
            values = rng.sample(range(8), rng.randint(1, 3))
            lookup = swap.look_up(names(*values))
            num = min(lookup.num_blocks or 0, len(free))
            if num:
                block_ids = [free.pop() for _ in range(num)]
                open_loads[next(serial)] = (lookup, values, block_ids)
                swap.load(lookup, block_ids)
            else:
                swap.drop(lookup)
        elif kind == "ask":
            swap.drop(swap.look_up(names(rng.randrange(8))))
        elif kind == "end":
            late.end_some(rng.randint(0, 3))
        elif kind == "damage" and damages:
            blocks.memory[rng.randrange(num_slots * NBYTES)] ^= 0xFF
        else:
            _take_loaded(swap, blocks, open_loads, free)
        used = swap.counts().num_used
        assert used <= num_slots
    late.close()
    _take_loaded(swap, blocks, open_loads, free)
    assert not open_loads, "a load without an end"
    assert sorted(free) == list(range(1, 12))
    assert damages or not swap.counts().num_damaged


def _take_loaded(swap: SwapSpace, blocks: Blocks, open_loads, free: list[int]) -> None:
    for loaded in swap.poll():
        (key,) = [key for key, (lookup, _, _) in open_loads.items() if lookup is loaded.lookup]
        _, values, block_ids = open_loads.pop(key)
        good = block_ids[: loaded.num_blocks]
        assert [blocks.read(block_id) for block_id in good] == values[: len(good)]
        free += block_ids


@given(
    pairs=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), unique_by=(lambda p: p[0], lambda p: p[1])),
    piece=st.integers(1, 9),
)
def test_runs_cover_all_pairs_and_stay_within_a_piece(pairs: list[tuple[int, int]], piece: int) -> None:
    slots, block_ids = [slot for slot, _ in pairs], [block_id for _, block_id in pairs]
    runs = list(joint_runs(slots, block_ids, piece))
    assert [(slot + k, block + k) for slot, block, num in runs for k in range(num)] == pairs
    assert all(slot // piece == (slot + num - 1) // piece for slot, _, num in runs)
    assert len(list(joint_runs(range(8), range(8), 4))) == 2


@pytest.mark.parametrize("slot_nbytes", [1, 640, 4096, 131_072, 2 << 20, 40 << 20])
def test_pieces_begin_at_pages(slot_nbytes: int) -> None:
    assert piece_slots(slot_nbytes) * slot_nbytes % 4096 == 0
    assert piece_slots(slot_nbytes) > 0


# -- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_blocks_come_back_and_damage_is_seen() -> None:
    kv = torch.randn((64, 2, 16, 8, 128), device="cuda").to(torch.bfloat16)
    nbytes = kv[0].nbytes
    memory = anonymous_memory(48 * nbytes)
    copies = slot_copies(lambda: kv, memory)
    while copies.num_slots < 48:
        torch.cuda.synchronize()
    before = kv.clone()
    torch.cuda.synchronize()
    saving = copies.save(range(1, 41), range(40))
    copies.guard([*range(1, 41)])
    kv[1:41].zero_()  # ordered behind the copy
    torch.cuda.synchronize()
    assert saving.is_done()
    loading = copies.load(range(40), [*range(40, 0, -1)])
    torch.cuda.synchronize()
    assert loading.is_done()
    assert torch.equal(kv[1:41].flip(0), before[1:41])
    assert loading.sums() == saving.sums()
    memory[5 * nbytes] ^= 1
    again = copies.load(range(40), range(1, 41))
    torch.cuda.synchronize()
    assert [a == b for a, b in zip(again.sums(), saving.sums(), strict=True)] == [at != 5 for at in range(40)]
    copies.close()
