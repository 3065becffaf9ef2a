"""What keeps a process running: when it starts again, and when it does not."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest

from baton import keeper


def kept(
    statuses: Sequence[int],
    monkeypatch: pytest.MonkeyPatch,
    *,
    until: asyncio.Event | None = None,
    lives_s: float = 0.0,
) -> tuple[int | None, list[tuple[int, float]]]:
    """Keep a process that ends with these statuses; the last status, and each death with its pause."""
    clock = itertools.count(step=lives_s)
    monkeypatch.setattr(keeper, "monotonic", lambda: next(clock))
    monkeypatch.setattr(keeper, "BACKOFF_S", (0.0, 0.001, 0.002))
    deaths: list[tuple[int, float]] = []
    ends = iter(statuses)

    async def run() -> int:
        return next(ends)

    async def keep() -> int | None:
        return await keeper.keep(
            run,
            until=until or asyncio.Event(),
            is_last=lambda status: status == 0,
            on_death=lambda *death: deaths.append(death),
        )

    return asyncio.run(keep()), deaths


def test_it_starts_again_until_the_last_status_and_waits_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    status, deaths = kept([1, -9, 1, 1, 0], monkeypatch)
    assert status == 0
    assert deaths == [(1, 0.0), (-9, 0.001), (1, 0.002), (1, 0.002)]


def test_one_that_ran_long_starts_again_as_soon_as_the_first_time(monkeypatch: pytest.MonkeyPatch) -> None:
    _, deaths = kept([1, 1, 0], monkeypatch, lives_s=2 * keeper.STABLE_S)
    assert deaths == [(1, 0.0), (1, 0.0)]


def test_one_that_ends_when_told_to_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    until = asyncio.Event()
    until.set()
    assert kept([-15], monkeypatch, until=until) == (-15, [])
