"""A face that watches its engine process: who is silent or stuck is ended, who loads, works or ends by itself is not."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator

import pytest

from baton.worker import engine_watch
from baton.worker.engine_watch import EngineWatch
from baton.worker.stats import Pulse

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("STUCK_S", 0.2), ("END_S", 0.1), ("LOOK_S", 0.02)):
        monkeypatch.setattr(engine_watch, name, seconds)


@contextlib.asynccontextmanager
async def watched(
    watch: EngineWatch, draining: asyncio.Event | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a process that does nothing, and watch it."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(3600)")
    watching = asyncio.create_task(watch.end_if_stuck(process, draining or asyncio.Event()))
    try:
        yield process
    finally:
        watching.cancel()
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_process_that_is_stopped_is_silent_and_ended() -> None:
    watch = EngineWatch("w")
    watch.heard(Pulse(False))
    async with watched(watch) as process:
        process.send_signal(signal.SIGSTOP)
        assert await process.wait() == -signal.SIGKILL
        assert watch.has_ended_it
        assert watch.why_stuck == "the engine process does not answer"


async def test_a_process_that_says_that_its_loop_is_stuck_is_ended() -> None:
    watch = EngineWatch("w")
    watch.heard(Pulse(True))
    assert watch.why_stuck == "the loop is stuck"
    async with watched(watch) as process:
        await process.wait()
        assert watch.has_ended_it


async def test_a_stuck_process_that_should_drain_is_ended_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_watch, "END_S", 3600.0)
    watch, draining = EngineWatch("w"), asyncio.Event()
    watch.heard(Pulse(True))
    async with watched(watch, draining) as process:
        draining.set()
        await process.wait()
        assert watch.has_ended_it


@pytest.mark.parametrize("pulses", [[], [Pulse(False), Pulse(False, is_last=True)]], ids=["loads", "ends"])
async def test_a_process_that_loads_or_ends_may_be_silent(pulses: list[Pulse]) -> None:
    watch, other = EngineWatch("w"), EngineWatch("other")
    for pulse in pulses:
        watch.heard(pulse)
    other.heard(Pulse(False))
    async with watched(watch) as process, watched(other) as silent:
        await silent.wait()
        assert process.returncode is None
        assert watch.why_stuck is None
