"""The prefix index: what each worker has, from a log that may repeat, skip and start anew."""

from hypothesis import given
from hypothesis import strategies as st

from baton.messages import Blocks
from baton.registry import BlockLog
from baton.router.index import PrefixIndex

HASHES = [bytes([i]) * 16 for i in range(8)]


def entry(sequence: int, stored: list[bytes], evicted: list[bytes] | None = None, incarnation: str = "i") -> Blocks:
    return Blocks("w", incarnation, sequence, stored, evicted or [])


def make_index() -> PrefixIndex:
    index = PrefixIndex()
    index.expect("w", "i")
    return index


def test_the_longest_cached_beginning_counts() -> None:
    index = make_index()
    index.apply(entry(1, [HASHES[0], HASHES[1], HASHES[3]]))
    assert index.num_cached("w", HASHES) == 2
    assert index.num_cached("unknown", HASHES) == 0
    assert index.num_cached("w", HASHES[3:4]) == 1


def test_what_a_store_has_counts_behind_what_the_worker_has() -> None:
    index = make_index()
    index.expect("s", "i")
    index.apply(entry(1, HASHES[:2]))
    index.apply(Blocks("s", "i", 1, [HASHES[0], *HASHES[2:5]]))
    assert index.num_stored("s", HASHES, 2) == 3
    assert index.num_stored("s", HASHES, 0) == 1
    assert index.num_stored("", HASHES, 2) == 0


def test_evictions_apply_before_stores() -> None:
    index = make_index()
    index.apply(entry(1, [HASHES[0]]))
    index.apply(entry(2, [HASHES[0]], [HASHES[0]]))
    assert index.num_cached("w", HASHES) == 1


def test_a_gap_asks_for_a_snapshot_and_is_healed_by_it() -> None:
    index = make_index()
    assert index.apply(entry(1, [HASHES[0]]))
    index.wants_snapshot.clear()
    assert not index.apply(entry(3, [HASHES[2]]))
    assert index.wants_snapshot == {"w"}
    snapshot = Blocks("w", "i", 3, HASHES[:3], [], True)
    assert index.apply(snapshot)
    assert index.num_cached("w", HASHES) == 3
    assert not index.apply(entry(3, [HASHES[5]]))
    assert index.apply(entry(4, [HASHES[3]]))
    assert index.num_cached("w", HASHES) == 4


def test_an_old_snapshot_does_not_undo_newer_entries() -> None:
    index = make_index()
    index.apply(entry(1, [HASHES[0]]))
    index.apply(entry(2, [HASHES[1]]))
    assert not index.apply(Blocks("w", "i", 1, [HASHES[0]], [], True))
    assert index.num_cached("w", HASHES) == 2


def test_another_incarnation_starts_with_nothing_and_the_old_ones_entries_are_dropped() -> None:
    index = make_index()
    index.apply(entry(1, HASHES))
    index.expect("w", "j")
    assert index.num_cached("w", HASHES) == 0
    assert not index.apply(entry(2, HASHES))
    assert index.apply(entry(1, HASHES[:1], incarnation="j"))
    index.forget("w")
    assert not index.apply(entry(2, HASHES, incarnation="j"))
    assert len(index) == 0


@given(
    st.lists(st.tuples(st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7))), max_size=20),
    st.lists(st.integers(0, 40), max_size=60),
)
def test_entries_in_any_order_and_any_number_leave_what_the_worker_has(
    steps: list[tuple[set[int], set[int]]], order: list[int]
) -> None:
    log, entries = BlockLog("w", "i"), []
    for stored, evicted in steps:
        entries.append(log.entry([HASHES[i] for i in stored], [HASHES[i] for i in evicted]))
    index = make_index()
    for i in order:  # whatever comes, in whatever order, through two ways
        if entries:
            index.apply(entries[i % len(entries)])
    for step in entries:
        index.apply(step)
    index.apply(log.snapshot())
    expected = log.snapshot().stored
    assert {h for h in HASHES if index.num_cached("w", [h])} == set(expected)
