"""Blocks on disk: found by the next process, bounded, and dropped when they are not what was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.kvtransfer.store_parts import BLOCK_NBYTES, LAYOUT, Host, content_of, name_of

from baton.errors import ConfigError
from baton.kvtransfer.store.disk import BlockFiles

FILE_NBYTES = BLOCK_NBYTES + 80


def key_of(number: int) -> bytes:
    return bytes.fromhex(LAYOUT) + name_of(number)


def block_of(number: int) -> memoryview:
    return memoryview(content_of(name_of(number)))


def file_of(folder: Path, number: int) -> Path:
    name = name_of(number).hex()
    return folder / LAYOUT / name[:2] / name


def made(folder: Path, *numbers: int, limit: int = 1 << 30) -> BlockFiles:
    files = BlockFiles(str(folder), limit)
    files.scan()
    for number in numbers:
        assert files.write(key_of(number), bytes(16), block_of(number))
    return files


def test_the_next_process_finds_them(tmp_path: Path) -> None:
    made(tmp_path, 1, 2)
    files, to = made(tmp_path), bytearray(BLOCK_NBYTES)
    assert sorted(files.keys()) == [key_of(1), key_of(2)]
    assert files.used_nbytes == 2 * FILE_NBYTES
    assert files.read(key_of(2), memoryview(to)) == bytes(16)
    assert to == content_of(name_of(2))
    assert files.read(key_of(3), memoryview(to)) is None


@pytest.mark.parametrize("damage", ["flipped", "short", "long", "empty", "renamed", "other format"])
def test_a_damaged_one_is_dropped(tmp_path: Path, damage: str) -> None:
    made(tmp_path, 1, 2)
    path = file_of(tmp_path, 1)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-1] ^= 1
    elif damage == "other format":
        data[0] ^= 1
    path.write_bytes({"short": data[:-5], "long": data + b"x", "empty": b""}.get(damage, data))
    if damage == "renamed":
        path.rename(file_of(tmp_path, 3))
    files = made(tmp_path)
    assert files.read(key_of(1), memoryview(bytearray(BLOCK_NBYTES))) is None
    assert files.keys() == [key_of(2)]
    assert files.num_damaged == 1
    assert files.used_nbytes == FILE_NBYTES
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file_of(tmp_path, 2)]


def test_what_a_crash_left_half_written_is_removed_and_strangers_files_stay(tmp_path: Path) -> None:
    made(tmp_path, 1)
    part = file_of(tmp_path, 1).with_suffix(".part")
    part.write_bytes(b"half")
    stranger = tmp_path / "notes.txt"
    stranger.write_text("mine")
    assert len(made(tmp_path)) == 1
    assert not part.exists()
    assert stranger.exists()


def test_it_is_bounded_and_the_least_recently_used_goes(tmp_path: Path) -> None:
    files = made(tmp_path, 1, 2, limit=3 * FILE_NBYTES)
    assert files.read(key_of(1), memoryview(bytearray(BLOCK_NBYTES)))
    files = made(tmp_path, limit=2 * FILE_NBYTES)
    assert files.write(key_of(3), bytes(16), block_of(3))
    assert sorted(files.keys()) == [key_of(1), key_of(3)]
    assert files.used_nbytes <= files.limit_nbytes


def test_a_full_disk_ends_writing_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = made(tmp_path, 1)

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert not files.write(key_of(2), bytes(16), block_of(2))
    monkeypatch.undo()
    assert files.is_full
    assert not files.write(key_of(2), bytes(16), block_of(2))
    assert files.read(key_of(1), memoryview(bytearray(BLOCK_NBYTES)))
    assert not list(tmp_path.rglob("*.part"))


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="kv_store_dir"):
        BlockFiles(str(tmp_path / "file"), 1)


def test_a_store_started_anew_reads_its_blocks_from_disk(tmp_path: Path) -> None:
    host = Host(tmp_path, 16, made(tmp_path / "disk"))
    worker = host.worker()
    worker.save(1)
    worker.save(2)
    host.run_jobs()
    assert len(host.disk or ()) == 2
    host.disk = made(tmp_path / "disk")
    host.start("second")
    host.store.flush()
    assert host.told == {name_of(1), name_of(2)}
    worker.incarnation = "first"
    worker.greet()
    question = worker.tier.look_up([name_of(1), name_of(2)])
    assert question.num_blocks is None
    host.run_jobs()
    worker.tier.poll()
    assert question.num_blocks == 2
    worker.tier.load(question, [1001, 1002])
    (loaded,) = worker.end_copies()
    assert (loaded.num_blocks, host.store.counts.num_read) == (2, 2)
    assert worker.blocks[1002] == content_of(name_of(2))
    host.store.slots.verify()


def test_what_is_computed_sooner_than_the_disk_reads_it_is_not_waited_for(tmp_path: Path) -> None:
    host = Host(tmp_path, 16, made(tmp_path / "disk", 1, 2))
    worker = host.worker()
    worker.save(7)
    worker.tier._compute_s = lambda num_blocks: 1e-9  # type: ignore[method-assign]
    question = worker.tier.look_up([name_of(7), name_of(1), name_of(2)])
    assert not host.jobs or len(host.jobs) == 1  # the write of the one that was saved
    worker.tier.poll()
    assert question.num_blocks == 1
    worker.tier.drop(question)
    host.run_jobs()
    host.store.slots.verify()


def test_a_damaged_block_on_disk_is_computed_again(tmp_path: Path) -> None:
    host = Host(tmp_path, 16, made(tmp_path / "disk", 1, 2))
    worker = host.worker()
    path = file_of(tmp_path / "disk", 2)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    question = worker.tier.look_up([name_of(1), name_of(2)])
    host.run_jobs()
    worker.tier.poll()
    assert question.num_blocks == 1
    assert host.told == {name_of(1)}
    worker.tier.drop(question)
    host.store.slots.verify()


def test_a_worker_that_dies_while_the_disk_reads_for_it_leaves_nothing(tmp_path: Path) -> None:
    host = Host(tmp_path, 16, made(tmp_path / "disk", 1))
    worker = host.worker()
    worker.tier.look_up([name_of(1)])
    worker.is_mute = True
    host.pass_time(60)
    host.run_jobs()
    slots = host.store.slots
    assert (slots.num_read, slots.num_writing, slots.num_known) == (0, 0, 1)
    slots.verify()


def test_what_is_cleared_leaves_the_disk_too(tmp_path: Path) -> None:
    (tmp_path / "arena").mkdir()
    host = Host(tmp_path / "arena", 64, made(tmp_path / "disk"))
    worker = host.worker(1)
    worker.save(1, 2)
    host.run_jobs()
    assert len(host.told) == 2
    worker.tier.clear()
    host.run_jobs()
    assert host.told == set()
    assert made(tmp_path / "disk").keys() == []
