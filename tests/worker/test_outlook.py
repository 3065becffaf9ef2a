"""What a prefill leg foretells of its queue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.worker.table_top import TableTop, turn_until

from baton.prefill.outlook import LOOK_S, Outlook
from baton.protocol import SamplingParams


def test_a_queued_prompt_waits_for_those_before_it_and_for_itself(tiny_checkpoint: Callable[[str], Path]) -> None:
    table = TableTop(tiny_checkpoint("llama"), 200, max_num_batched_tokens=16)
    now = 0.0
    outlook = Outlook(table.engine, lambda: now)
    params = SamplingParams(temperature=0, max_tokens=2)
    try:
        for length in (100, 50):
            table.start(list(range(3, 3 + length)), params)
        table.loop.turn()
        assert list(outlook.look()) == []
        found = []
        for _ in range(3):
            now += LOOK_S
            found.append([(num_ahead, seconds) for _, num_ahead, seconds in outlook.look()])
            table.loop.turn()
        assert found[0] == [(84, 0.0), (134, 0.0)], "how fast it goes is not known yet"
        assert found[1] == [(68, 68 / 16), (118, 118 / 16)]
        assert found[2] == [(52, 52 / 16), (102, 102 / 16)]
        turn_until([table], lambda: not table.runs, "all end")
        now += LOOK_S
        assert list(outlook.look()) == []
    finally:
        table.close()
