"""What the benchmark moves, and how: both of its processes are told."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import numpy as np

from baton.kvtransfer.bench.timeline import TimedMemory
from baton.kvtransfer.device_memory import DeviceMemory
from baton.kvtransfer.memory import BlockMemory, Bytes, HostMemory
from baton.kvtransfer.settings import MIB, TransferConfig
from baton.kvtransfer.side import Side
from baton.kvtransfer.transports.cuda_ipc import CudaIpcTransport
from baton.kvtransfer.transports.ipc import IpcTransport
from baton.kvtransfer.transports.shm import ShmTransport
from baton.kvtransfer.transports.shm_ring import ShmRingTransport
from baton.kvtransfer.transports.tcp import TcpTransport
from baton.kvtransfer.transports.transport import Transport
from baton.kvtransfer.wire import DIGEST_NBYTES, layout_fingerprint

Scheme = Literal["tcp", "ipc", "shm", "shm_ring", "cuda_ipc"]
Device = Literal["cpu", "cuda"]
EPOCH = 0


class Plan(msgspec.Struct, frozen=True):
    """What is moved, and how."""

    scheme: Scheme = "tcp"
    block_nbytes: int = 2 * MIB
    num_blocks: int = 32
    """Of one transfer."""
    num_transfers: int = 4
    """Open at the same time."""
    repeats: int = 4
    """Of all transfers in a round, the next one beginning when one ends."""
    scattered: bool = False
    """Whether blocks lie apart in both memories, as in an old pool, or side by side."""
    device: Device = "cpu"
    """Where the blocks of both sides lie; those of the bare sockets are the host's in any case."""
    num_sockets: int = TransferConfig().num_stripes
    frame_nbytes: int | None = None

    @property
    def round_nbytes(self) -> int:
        return self.block_nbytes * self.num_blocks * self.total_transfers

    @property
    def total_transfers(self) -> int:
        return self.num_transfers * self.repeats

    @property
    def pool_blocks(self) -> int:
        """Blocks of a memory: four transfers', so that blocks of one can lie apart."""
        return self.num_blocks * max(4, self.num_transfers)

    @property
    def config(self) -> TransferConfig:
        return TransferConfig(num_sockets=self.num_sockets, frame_nbytes=self.frame_nbytes)

    def block_ids(self, transfer: int) -> list[int]:
        """Blocks of one transfer; the next set of transfers has the same again."""
        transfer %= self.num_transfers
        if self.scattered:
            return list(range(transfer, self.pool_blocks, self.pool_blocks // self.num_blocks))
        return list(range(transfer * self.num_blocks, (transfer + 1) * self.num_blocks))

    def hashes(self) -> list[bytes]:
        """Stand-ins for block hashes."""
        return [index.to_bytes(DIGEST_NBYTES, "big") for index in range(self.num_blocks)]

    def ticket(self, number: int, source: str = "") -> BenchTicket:
        """Make the ticket of a transfer."""
        return BenchTicket(number.to_bytes(16, "big"), bytes(16), layout_fingerprint(self.block_nbytes), source)


class BenchTicket(msgspec.Struct, frozen=True):
    """The attributes that the transfer reads of a ticket."""

    request_id: bytes
    secret: bytes
    layout: str
    source: str
    epoch: int = EPOCH
    source_incarnation: str = "bench"


class BenchSide:
    """One process's memory of all transfers' blocks, each page touched, and its way to the other's."""

    def __init__(self, plan: Plan, fill: int, on_event: Callable[[], None] = lambda: None) -> None:
        memory = _device_memory(plan, fill) if plan.device == "cuda" else _host_memory(plan, fill)
        self.timed = TimedMemory(memory)
        self.side = Side(
            memory=self.timed,
            layout=layout_fingerprint(plan.block_nbytes),
            incarnation="bench",
            transports=(_transport(plan, memory),),
            config=plan.config,
            on_event=on_event,
        )


def host_array(plan: Plan, fill: int) -> Bytes:
    """Make the bytes of all blocks."""
    return np.full(plan.pool_blocks * plan.block_nbytes, fill, dtype=np.uint8)


def device_array(plan: Plan, *, of_importer: bool, fill: int) -> Any:
    """Make the blocks on a GPU: the importer's is the first, the exporter's the last, so that two are used where there are."""
    import torch

    index = 0 if of_importer else torch.cuda.device_count() - 1
    return torch.full((plan.pool_blocks, plan.block_nbytes), fill, dtype=torch.uint8, device=f"cuda:{index}")


def _host_memory(plan: Plan, fill: int) -> HostMemory:
    if plan.scheme != "shm":
        return HostMemory(host_array(plan, fill), plan.pool_blocks, num_threads=plan.num_sockets)
    fd = os.memfd_create("baton-bench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, plan.pool_blocks * plan.block_nbytes)
    shared = np.frombuffer(mmap.mmap(fd, 0), dtype=np.uint8)
    shared[:] = fill
    return HostMemory(shared, plan.pool_blocks, fd=fd, num_threads=plan.num_sockets)


def _device_memory(plan: Plan, fill: int) -> DeviceMemory:
    from baton.kvtransfer.cuda_copies import CudaCopies

    copies = CudaCopies(device_array(plan, of_importer=fill == 0, fill=fill))
    return DeviceMemory(copies, frame_nbytes=plan.config.message_nbytes, num_threads=plan.num_sockets)


def _transport(plan: Plan, memory: BlockMemory) -> Transport:
    if plan.scheme in ("cuda_ipc", "shm_ring"):
        from baton.kvtransfer.cuda_copies import CudaCopies

        assert isinstance(memory, DeviceMemory)
        assert isinstance(memory.copies, CudaCopies)
        if plan.scheme == "cuda_ipc":
            return CudaIpcTransport(memory.copies)
        return ShmRingTransport(memory.copies, memory.ring_fd)
    if plan.scheme == "shm":
        return ShmTransport(memory.fd if isinstance(memory, HostMemory) else None)
    return TcpTransport() if plan.scheme == "tcp" else IpcTransport()


SMALL_NBYTES = 128 << 10
"""A block of the demo model."""


def plans(device: Device = "cpu", config: TransferConfig | None = None) -> list[Plan]:
    """What is measured: each transport; on a GPU the 128 blocks of a prompt of 2,048 tokens of an 8B model."""
    schemes: tuple[Scheme, ...] = ("tcp", "ipc", "shm") if device == "cpu" else ("tcp", "ipc", "shm_ring", "cuda_ipc")
    config = config or TransferConfig()
    settings = {"num_sockets": config.num_stripes, "frame_nbytes": config.message_nbytes}
    num_blocks, found = (32 if device == "cpu" else 128), []
    for scheme in schemes:
        common: dict[str, Any] = {"scheme": scheme, "device": device, **settings}
        for scattered in (False, True):
            found += [
                Plan(**common, num_blocks=num_blocks, scattered=scattered, num_transfers=num, repeats=repeats)
                for num, repeats in ((1, 4), (4, 2))
            ]
            found.append(Plan(**common, block_nbytes=SMALL_NBYTES, num_blocks=512, scattered=scattered))
    return found
