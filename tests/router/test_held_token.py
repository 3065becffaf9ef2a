"""A first token that waits for the second one, where a target for gaps is stated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from baton.messages import Ticket, Token
from baton.protocol import FinishReason
from baton.router.attempt import Attempt, Choice
from baton.router.config import RouterConfig
from baton.router.held_token import MOST_S, Holding
from baton.router.router_state import RouterState

from .cluster import Cluster, cluster, wait_until
from .test_faults import run_streams

TICKET = Ticket(b"\0" * 16, 0, b"\0" * 16, "layout", "tcp://127.0.0.1:1", "incarnation", 4)


def attempt(**settings: Any) -> Attempt:
    return Attempt(0, 4, [Choice(0)], "d0", "p0", TICKET, **settings)


def first_token(**fields: Any) -> Token:
    return Token(**({"request_id": "r", "epoch": 0, "choice": 0, "position": 4, "token_id": 7} | fields))


def holding(itl_target_ms: float = 20.0, ttft_target_ms: float = 0.0) -> Holding:
    return Holding(RouterConfig(itl_target_ms=itl_target_ms, ttft_target_ms=ttft_target_ms))


def test_a_first_token_is_held_as_long_as_the_target_for_first_tokens_allows() -> None:
    assert holding(ttft_target_ms=500).longest_s(attempt(), first_token(), "p0", 0.1) == pytest.approx(0.375)
    assert holding(ttft_target_ms=500).longest_s(attempt(), first_token(), "p0", 0.6) == 0
    assert holding().longest_s(attempt(), first_token(), "p0", 100.0) == MOST_S


def test_nothing_is_held_without_a_target_for_gaps() -> None:
    assert holding(itl_target_ms=0, ttft_target_ms=500).longest_s(attempt(), first_token(), "p0", 0.1) == 0


@pytest.mark.parametrize(
    ("fields", "worker_id"),
    [({}, "d0"), ({"finish_reason": FinishReason.STOP}, "p0"), ({"epoch": 1}, "p0"), ({"choice": 1}, "p0")],
)
def test_what_no_second_token_follows_at_once_is_not_held(fields: dict[str, Any], worker_id: str) -> None:
    assert holding().longest_s(attempt(), first_token(**fields), worker_id, 0.0) == 0


def test_the_only_token_that_was_asked_for_is_not_held() -> None:
    assert holding().longest_s(attempt(last_at=0), first_token(), "p0", 0.0) == 0


def test_a_first_token_that_the_decode_worker_has_overtaken_is_not_held() -> None:
    overtaken = attempt()
    overtaken.take(first_token(position=5), "d0")
    assert holding().longest_s(overtaken, first_token(), "p0", 0.0) == 0


PAIR: list[dict[str, Any]] = [
    {"worker_id": "p0", "legs": ["prefill"]},
    {"worker_id": "d0", "step_ms": 5.0, "transfer_ms": 50.0},
]
TARGETS: dict[str, Any] = {"path": "remote", "itl_target_ms": 20.0}
A_MINUTE = {"ttft_target_ms": 60_000.0}


def num_held(made: Cluster) -> float:
    """Count first tokens that were held and let go."""
    lines = httpx.get(f"{made.url}/metrics").text.splitlines()
    name = 'baton:phase_seconds_count{model_name="tiny",phase="held"}'
    return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)


def test_streams_are_whole_whether_the_second_token_or_the_clock_ends_the_wait(tmp_path: Path) -> None:
    with cluster(tmp_path, PAIR, **TARGETS, **A_MINUTE) as made:
        run_streams(made, 10)
        assert num_held(made) == 10
    slow = [PAIR[0], PAIR[1] | {"transfer_ms": 400.0}]
    with cluster(tmp_path, slow, **TARGETS) as made:
        run_streams(made, 10)
        assert num_held(made) == 10


@pytest.mark.parametrize("victim", ["d0", "p0"])
def test_a_worker_that_dies_while_its_token_is_held_costs_nothing(tmp_path: Path, victim: str) -> None:
    slow = PAIR[1] | {"transfer_ms": 400.0}
    spare = [PAIR[0] | {"worker_id": "p1"}, slow | {"worker_id": "d1"}]
    with cluster(tmp_path, [PAIR[0], slow, *spare], **TARGETS, **A_MINUTE) as made:

        def kill() -> None:
            made.ask(
                lambda state: any(_holds(running, victim) for running in state.dispatcher.flows.values()), until=True
            )
            made.workers[victim].kill()

        run_streams(made, 20, kill)
        wait_until(lambda: victim not in made.state.pool.workers)


def _is_any_held(state: RouterState) -> bool:
    return any(running.held for running in state.dispatcher.flows.values())


def _holds(running: Any, worker_id: str) -> bool:
    return running.held is not None and any(worker.worker_id == worker_id for worker in running.workers)


def test_a_roll_call_in_which_all_is_well_lets_no_token_go(tmp_path: Path) -> None:
    slow = [PAIR[0], PAIR[1] | {"transfer_ms": 60_000.0}]
    with cluster(tmp_path, slow, **TARGETS, **A_MINUTE) as made:

        def wait_for_roll_calls() -> None:
            made.ask(_is_any_held, until=True)
            num_calls = made.ask(lambda state: state.pool.num_calls)
            made.ask(lambda state: state.pool.num_calls >= num_calls + 6, until=True)  # two of each worker are answered
            assert made.ask(_is_any_held)

        asyncio.run(_ask_and_leave(made, wait_for_roll_calls))
        assert num_held(made) == 0


def test_a_client_that_leaves_while_its_token_is_held_ends_its_request(tmp_path: Path) -> None:
    slow = [PAIR[0], PAIR[1] | {"transfer_ms": 60_000.0}]
    with cluster(tmp_path, slow, **TARGETS, **A_MINUTE) as made:
        asyncio.run(_ask_and_leave(made, lambda: made.ask(_is_any_held, until=True)))
        wait_until(lambda: not made.state.dispatcher.flows)


async def _ask_and_leave(made: Cluster, when: Callable[[], object]) -> None:
    """Ask for a stream, and leave when a call returns."""
    async with httpx.AsyncClient() as client:
        body = {"prompt": [20, 30, 40], "max_tokens": 5, "stream": True}
        task = asyncio.create_task(client.post(f"{made.url}/v1/completions", json=body, timeout=60))
        await asyncio.to_thread(when)
        task.cancel()
