"""A store with its socket, threads, memory and disk, for tests of what works with it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from baton.engine.slot_copies import slot_copies
from baton.kvtransfer.store.arena import Arena, StoreFolder
from baton.kvtransfer.store.disk import BlockFiles
from baton.kvtransfer.store.link import StoreLink
from baton.kvtransfer.store.thread import StoreThread
from baton.kvtransfer.store.tier import StoreTier
from baton.kvtransfer.wire import layout_fingerprint

from .blocks import wait_until

NUM_BLOCKS, BLOCK_LEN = 40, 4096
NUM_SLOTS = 160


class LiveStore:
    """One store in one folder, and as many workers as a test wants."""

    def __init__(self, disk: Path) -> None:
        self.path = tempfile.mkdtemp(prefix="baton-test-", dir="/dev/shm")
        self.disk = disk
        self.told: set[bytes] = set()
        self.tiers: list[StoreTier] = []
        self.start("first")

    def start(self, incarnation: str) -> None:
        self.folder = StoreFolder(self.path)
        files = BlockFiles(str(self.disk), 1 << 30)
        files.scan()
        self.thread = StoreThread(
            self.folder,
            Arena.make(self.folder.path, NUM_SLOTS * BLOCK_LEN * 4),
            files,
            store_id="store",
            incarnation=incarnation,
            cache_key="key",
            tell=lambda stored, evicted: self.told.update(stored),
        ).start()

    def stop(self) -> None:
        self.thread.stop()
        self.folder.close()

    def worker(self, device: str) -> tuple[torch.Tensor, StoreTier]:
        kv = torch.zeros((NUM_BLOCKS, BLOCK_LEN), dtype=torch.float32, device=device)
        link = StoreLink(self.path, layout_fingerprint(BLOCK_LEN * 4, device), BLOCK_LEN * 4, "key", lambda: None)
        tier = StoreTier(link, lambda memory, _num_slots: slot_copies(lambda: kv, memory))
        self.tiers.append(tier)
        wait_until(lambda: tier.store_id == "store" and tier.has_stock, tier.hear)
        return kv, tier
