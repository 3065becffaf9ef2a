"""A store and its workers in one process: every message is sealed and read, copies end when a test says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xxhash import xxh3_128_digest

from baton.host_tier import Copy
from baton.kvtransfer.store.arena import Arena
from baton.kvtransfer.store.disk import BlockFiles
from baton.kvtransfer.store.messages import VERSION, Hello, Seal, ToClient, ToStore, Welcome
from baton.kvtransfer.store.store import Store
from baton.kvtransfer.store.tier import StoreTier

BLOCK_NBYTES = 64
LAYOUT = "ab" * 16


def name_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def content_of(name: bytes) -> bytes:
    """What a block of this name holds, everywhere."""
    return name * (BLOCK_NBYTES // 16)


@dataclass
class SlowCopy:
    """Moves its bytes only when it ends, so that whatever changes them meanwhile is seen."""

    move: Callable[[], list[bytes]]
    result: list[bytes] | None = None

    def is_done(self) -> bool:
        return self.result is not None

    def sums(self) -> list[bytes]:
        assert self.result is not None
        return self.result

    def end(self) -> None:
        if self.result is None:
            self.result = self.move()


class SlowCopies:
    """Copies between a worker's blocks and an arena's slots."""

    def __init__(self, blocks: dict[int, bytes], memory: memoryview) -> None:
        self._blocks, self._memory = blocks, memory
        self.num_slots = len(memory) // BLOCK_NBYTES
        self.open: list[SlowCopy] = []

    def save(self, block_ids: Sequence[int], slots: Sequence[int]) -> Copy:
        contents = [self._blocks[block_id] for block_id in block_ids]

        def move() -> list[bytes]:
            for slot, content in zip(slots, contents, strict=True):
                self._memory[slot * BLOCK_NBYTES :][:BLOCK_NBYTES] = content
            return list(map(xxh3_128_digest, contents))

        return self._started(move)

    def load(self, slots: Sequence[int], block_ids: Sequence[int]) -> Copy:
        def move() -> list[bytes]:
            for slot, block_id in zip(slots, block_ids, strict=False):
                self._blocks[block_id] = bytes(self._memory[slot * BLOCK_NBYTES :][:BLOCK_NBYTES])
            return [xxh3_128_digest(self._blocks[block_id]) for block_id in block_ids]

        return self._started(move)

    def guard(self, block_ids: Sequence[int]) -> None:
        pass

    def close(self) -> None:
        self.end_all()

    def end_all(self) -> None:
        for copy in self.open:
            copy.end()
        self.open.clear()

    def _started(self, move: Callable[[], list[bytes]]) -> SlowCopy:
        self.open.append(SlowCopy(move))
        return self.open[-1]


@dataclass
class Worker:
    """A worker's end: a link without a thread, a tier, and blocks by number."""

    host: Host
    id: bytes
    layout: str = LAYOUT
    block_nbytes: int = BLOCK_NBYTES
    is_up: bool = True
    is_mute: bool = False
    """Whether what it sends is lost, and it hears nothing."""
    incarnation: str = ""
    inbox: deque[ToClient] = field(default_factory=deque)
    blocks: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = self.host.folder
        self.refusals: list[str] = []
        self.copies: SlowCopies | None = None
        self.tier = StoreTier(self, self._make_copies)

    def _make_copies(self, memory: memoryview, num_slots: int) -> SlowCopies:
        self.copies = SlowCopies(self.blocks, memory)
        assert self.copies.num_slots >= num_slots
        return self.copies

    def send(self, message: ToStore) -> None:
        self.host.receive(self, message)

    def take(self) -> list[ToClient]:
        taken = [] if self.is_mute else list(self.inbox)
        self.inbox.clear()
        self.refusals += [each.refusal for each in taken if isinstance(each, Welcome) and each.refusal]
        return taken

    def close(self) -> None:
        pass

    def greet(self) -> None:
        self.send(Hello(VERSION, self.layout, self.block_nbytes, self.incarnation))
        self.tier.poll()
        self.tier.poll()  # what was asked for is there

    def save(self, *numbers: int) -> None:
        """Save blocks of these names, and end the copies."""
        self.start_saving(*numbers)
        self.end_copies()
        self.tier.poll()  # it is known

    def start_saving(self, *numbers: int) -> None:
        self.blocks.update({number: content_of(name_of(number)) for number in numbers})
        self.tier.save([name_of(number) for number in numbers], numbers)

    def watch(self, work: Callable[[], bool]) -> None:
        self.work = work

    def wake(self) -> None:
        pass

    def end_copies(self) -> list[Any]:
        if self.copies is not None:
            self.copies.end_all()
        self.work()
        return self.tier.poll()

    def load(self, *numbers: int) -> int:
        """Load blocks of these names, one after another; return how many are good."""
        lookup = self.tier.look_up([name_of(number) for number in numbers])
        self.tier.poll()
        if not lookup.num_blocks:
            self.tier.drop(lookup)
            return 0
        places = [1000 + number for number in numbers[: lookup.num_blocks]]
        self.tier.load(lookup, places)
        (loaded,) = self.end_copies()
        for number in numbers[: loaded.num_blocks]:
            assert self.blocks[1000 + number] == content_of(name_of(number))
        return loaded.num_blocks


class Host:
    """A store, its clock, and its disk, which works when a test says so."""

    def __init__(self, folder: Path, num_slots: int, disk: BlockFiles | None = None) -> None:
        self.folder, self.num_slots, self.disk = folder, num_slots, disk
        self.now = 1000.0
        self.seal = Seal("key")
        self.workers: dict[bytes, Worker] = {}
        self.jobs: deque[Callable[[], None]] = deque()
        self.told: set[bytes] = set()
        self.arena = Arena.make(folder, num_slots * BLOCK_NBYTES)
        self.start("first")

    def start(self, incarnation: str) -> None:
        """Begin with an empty memory, as another process would."""
        self.jobs.clear()
        self.told.clear()
        self.store = Store(
            "kvstore-0", incarnation, self.arena, self.disk, send=self._send, do=self._do, tell=self._tell
        )
        if self.disk is not None:
            self.disk.on_change = lambda key: self.store.note_changed((key,))

    def worker(self, number: int = 0, **settings: Any) -> Worker:
        made = Worker(self, number.to_bytes(16, "big"), **settings)
        self.workers[made.id] = made
        made.greet()
        return made

    def receive(self, worker: Worker, message: ToStore) -> None:
        if not worker.is_mute:
            self.store.take(worker.id, self.seal.to_store(self.seal.write(message)), self.now)
            self.store.flush()

    def run_jobs(self) -> None:
        """Let the disk do all that it is given."""
        while self.jobs:
            self.jobs.popleft()()
            self.store.flush()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, while the store looks at its clock."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + 1.0, until)
            self.store.expire(self.now)
        self.store.flush()

    def _send(self, client_id: bytes, message: ToClient) -> bool:
        worker = self.workers.get(client_id)
        if worker is not None:
            read = self.seal.to_client(self.seal.write(message))
            worker.inbox.append(read)
        return worker is not None

    def _do(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self.jobs.append(lambda: then(work()))

    def _tell(self, stored: list[bytes], evicted: list[bytes]) -> None:
        assert self.told >= set(evicted)
        self.told = (self.told | set(stored)) - set(evicted)
