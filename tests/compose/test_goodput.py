"""Goodput, the search for a rate, the table and the file of `baton bench serve`."""

from __future__ import annotations

import json
import math

import pytest
from docs import serving_tables
from hypothesis import given
from hypothesis import strategies as st

from baton.bench.completion_stream import Outcome
from baton.bench.goodput import Search, Targets
from baton.bench.loads import Load
from baton.bench.serve import Served, Server
from baton.bench.serve_file import ServeFile
from baton.bench.serve_plan import search
from baton.bench.serve_result import Client, Result
from baton.bench.serve_table import table_lines
from baton.errors import ConfigError


def outcome(first_ms: float, *gaps_ms: float, error: str | None = None, **fields) -> Outcome:
    gaps = [gap / 1e3 for gap in gaps_ms]
    total = first_ms / 1e3 + sum(gaps)
    whole = {"input_len": 100, "num_tokens": 1 + len(gaps), "num_events": 1 + len(gaps), **fields}
    return Outcome(first_s=first_ms / 1e3, gaps_s=gaps, total_s=total, error=error, **whole)


def test_a_request_is_good_by_its_first_token_and_its_own_99th_percentile() -> None:
    targets = Targets(500, 30)
    assert targets.holds(outcome(500, 30, 30))
    assert not targets.holds(outcome(501, 30))
    assert not targets.holds(outcome(10, 31))
    assert targets.holds(outcome(10))
    assert targets.holds(outcome(10, *[5] * 199, 90))  # of 200 gaps one may be longer
    assert not targets.holds(outcome(10, *[5] * 198, 90, 90))
    assert not targets.holds(outcome(10, *[5] * 98, 90))
    assert not targets.holds(outcome(10, 5, error="lost"))
    assert not targets.holds(Outcome())


def test_one_run_is_judged_at_several_targets_and_failures_are_not_good() -> None:
    outcomes = [outcome(100, 12), outcome(100, 20), outcome(100, 8), outcome(100, 8, error="x")]
    assert [Targets(500, itl).share(outcomes) for itl in (30, 15, 10)] == [0.75, 0.5, 0.25]
    assert math.isnan(Targets().share([]))


@given(limit=st.floats(0.5, 200), runs=st.integers(3, 12))
def test_a_search_ends_beside_the_highest_rate_that_holds(limit, runs) -> None:
    between, shares = Search(low=1, high=64), dict[float, float]()
    for _ in range(30):
        if (rate := between.next_rate(shares)) is None:
            break
        assert 1 <= rate <= 64
        assert rate not in shares
        shares[rate] = 1.0 if rate <= limit else 0.5
    assert len(shares) <= 10
    held, failed = between.held(shares), between.failed(shares)
    if limit < 1:
        assert held is None
    elif limit >= 64:
        assert (held, failed) == (64, None)
    else:
        assert held is not None
        assert failed is not None
        assert held <= limit < failed
        assert failed / held <= 1.06


def test_a_rate_that_holds_above_one_that_failed_does_not_count() -> None:
    assert Search(low=1, high=64).held({1: 1.0, 8: 0.5, 16: 0.95, 64: 0.1}) == 1


def test_a_search_needs_two_finite_rates() -> None:
    assert search([32, 4, 8], 0.95) == Search(low=4, high=32, good_share=0.95)
    for rates in ([8], [8, math.inf], [math.inf]):
        with pytest.raises(ConfigError, match="name two finite rates to search between"):
            search(rates, 0.9)


def result(rate: float, *outcomes: Outcome) -> Result:
    targets = Targets(500, 30), Targets(500, 10)
    return Result(Load(f"{rate:g} requests/s", [], rate), outcomes, 10.0, Client(), targets)


def served(label: str) -> Served:
    return Served(Server(url=f"http://{label}", label=label), "a-model", 4096)


