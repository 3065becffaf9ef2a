"""KV between two caches on a GPU, with the engine's stream at work on both."""

from __future__ import annotations

import os
import secrets
from typing import Any

import pytest
import torch

from baton.kvtransfer.cuda_copies import CudaCopies
from baton.kvtransfer.device_memory import DeviceMemory
from baton.kvtransfer.imports import Fetched
from baton.kvtransfer.wire import layout_fingerprint

from .blocks import TestTicket, block_hashes, request_id
from .test_transfer import CONFIG, Workers, assert_nothing_is_left, ends_of, offer_all, releases_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LONG_CYCLES = 200_000_000
"""About a tenth of a second on any GPU: long beside a copy."""


def random_kv(num_blocks: int, seed: int) -> torch.Tensor:
    """Make a cache [num_blocks, 4 layers, 2, 16, 2 heads, 64]: blocks of 32 KiB."""
    torch.manual_seed(seed)
    return torch.randn(num_blocks, 4, 2, 16, 2, 64, device="cuda").bfloat16()


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_caches_of_two_gpu_workers_hold_the_same_afterwards(scheme: str) -> None:
    workers = Workers(scheme)
    num, each = 24, 37
    theirs, ours = random_kv(num * each, 1), random_kv(num * each, 2)
    nbytes = theirs[0].numel() * 2
    common: dict[str, Any] = {"layout": layout_fingerprint(nbytes)}
    exporter = workers.exporter(
        DeviceMemory(CudaCopies(theirs), frame_nbytes=CONFIG.message_nbytes, ring_nbytes=1), **common
    )
    importer = workers.importer(
        DeviceMemory(CudaCopies(ours), frame_nbytes=CONFIG.message_nbytes, ring_nbytes=1), **common
    )
    order = torch.randperm(num * each).tolist()
    try:
        for number in range(num):
            span = slice(number * each, (number + 1) * each)
            ticket = TestTicket(
                request_id(number), secret=secrets.token_bytes(16), source=exporter.endpoint, layout=common["layout"]
            )
            torch.cuda._sleep(LONG_CYCLES // 10)  # a step in flight, which still writes where KV is to land
            ours[order[span]] = 7.0
            importer.fetch(ticket, 0, block_hashes(number, each), order[span])
            offer_all(exporter, ticket, number, list(range(num * each))[span])
        for end in ends_of(importer, num):
            assert isinstance(end, Fetched), end
        assert {released.reason for released in releases_of(exporter, num)} == {"fetched"}
        assert_nothing_is_left(exporter, importer)
    finally:
        workers.stop()
    assert torch.equal(ours[order], theirs)


def test_what_the_engine_started_before_never_overwrites_what_landed() -> None:
    kv = random_kv(8, 3)
    memory = DeviceMemory(CudaCopies(kv), frame_nbytes=1 << 20)
    content = random_kv(1, 4).cpu()
    block = content.view(torch.uint8).numpy().reshape(-1).data
    for cycles in (1, 10 * LONG_CYCLES):  # first to load the kernels, for which the driver may wait for the device
        torch.cuda._sleep(cycles)
        kv[5] = 7.0
        step = torch.cuda.current_stream().record_event()
        memory.expect([5])
        landing = memory.land([5], [block])
    assert not step.query(), "the step was too short to show anything"
    assert not landing.is_ready()
    torch.cuda.synchronize()
    assert landing.is_ready()
    assert torch.equal(kv[5].cpu(), content[0])


def test_copies_run_beside_a_busy_engine() -> None:
    kv = random_kv(8, 5)
    want = kv.cpu()
    torch.cuda.synchronize()
    memory = DeviceMemory(CudaCopies(kv), frame_nbytes=1 << 20)
    torch.cuda._sleep(10 * LONG_CYCLES)
    stage = memory.stage([6, 1, 2])
    assert stage is not None
    while not stage.is_ready():
        pass
    assert not torch.cuda.current_stream().query(), "the copy waited for the engine"
    assert b"".join(stage.read()[1]) == want[[6, 1, 2]].view(torch.uint8).numpy().tobytes()


def test_memory_that_copies_reached_is_let_go_before_it_is_unmapped() -> None:
    """What is mapped next lies at the same address, which the driver would still take for the old one."""
    copies = CudaCopies(random_kv(8, 1))
    for _ in range(3):
        room, fd = copies.pin_shared(1 << 20)
        assert fd is not None
        os.close(fd)
        del room
