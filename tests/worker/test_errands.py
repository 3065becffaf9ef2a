"""What admins ask of a worker: the real loop, engine and legs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.worker.table_top import TableTop, turn_until

from baton.messages import Command, Done, Order
from baton.protocol import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPT = [3 + i * 7 % 200 for i in range(70)]


@pytest.fixture
def table(tiny_checkpoint: Callable[[str], Path]) -> Iterator[TableTop]:
    made = TableTop(tiny_checkpoint("llama"), 64)
    yield made
    made.close()


def give(table: TableTop, order: Order, level: int = 0, *, number: int = 1) -> None:
    table.mailbox.arrived.append((table.peer, Command(number, order, level)))


def answers(table: TableTop) -> list[tuple[int, str]]:
    return [(said.number, said.error) for _, said in table.mailbox.posted if isinstance(said, Done)]


def ask(table: TableTop) -> list[int]:
    request_id = table.start(PROMPT, GREEDY)
    turn_until([table], lambda: len(table.ids(request_id)) == 12, "the answer is whole")
    turn_until([table], lambda: not table.runs, "nothing runs")
    return table.ids(request_id)


def test_what_is_cached_is_forgotten_and_what_runs_goes_on(table: TableTop) -> None:
    expected = ask(table)
    pool, cache = table.engine.pool, table.engine.cache
    request_id = table.start(PROMPT, GREEDY)
    turn_until([table], lambda: len(table.ids(request_id)) >= 3, "it runs")
    give(table, "reset_prefix_cache")
    turn_until([table], lambda: answers(table) == [(1, "")], "it is done")
    assert len(cache) == pool.num_cached == 0
    turn_until([table], lambda: not table.runs, "nothing runs")
    assert table.ids(request_id) == expected == ask(table)


def test_it_sleeps_once_nothing_runs_and_wakes_with_no_memory_lost(table: TableTop) -> None:
    expected = ask(table)
    kv, pool = table.engine.runner.kv, table.engine.pool
    running = table.start(PROMPT[:40], GREEDY)
    turn_until([table], lambda: len(table.ids(running)) >= 2, "it runs")
    give(table, "sleep", 1)
    late = table.start(PROMPT, GREEDY)
    turn_until([table], lambda: table.errors(late), "the late one is refused")
    assert table.errors(late) == ["draining retryable"]
    assert not answers(table)
    turn_until([table], lambda: answers(table), "it sleeps")
    assert len(table.ids(running)) == 12
    assert table.mailbox.load.asleep
    assert not kv[1:-1].any()
    assert pool.num_free == pool.num_total
    give(table, "wake_up", number=2)
    turn_until([table], lambda: answers(table) == [(1, ""), (2, "")], "it is awake")
    assert not table.mailbox.load.asleep
    assert ask(table) == expected


def test_who_is_woken_before_it_sleeps_says_so(table: TableTop) -> None:
    running = table.start(PROMPT, GREEDY)
    turn_until([table], lambda: table.ids(running), "it runs")
    give(table, "sleep", 1)
    give(table, "wake_up", number=2)
    turn_until([table], lambda: len(answers(table)) == 2, "both are answered")
    assert answers(table) == [(1, "it was woken up meanwhile"), (2, "")]
    turn_until([table], lambda: len(table.ids(running)) == 12, "the answer is whole")


def test_weights_are_not_dropped(table: TableTop) -> None:
    give(table, "sleep", 2)
    turn_until([table], lambda: answers(table), "it is answered")
    assert "level=2 is not served" in answers(table)[0][1]
    assert not table.mailbox.load.asleep