def test_the_table_has_a_row_a_server_and_rate_and_the_ratio_beside_the_first() -> None:
    file = ServeFile(None, {})
    file.add(served("one"), result(16, outcome(100, 12), outcome(100, 40)))
    file.add(served("two"), result(16, outcome(50, 6), outcome(50, 6)))
    file.add(served("one"), result(8, outcome(100, 12)))
    lines = list(table_lines(file.runs))
    assert max(map(len, lines)) <= 100
    assert [line.split()[:2] for line in lines[2:5]] == [["one", "8"], ["one", "16"], ["two", "16"]]
    assert lines[3].split()[-2:] == ["0.50", "0.00"]
    assert lines[4].split()[-2:] == ["1.00", "1.00"]
    assert lines[5].split()[0] == "ratio"
    assert "x0.50" in lines[5]
    assert lines[5].split()[-2:] == ["x2.00", "-"]


def test_a_file_becomes_a_table_of_the_pages(tmp_path, monkeypatch) -> None:
    file = ServeFile(tmp_path / "h100" / "serving.json", {})
    for rate in (16, 8):
        file.add(served("apart"), result(rate, outcome(100, 12)))
    file.add(served("together"), result(8, outcome(50, 6)))
    monkeypatch.setattr(serving_tables, "RESULTS", tmp_path)
    assert serving_tables.serving_table("h100").splitlines()[2:] == [
        "| 8 | apart | 1.00 | 0.00 | 100, 100 | 12.0, 12 | 0 |",
        "| 8 | together | 1.00 | 1.00 | 50, 50 | 6.0, 6 | 0 |",
        "| 16 | apart | 1.00 | 0.00 | 100, 100 | 12.0, 12 | 0 |",
    ]


def test_a_file_collects_servers_of_the_same_load_and_refuses_another_load(tmp_path) -> None:
    path = tmp_path / "new" / "out.json"
    load = {"input_len": (1, 2), "seed": "a"}
    ServeFile(path, load).add(served("one"), result(8, outcome(100, 12)))
    second = ServeFile(path, load)
    second.add(served("two"), result(math.inf, outcome(100, 12)))
    second.add(served("one"), result(8, outcome(200, 12)))
    whole = json.loads(path.read_text())
    assert list(whole["servers"]) == ["one", "two"]
    (run,) = whole["servers"]["one"]["runs"]
    assert run["median_ttft_ms"] == pytest.approx(200)
    assert run["goodput"][1]["share"] == 0.0
    assert whole["servers"]["two"]["runs"][0]["rate"] == "inf"
    with pytest.raises(ConfigError, match=r"runs of another load: seed differ\. Name another file"):
        ServeFile(path, load | {"seed": "b"})
    path.write_text("[]")
    with pytest.raises(ConfigError, match="holds no runs"):
        ServeFile(path, load)


def test_a_block_tells_goodput_turns_longest_gaps_and_what_the_server_counted() -> None:
    outcomes = [
        outcome(400, 12, 90, num_cached=0),
        outcome(40, 12, num_cached=80, turn=1),
        outcome(40, 12, 0, num_events=2, num_cached=80, turn=1),
    ]
    found = result(8, *outcomes)
    found.counted = {"replays (gap)": 2, "local": 3, "remote": 0}
    found.transfers = {"seen": 3, "computed_again": 1}
    text = "\n".join(found.lines())
    assert max(map(len, text.splitlines())) <= 80
    assert "good        66.7%" in text
    assert "server      replays (gap) 2, local 3" in text
    assert "KV          1 of 3 prompts computed again; waited for none" in text
    assert "turn 2      TTFT median 40.0" in text
    assert "80.0% cached" in text
    assert "in 7 events" in text
    lost = result(8, *(outcome(1, error=f"429: wait {seconds} s") for seconds in (1.5, 2)), outcome(1, error="cut"))
    assert [line for line in lost.lines() if "failed  " in line] == [
        "  failed      2: 429: wait 2 s",
        "  failed      1: cut",
    ]
    numbers = found.numbers()
    assert numbers["max_itl_ms"] == pytest.approx(90)
    assert numbers["request_goodput"] == pytest.approx(0.2)
    json.dumps(numbers, allow_nan=False)
