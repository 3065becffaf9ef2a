"""Memory of KV that is given back is gone, and comes back as zeros."""

from __future__ import annotations

import os

import pytest
import torch

from baton.engine.kv_cache import KVCacheSpec, KVGroup
from baton.engine.kv_pages import give_back

SPEC = KVCacheSpec((KVGroup((0, 1), "full", (2, 16, 4, 32), torch.float32),), 16)


def resident_nbytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("is_shared", [False, True])
def test_pages_go_back_to_the_system(is_shared: bool) -> None:
    kv, fd = SPEC.allocate_shared(1024) if is_shared else (SPEC.allocate(1024, torch.device("cpu")), None)
    kv.fill_(1.0)
    before = resident_nbytes()
    give_back(kv)
    assert before - resident_nbytes() > kv.nbytes * 0.9
    if fd is not None:
        assert os.fstat(fd).st_blocks * 512 < kv.nbytes * 0.1
    assert not kv[1:-1].any()
    kv.fill_(2.0)
    assert bool((kv == 2.0).all())


def test_less_than_a_page_stays() -> None:
    kv = torch.ones(8)
    give_back(kv)
    assert bool((kv == 1.0).all())
