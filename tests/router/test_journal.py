"""When the last requests did what: over HTTP, in front of fake workers, and what its records keep."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from baton.errors import QueueFull
from baton.router.costs import Option
from baton.router.journal import CAPACITY, MAX_ATTEMPTS, NUM_RECORDS, Inputs, Journal, RequestRecord
from baton.router.policy import Decision
from baton.router.sink import Usage

from .cluster import Cluster, cluster, wait_until

PROMPT = [20 + i % 60 for i in range(40)]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    workers = [
        {"worker_id": "p0", "legs": ["prefill"], "prefill_rate": 2000.0},
        {"worker_id": "d0", "legs": ["decode"]},
    ]
    with cluster(tmp_path_factory.mktemp("timeline"), workers, path="remote") as made:
        yield made


def requests_of(serving: Cluster) -> list[dict[str, Any]]:
    answer = httpx.get(f"{serving.url}/debug/requests").raise_for_status().json()
    requests: list[dict[str, Any]] = answer["requests"]
    return requests


def ask(serving: Cluster, public_id: str, **body: Any) -> httpx.Response:
    return httpx.post(
        f"{serving.url}/v1/completions",
        json={"prompt": PROMPT, "max_tokens": 5} | body,
        headers={"x-request-id": public_id},
        timeout=60,
    )


def test_a_request_that_a_pair_served_shows_each_phase_on_its_worker_in_order(serving: Cluster) -> None:
    usage = ask(serving, "pair").raise_for_status().json()["usage"]
    shown = requests_of(serving)[0]
    assert (shown["id"], shown["state"], shown["status"]) == ("pair", "finished", 200)
    assert shown["prompt_tokens"] == usage["prompt_tokens"] == len(PROMPT)
    assert shown["completion_tokens"] == usage["completion_tokens"] == 5
    assert shown["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    (attempt,) = shown["attempts"]
    assert (attempt["prefill"], attempt["decode"], attempt["replay_reason"]) == ("p0", "d0", None)
    spans = {(span["worker"], span["kind"]): span for span in attempt["spans"]}
    assert set(spans) == {("p0", "queue"), ("p0", "prefill"), ("d0", "transfer"), ("d0", "queue"), ("d0", "decode")}
    assert all(span["start_ms"] <= span["end_ms"] for span in spans.values())
    prefill, decode = spans["p0", "prefill"], spans["d0", "decode"]
    assert 0 <= attempt["sent_ms"] <= prefill["end_ms"] == shown["first_token_ms"]
    assert decode["end_ms"] == attempt["ended_ms"] == shown["total_ms"]
    assert shown["first_token_ms"] <= shown["total_ms"]
    assert prefill["tokens"] == len(PROMPT)
    transfer = spans["d0", "transfer"]
    assert transfer["tokens"] == len(PROMPT)
    assert 0 <= transfer["exposed_ms"] <= transfer["end_ms"] - transfer["start_ms"] + 0.01


def test_cached_tokens_are_told_apart_from_computed_ones(serving: Cluster) -> None:
    for _ in range(2):
        ask(serving, "again", prompt=[90, *PROMPT])
    shown = requests_of(serving)[0]
    (prefill,) = [span for span in shown["attempts"][0]["spans"] if span["kind"] == "prefill"]
    assert shown["cached_tokens"] == 32  # of 41, in blocks of 16
    assert prefill["tokens"] == 9


def test_no_text_and_no_token_is_in_it(serving: Cluster) -> None:
    ask(serving, "secret", prompt="a very private matter")
    text = httpx.get(f"{serving.url}/debug/requests").text
    assert "secret" in text
    assert "private" not in text
    assert "prompt_ids" not in text


def test_a_running_request_and_one_whose_client_left_are_told_apart(serving: Cluster) -> None:
    with httpx.stream(
        "POST",
        f"{serving.url}/v1/completions",
        json={"prompt": PROMPT, "max_tokens": 1500, "stream": True},
        headers={"x-request-id": "leaving"},
    ) as answer:
        lines = answer.iter_lines()
        while not next(lines).startswith("data: "):
            pass
        wait_until(lambda: requests_of(serving)[0]["completion_tokens"] > 1)
        running = requests_of(serving)[0]
        assert (running["id"], running["state"], running["total_ms"]) == ("leaving", "running", None)
    wait_until(lambda: requests_of(serving)[0]["state"] == "cancelled")


def test_the_newest_come_first_and_so_many_as_asked_for(serving: Cluster) -> None:
    for name in ("one", "two"):
        ask(serving, name)
    assert [each["id"] for each in requests_of(serving)[:2]] == ["two", "one"]
    limited = httpx.get(f"{serving.url}/debug/requests", params={"limit": 1}).json()
    assert [each["id"] for each in limited["requests"]] == ["two"]


@pytest.mark.parametrize("limit", ["0", "-1", "201", "x", "", "1e2", "１"])
def test_a_limit_that_is_none_is_refused_by_name(serving: Cluster, limit: str) -> None:
    answer = httpx.get(f"{serving.url}/debug/requests", params={"limit": limit})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "limit"


def test_a_replay_shows_both_attempts_and_why(tmp_path: Path) -> None:
    dying, other = {"worker_id": "d0", "die_after_tokens": 5}, {"worker_id": "d1"}
    with cluster(tmp_path, [dying, other], policy="round-robin") as made:  # d0 comes first
        assert ask(made, "replayed", max_tokens=40).status_code == 200
        shown = requests_of(made)[0]
        first, second = shown["attempts"]
        assert (first["decode"], second["decode"]) == ("d0", "d1")
        assert (first["epoch"], second["epoch"]) == (0, 1)
        assert (first["replay_reason"], second["replay_reason"]) == ("decode_lost", None)
        assert first["ended_ms"] <= second["sent_ms"] <= second["ended_ms"] == shown["total_ms"]
        assert (shown["state"], shown["completion_tokens"]) == ("finished", 40)
        assert [span["kind"] for span in second["spans"]] == ["queue", "prefill", "decode"]


def test_a_request_that_failed_shows_the_status_of_its_error(tmp_path: Path) -> None:
    failing = {"worker_id": "d0", "legs": ["decode"], "fail_kind": "internal"}
    with cluster(tmp_path, [failing]) as made:
        assert ask(made, "failing").status_code == 503
        shown = requests_of(made)[0]
        assert (shown["state"], shown["status"], shown["first_token_ms"]) == ("failed", 503, None)
        assert [attempt["replay_reason"] for attempt in shown["attempts"]] == ["internal"] * 4


def test_memory_is_bounded_over_requests_and_over_attempts() -> None:
    journal = Journal()
    for i in range(NUM_RECORDS + 5):
        journal.add(RequestRecord(str(i), Usage(1), 0.0))
    kept = [record.public_id for record in journal.newest(NUM_RECORDS + 5)]
    assert kept == [str(i) for i in range(NUM_RECORDS + 4, 4, -1)]
    (record,) = journal.newest(1)
    option = Option("local", "d0", None, 0.0)
    for epoch in range(MAX_ATTEMPTS + 3):
        record.placed(epoch, Decision(option, [option]), 1.0)
        record.replayed("draining", 2.0)
    assert [attempt.epoch for attempt in record.attempts] == list(range(3, MAX_ATTEMPTS + 3))


def test_the_routes_of_an_id_are_those_of_all_its_requests_in_order() -> None:
    journal, option = Journal(), Option("local", "d0", None, 0.0)
    for public_id in ("mine", "other", "mine"):
        record = RequestRecord(public_id, Usage(1), 0.0)
        journal.add(record)
        record.placed(0, Decision(option, [option]), 1.0)
    mine = [record for record in journal.newest(3) if record.public_id == "mine"]
    assert journal.routes("mine") == [mine[1].attempts[0], mine[0].attempts[0]]
    assert journal.routes("nobody") == []


def test_an_attempt_that_no_worker_took_has_a_route_and_no_place_in_the_timeline() -> None:
    record, option = RequestRecord("id", Usage(1), 0.5), Option("local", "d0", None, 0.0)
    record.placed(0, Decision(option, [option]), 0.0)
    record.placed(1, Decision(option, [option]), 1.0)
    assert [shown["epoch"] for shown in record.describe()["attempts"]] == [1]


def test_a_refused_request_is_listed_with_time_status_and_a_word_of_ours(serving: Cluster) -> None:
    before = serving.state.dispatcher.journal.num_refused
    for public_id, body in (
        ("misspelt", {"max_tokenz": 5}),
        ("too-long", {"max_tokens": 100_000}),
        ("elsewhere", {"model": "my-secret-model"}),
    ):
        assert ask(serving, public_id, **body).is_client_error
    shown = requests_of(serving)[:3]
    assert [(each["id"], each["state"], each["status"], each["cause"]) for each in shown] == [
        ("elsewhere", "refused", 404, "model_not_found"),
        ("too-long", "refused", 400, "context_length_exceeded"),
        ("misspelt", "refused", 400, "unknown_parameter"),
    ]
    assert all(each["at"] > 1e9 and not each["attempts"] for each in shown)
    assert serving.state.dispatcher.journal.num_refused == before + 3
    text = httpx.get(f"{serving.url}/debug/requests").text
    assert "secret-model" not in text
    assert "tokenz" not in text


def test_a_request_that_failed_after_it_was_taken_in_is_listed_once(tmp_path: Path) -> None:
    with cluster(tmp_path, [{"worker_id": "d0", "fail_kind": "internal"}]) as made:
        assert ask(made, "once").status_code == 503
        (shown,) = requests_of(made)
        assert (shown["state"], shown["status"], shown["cause"]) == ("failed", 503, "unavailable")


def test_what_admission_refuses_is_listed_and_counts_as_no_answer(tmp_path: Path) -> None:
    with cluster(tmp_path, [{"worker_id": "d0"}], max_streams=1) as made:
        body = {"prompt": PROMPT, "max_tokens": 1500, "stream": True}
        with httpx.stream("POST", f"{made.url}/v1/completions", json=body) as answer:
            lines = answer.iter_lines()  # kept: it closes the stream when it is let go
            next(lines)
            assert ask(made, "too-many", stream=True).status_code == 429
            shown = requests_of(made)[0]
            assert (shown["id"], shown["state"], shown["status"], shown["cause"]) == (
                *("too-many", "refused", 429, "streams"),
            )
            history = httpx.get(f"{made.url}/debug/history").json()
            assert (history["minute"]["refusals"], history["minute"]["errors"]) == (1, 0)
        metrics = made.state.metrics
        wait_until(lambda: metrics.request_success.value("abort") == 1)  # the stream's, whose client left
        assert metrics.e2e_request_latency_seconds.buckets()[-1][1] == 1


def test_nobody_without_a_key_can_fill_the_list(tmp_path: Path) -> None:
    with cluster(tmp_path, [{"worker_id": "d0"}], api_key=("a_key_that_is_long_enough",)) as made:
        assert ask(made, "stranger").status_code == 401
        assert made.state.dispatcher.journal.num_refused == 0


def test_many_refusals_drive_no_other_request_out() -> None:
    journal = Journal()
    for i in range(10):
        journal.add(RequestRecord(f"taken {i}", Usage(1), float(i)))
    for i in range(CAPACITY + 100):
        journal.refuse(f"refused {i}", b"", QueueFull("busy"))
    shown = [record.public_id for record in journal.newest(8)]
    assert shown == [f"refused {CAPACITY + 99 - i}" for i in range(4)] + [f"taken {9 - i}" for i in range(4)]
    assert len(journal.newest(CAPACITY)) == CAPACITY
    assert len(journal.newest(1000)) == CAPACITY + 10
    assert journal.num_refused == CAPACITY + 100


def test_inputs_of_one_request_are_told_of_in_its_record_alone() -> None:
    whole = RequestRecord("many", Usage(6), 0.0, inputs=Inputs(3))
    inputs = [RequestRecord("many", Usage(2), 0.0, input_of=whole) for _ in range(3)]
    for worker, record in zip(("d0", "d1", "d0"), inputs, strict=True):
        record.placed(0, Decision(Option("local", worker, None, 0.0), []), 1.0)
    assert whole.describe()["state"] == "waiting"
    inputs[0].end("finished", None, 2.0)
    inputs[1].replayed("lost", 3.0)
    inputs[1].placed(1, Decision(Option("local", "d0", None, 0.0), []), 3.0)
    inputs[1].end("finished", None, 4.0)
    inputs[2].end("failed", QueueFull("full"), 5.0)
    assert whole.describe()["state"] == "running"
    whole.end("failed", QueueFull("full"), 5.0)
    shown = whole.describe()
    assert (shown["state"], shown["status"], shown["cause"]) == ("failed", 429, "queue_full")
    assert shown["inputs"] == {"count": 3, "done": 2, "by_worker": {"d0": 3, "d1": 1}}
    assert [attempt["ended_ms"] for attempt in shown["attempts"]] == [2000, 3000, 5000, 4000]
