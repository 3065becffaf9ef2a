"""The demo model's engine, as it runs on a CPU and as it runs on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from baton.llm import LLM


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(use_tqdm=False, kv_cache_memory_bytes=2**26, max_num_seqs=16)


@pytest.fixture(params=["in step", "one step behind"])
def engine_llm(llm: LLM, request: pytest.FixtureRequest) -> Iterator[LLM]:
    """Give the engine as it runs on a CPU, and as it runs on a GPU."""
    llm.engine._runs_behind = request.param == "one step behind"
    yield llm
    llm.engine._runs_behind = False
