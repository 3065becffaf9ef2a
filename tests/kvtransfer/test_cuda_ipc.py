"""One GPU, or the copy engine between two, reads the blocks of another process, or its copies of them in host memory."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.processes import HANG_S

from baton.kvtransfer.cuda_copies import CudaCopies
from baton.kvtransfer.device_memory import DeviceMemory
from baton.kvtransfer.imports import Fetched, FetchFailed
from baton.kvtransfer.transports.cuda_ipc import CudaIpcTransport
from baton.kvtransfer.transports.shm_ring import ShmRingTransport

from .blocks import TestTicket, block_hashes, request_id, wait_until
from .cuda_exporter import content
from .test_transfer import Workers, ends_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def exporting(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the other process; yield it and its endpoint."""
    command = [sys.executable, "-m", "tests.kvtransfer.cuda_exporter", *map(str, arguments)]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdin is not None
    try:
        yield child, child.stdout.readline().strip()
    finally:
        child.stdin.close()
        child.wait(HANG_S)


@pytest.mark.parametrize("in_ring", [False, True], ids=["where they lie", "in a ring"])
@pytest.mark.parametrize("nbytes", [32 << 10, 2 << 20])
def test_blocks_of_another_process_are_read(nbytes: int, in_ring: bool) -> None:
    num, each = 6, 100
    kv = torch.zeros(num * each, nbytes, dtype=torch.uint8, device="cuda:0")
    order = torch.randperm(num * each).tolist()
    workers, copies = Workers("ipc"), CudaCopies(kv)
    memory = DeviceMemory(copies, frame_nbytes=1 << 20, ring_nbytes=1)
    transport = ShmRingTransport(copies, memory.ring_fd) if in_ring else CudaIpcTransport(copies)
    importer = workers.importer(memory, transports=(transport,))
    try:
        with exporting(num * each, nbytes, num, *["--ring"] * in_ring) as (_, endpoint):
            for number in range(num):
                ticket = TestTicket(request_id(number), source=endpoint)
                importer.fetch(ticket, 0, block_hashes(number, each), order[number * each : (number + 1) * each])
            for end in ends_of(importer, num):
                assert isinstance(end, Fetched), end
            assert torch.equal(kv[order].cpu(), content(num * each, nbytes))
    finally:
        workers.stop()


def test_a_killed_exporter_ends_its_fetches_and_its_memory_comes_free() -> None:
    nbytes, each = 2 << 20, 200
    kv = torch.zeros(2 * each, nbytes, dtype=torch.uint8, device="cuda:0")
    workers, copies = Workers("ipc"), CudaCopies(kv)
    memory = DeviceMemory(copies, frame_nbytes=1 << 20, ring_nbytes=1)
    importer = workers.importer(memory, transports=(CudaIpcTransport(copies),))
    last = f"cuda:{torch.cuda.device_count() - 1}"
    try:
        with exporting(2 * each, nbytes, 2, "--withheld") as (child, endpoint):
            for number in range(2):
                block_ids = list(range(number * each, (number + 1) * each))
                importer.fetch(
                    TestTicket(request_id(number), source=endpoint), 0, block_hashes(number, each), block_ids
                )
            (first,) = ends_of(importer, 1)
            assert isinstance(first, Fetched), first
            free_before = torch.cuda.mem_get_info(last)[0]
            child.kill()
            (second,) = ends_of(importer, 1)
            assert isinstance(second, FetchFailed), second
            wait_until(lambda: torch.cuda.mem_get_info(last)[0] >= free_before + 2 * each * nbytes)
        good = each + second.num_blocks  # blocks that were read before are good
        assert torch.equal(kv[:good].cpu(), content(2 * each, nbytes)[:good])
    finally:
        workers.stop()
