"""The store of a host: what one worker puts there another one finds; no slot is lost, whoever dies; no wrong bytes are used."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kvtransfer.store_parts import BLOCK_NBYTES, LAYOUT, Host, name_of

from baton.errors import ConfigError
from baton.kvtransfer.store.arena import Arena, StoreFolder, endpoint
from baton.kvtransfer.store.disk import BlockFiles
from baton.kvtransfer.store.messages import SILENCE_S, VERSION, BadMessage, Commit, Done, Hello, Reserve, Seal, Want
from baton.kvtransfer.store.slots import Slots

NUM_SLOTS = 64


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path, NUM_SLOTS)


def test_what_one_worker_saves_another_one_loads(host: Host) -> None:
    one, other = host.worker(1), host.worker(2)
    one.save(1, 2, 3)
    assert other.load(1, 2, 3, 4) == 3
    assert host.told == {name_of(number) for number in (1, 2, 3)}
    assert (host.store.slots.num_read, other.tier.counts().num_loaded, host.store.num_loans) == (0, 3, 0)


def test_what_a_worker_has_cleared_nobody_of_its_layout_finds(host: Host) -> None:
    one, other, stranger = host.worker(1), host.worker(2), host.worker(3, layout="cd" * 16)
    one.save(1, 2)
    stranger.save(1)
    one.tier.clear()
    assert other.load(1, 2) == 0
    assert stranger.load(1) == 1
    assert host.store.slots.num_known == 1
    host.store.slots.verify()


def test_a_block_that_the_store_has_is_not_saved_again(host: Host) -> None:
    one, other = host.worker(1), host.worker(2)
    one.save(1)
    other.tier.poll()
    other.save(1, 2)
    assert other.tier.counts().num_saved == 1


def test_two_who_save_the_same_at_once_take_one_place(host: Host) -> None:
    one, other = host.worker(1), host.worker(2)
    for worker in (one, other):
        worker.start_saving(1)
    for worker in (one, other):
        worker.end_copies()
    assert host.store.slots.num_known == 1
    host.store.slots.verify()


def test_two_layouts_share_no_block(host: Host) -> None:
    one, other = host.worker(1), host.worker(2, layout="cd" * 16)
    one.save(1)
    assert other.load(1) == 0
    other.save(1)
    assert host.store.slots.num_known == 2


def test_blocks_of_another_size_are_refused_until_nobody_has_the_old_ones(host: Host) -> None:
    one, other = host.worker(1), host.worker(2, layout="cd" * 16, block_nbytes=2 * BLOCK_NBYTES)
    assert "its blocks have 64 bytes, not 128" in other.refusals[0]
    one.save(1)
    one.is_mute = True
    host.pass_time(SILENCE_S + 1)
    other.greet()
    assert host.store.slots.num_slots == NUM_SLOTS // 2
    assert not host.told


def test_the_least_recently_used_goes_first_and_the_end_of_a_chain_before_its_beginning(host: Host) -> None:
    worker = host.worker()
    worker.save(1, 2, 3)
    for number in range(10, 10 + NUM_SLOTS):
        worker.save(number)
        assert worker.load(1) == 1
    assert name_of(1) in host.told
    assert name_of(3) not in host.told


def test_bytes_that_changed_are_used_by_nobody_and_forgotten(host: Host) -> None:
    worker = host.worker()
    worker.save(1, 2)
    slot = host.store.slots.hold(bytes.fromhex(worker.layout) + name_of(2))
    assert slot is not None
    host.arena.view[slot.slot * BLOCK_NBYTES] ^= 1
    host.store.slots.let_go([slot.slot])
    assert worker.load(1, 2) == 1
    assert (worker.tier.counts().num_damaged, host.store.counts.num_bad) == (1, 1)
    assert host.told == {name_of(1)}
    host.store.slots.verify()


def test_a_worker_that_dies_gives_everything_back(host: Host) -> None:
    one, other = host.worker(1), host.worker(2)
    one.save(1, 2)
    one.tier.look_up([name_of(1), name_of(2)])
    one.start_saving(3)
    assert host.store.slots.num_read == 2
    one.is_mute = True
    host.pass_time(SILENCE_S - 1)
    other.greet()
    assert host.store.slots.num_read == 2
    host.pass_time(2)
    slots = host.store.slots
    assert (slots.num_read, slots.num_writing) == (0, len(other.tier._stock))
    slots.verify()


def test_a_worker_that_was_silent_commits_nothing_of_its_earlier_session(host: Host) -> None:
    worker = host.worker()
    worker.start_saving(1)
    worker.is_mute = True
    host.pass_time(SILENCE_S + 1)
    worker.is_mute = False
    worker.greet()
    worker.end_copies()
    assert (host.store.slots.num_known, host.store.counts.num_dropped) == (0, 1)
    worker.save(2)
    assert worker.load(2) == 1


def test_a_pause_of_the_store_is_nobodys_silence(host: Host) -> None:
    worker = host.worker()
    host.store.expire(host.now)
    host.now += 60
    host.store.expire(host.now)
    assert host.store.num_clients == 1
    worker.save(1)
    assert worker.load(1) == 1


def test_a_store_started_anew_has_nothing_and_takes_over_the_memory(host: Host) -> None:
    worker = host.worker()
    worker.save(1)
    question = worker.tier.look_up([name_of(1)])
    host.arena = Arena.make(host.folder, host.arena.nbytes)
    host.start("second")
    worker.incarnation = "first"
    worker.greet()
    assert question.num_blocks == 0
    worker.tier.load(question, [1])
    assert [loaded.num_blocks for loaded in worker.tier.poll()] == [0]
    assert worker.load(1) == 0
    worker.save(1)
    assert worker.load(1) == 1


def test_a_store_that_does_not_answer_costs_a_bounded_time(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = host.worker()
    worker.save(1)
    worker.is_mute = True
    question: Any = worker.tier.look_up([name_of(1)])
    assert question.num_blocks is None
    assert worker.tier.is_busy
    monkeypatch.setattr("time.monotonic", lambda: question.deadline + 1)
    assert question.num_blocks == 0
    worker.is_up = False
    assert worker.tier.look_up([name_of(1)]).num_blocks == 0
    worker.tier.poll()
    assert not worker.tier.is_busy


def test_an_answer_after_its_time_is_given_back(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = host.worker()
    worker.save(1)
    question: Any = worker.tier.look_up([name_of(1)])
    held, worker.inbox = worker.inbox, type(worker.inbox)()
    monkeypatch.setattr("time.monotonic", lambda: question.deadline + 1)
    worker.tier.poll()
    worker.inbox = held
    worker.tier.poll()
    assert question.num_blocks == 0
    assert host.store.slots.num_read == 0


def test_answers_may_come_while_others_are_looked_at(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = host.worker()
    worker.save(1, 2)
    questions = [worker.tier.look_up([name_of(number)]) for number in (1, 2)]
    batches = [[], worker.take()]
    monkeypatch.setattr(worker, "take", lambda: batches.pop(0) if batches else [])
    worker.tier.poll()
    assert [question.num_blocks for question in questions] == [1, 1]
    for question in questions:
        worker.tier.drop(question)
    assert host.store.slots.num_read == 0


def test_what_is_lent_to_who_does_not_know_its_session_yet_comes_back(host: Host) -> None:
    worker = host.worker()
    worker.save(1)
    host.receive(worker, Hello(VERSION, LAYOUT, BLOCK_NBYTES))  # its second one, as the answer to the first was late
    late, worker.inbox = worker.inbox, type(worker.inbox)()
    question = worker.tier.look_up([name_of(1)])
    assert host.store.num_loans == 1
    worker.inbox.extendleft(reversed(late))
    worker.tier.poll()
    assert question.num_blocks == 0
    assert host.store.num_loans == host.store.slots.num_read == 0


def test_many_workers_leave_room_for_blocks(host: Host) -> None:
    first = host.worker()
    first.save(1, 2, 3, 4)
    for number in range(1, 12):
        host.worker(number)
    assert first.load(1, 2, 3, 4) == 4
    assert host.store.slots.num_writing <= NUM_SLOTS // 2


def test_slots_that_were_not_granted_are_committed_by_nobody(host: Host) -> None:
    one, other = host.worker(1), host.worker(2)
    theirs = other.tier._stock[:1]
    for slots in (theirs, [one.tier._stock[0]] * 2, [NUM_SLOTS + 5]):
        one.send(Commit(one.tier._session, slots, [name_of(9)] * len(slots), [bytes(16)] * len(slots)))
    one.send(Commit(one.tier._session, one.tier._stock[:1], [name_of(9)], []))
    one.send(Done(77))
    assert (host.store.slots.num_known, host.store.counts.num_dropped) == (0, 5)
    host.store.slots.verify()


def test_a_frame_of_another_deployment_is_none() -> None:
    mine, theirs = Seal("mine"), Seal("theirs")
    frame = mine.write(Want(1, [bytes(16)]))
    assert mine.to_store(frame) == Want(1, [bytes(16)])
    for bad in (frame[:-1], b"", frame[:16], bytes(16) + frame[16:], theirs.write(Reserve(3))):
        with pytest.raises(BadMessage):
            mine.to_store(bad)


def test_a_folder_has_one_store(tmp_path: Path) -> None:
    folder = StoreFolder(str(tmp_path / "kv"))
    with pytest.raises(ConfigError, match="another store's"):
        StoreFolder(str(tmp_path / "kv"))
    folder.close()
    StoreFolder(str(tmp_path / "kv")).close()
    assert not (tmp_path / "kv").exists()


def test_a_folder_whose_name_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 99 characters"):
        endpoint(tmp_path / ("x" * 100))


def test_what_other_users_may_write_in_is_no_folder_of_a_store(tmp_path: Path) -> None:
    (tmp_path / "kv").mkdir()
    (tmp_path / "kv").chmod(0o777)
    with pytest.raises(ConfigError, match="other users may write there"):
        StoreFolder(str(tmp_path / "kv"))


def test_memory_that_cannot_be_mapped_leaves_a_worker_on_its_own(host: Host) -> None:
    (host.folder / "arena").unlink()
    worker = host.worker()
    worker.save(1)
    assert (worker.tier.store_id, worker.tier.look_up([name_of(1)]).num_blocks) == ("", 0)


def test_too_little_room_is_said_before_anybody_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Lower --kv-store-size"):
        Arena.make(tmp_path, 1 << 55)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1 << 60))
    with pytest.raises(ConfigError, match="does not fit into"):
        Arena.make(tmp_path, 1 << 55)
    assert not list(tmp_path.iterdir())


@given(
    st.lists(st.tuples(st.sampled_from(["grant", "commit", "give_up", "hold", "let_go", "forget"]), st.integers(0, 9)))
)
def test_every_slot_is_in_one_condition(steps: list[tuple[str, int]]) -> None:
    slots = Slots(5)
    writing: list[int] = []
    held: list[int] = []
    for what, number in steps:
        key = bytes([number])
        if what == "grant":
            writing += slots.grant(number % 3)
        elif what == "commit" and writing:
            slots.commit([writing.pop()], [key], [key])
        elif what == "give_up" and writing:
            slots.give_up([writing.pop()])
        elif what == "hold" and (found := slots.hold(key)) is not None:
            assert found.checksum == key
            held.append(found.slot)
        elif what == "let_go" and held:
            slots.let_go([held.pop(number % len(held))])
        elif what == "forget" and held:
            slots.forget(held[number % len(held)])
        slots.verify()
        assert slots.num_writing == len(writing)
    slots.give_up(writing)
    slots.let_go(held)
    slots.verify()
    assert slots.num_free + slots.num_known == 5


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), has_disk=st.booleans())
def test_whatever_happens_no_slot_is_lost_and_no_wrong_byte_is_used(
    tmp_path_factory: pytest.TempPathFactory, seed: int, has_disk: bool
) -> None:
    rng, folder = random.Random(seed), tmp_path_factory.mktemp("store")
    disk = BlockFiles(str(folder / "disk"), 30 * (BLOCK_NBYTES + 96)) if has_disk else None
    host = Host(folder, 32, disk)
    workers = [host.worker(number) for number in range(3)]
    for _ in range(120):
        worker, first = rng.choice(workers), rng.randrange(40)
        numbers = range(first, first + rng.randrange(1, 5))
        match rng.randrange(9):
            case 0 | 1:
                worker.start_saving(*numbers)
            case 2:
                worker.save(*numbers)
            case 3 if worker.copies is None or not worker.tier._loads:
                worker.end_copies()
                worker.load(*numbers)
            case 4:
                host.run_jobs()
            case 5:
                worker.is_mute = not worker.is_mute
                worker.greet()
            case 6:
                host.pass_time(rng.choice([1, SILENCE_S + 1]))
            case 7:
                worker.tier.look_up([name_of(number) for number in numbers])
            case 8:
                host.arena.view[rng.randrange(host.arena.nbytes)] ^= 1
        host.store.slots.verify()
    host.pass_time(SILENCE_S + 1)
    host.run_jobs()
    slots = host.store.slots
    slots.verify()
    assert (host.store.num_clients, slots.num_read, slots.num_writing) == (0, 0, 0)
    known = set(slots.keys()) | set(disk.keys() if disk is not None else ())
    assert {key[16:] for key in known} == host.told
