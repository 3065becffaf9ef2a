"""The policy: a pure function, so its promises are checked over all inputs."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.messages import Load
from baton.router.costs import Candidate, Shape, Weights
from baton.router.links import Link
from baton.router.placement import like_peers
from baton.router.policy import choose
from baton.router.pool import StepModel
from baton.step_pace import StepPace


def make(worker_id: str, legs: str, **changes: Any) -> Candidate:
    fields: dict[str, Any] = {
        "worker_id": worker_id,
        "can_prefill": "p" in legs,
        "can_decode": "d" in legs,
        "layout": "l",
        "queue_tokens": 0,
        "prefill_rate": 10_000.0,
        "cached_blocks": 0,
        "step_ms": 10.0,
    }
    return Candidate(**(fields | changes))


SHAPE = Shape(1024, 16, 65)
candidates = st.lists(
    st.builds(
        Candidate,
        worker_id=st.uuids().map(str),
        can_prefill=st.booleans(),
        can_decode=st.booleans(),
        layout=st.sampled_from(["a", "b"]),
        queue_tokens=st.integers(0, 10**6),
        prefill_rate=st.floats(1, 10**6),
        cached_blocks=st.integers(0, 64),
        stored_blocks=st.integers(0, 64),
        num_running=st.integers(0, 300),
        step_ms=st.floats(0, 1000),
        free_blocks=st.integers(0, 1000),
        total_blocks=st.integers(0, 1000),
    ),
    max_size=8,
)


def best(workers: list[Candidate], shape: Shape = SHAPE, **options: Any) -> Any:
    decision = choose(options.pop("policy", "cost"), shape, workers, {}, rng=random.Random(0), **options)
    assert decision is not None
    return decision.chosen


def test_what_the_store_of_a_host_has_is_loaded_and_not_computed() -> None:
    workers = [make("p", "p"), make("q", "p", stored_blocks=32), make("r", "p", cached_blocks=32), make("d", "d")]
    chosen = best(workers[:2] + workers[3:], path="remote")
    assert chosen.prefill == "q"
    assert chosen.terms["prefill"] == 51.2
    assert chosen.terms["load"] > 0
    assert best(workers, path="remote").prefill == "r"


@given(
    candidates,
    st.sampled_from(["cost", "least-load", "round-robin", "prefix-only"]),
    st.sampled_from(["auto", "remote", "local"]),
    st.integers(0, 100),
)
def test_whatever_is_chosen_can_be_done(workers: list[Candidate], policy: Any, path: Any, turn: int) -> None:
    decision = choose(policy, SHAPE, workers, {}, path=path, turn=turn, rng=random.Random(1))
    by_id = {worker.worker_id: worker for worker in workers}
    able = [w for w in workers if w.can_decode and w.total_blocks >= SHAPE.num_blocks]
    assert (decision is None) == (not able)
    if decision is None:
        return
    chosen = decision.chosen
    assert chosen in decision.considered
    assert by_id[chosen.decode] in able
    if chosen.prefill is not None:
        assert path != "local"
        prefill = by_id[chosen.prefill]
        assert prefill.can_prefill
        assert prefill.layout == by_id[chosen.decode].layout
        assert prefill is not by_id[chosen.decode]
    if policy == "cost":
        assert chosen.cost_ms == min(option.cost_ms for option in decision.considered)
    for option in decision.considered:
        assert abs(option.cost_ms - sum(option.terms.values())) < 1e-6 * max(1, option.cost_ms)


@given(candidates, st.integers(0, 10**6))
def test_more_load_never_makes_a_worker_cheaper(workers: list[Candidate], more: int) -> None:
    if not workers:
        return
    loaded = [dataclasses.replace(workers[0], queue_tokens=workers[0].queue_tokens + more), *workers[1:]]
    before = choose("cost", SHAPE, workers, {}, rng=random.Random(0))
    after = choose("cost", SHAPE, loaded, {}, rng=random.Random(0))
    if before is None or after is None:
        return
    for old, new in zip(before.considered, after.considered, strict=True):
        assert (old.decode, old.prefill) == (new.decode, new.prefill)
        assert new.cost_ms >= old.cost_ms


def test_a_busy_decode_worker_sends_long_prompts_to_the_prefill_worker_and_keeps_short_ones() -> None:
    workers = [make("p", "p"), make("d", "d", num_running=32)]
    assert best(workers).path == "remote"
    assert best(workers, Shape(16, 16, 2)).path == "local"


def test_an_idle_decode_worker_computes_prompts_itself() -> None:
    assert best([make("p", "p"), make("d", "d")]).path == "local"


def test_a_prompt_that_the_decode_worker_has_cached_skips_the_prefill_worker() -> None:
    workers = [make("p", "p"), make("d", "d", num_running=32, cached_blocks=63)]
    assert best(workers).path == "local"


def test_a_cached_prefix_draws_requests_until_its_worker_is_busier_than_that_is_worth() -> None:
    warm = make("p0", "p", cached_blocks=60)
    others = [make("p1", "p"), make("d", "d", num_running=64)]
    assert best([warm, *others]).prefill == "p0"
    busy = make("p0", "p", cached_blocks=60, queue_tokens=10_000)
    assert best([busy, *others]).prefill == "p1"


def test_a_saturated_prefill_pool_borrows_a_decode_worker_that_idles_and_gives_it_back() -> None:
    full = make("p", "p", queue_tokens=50_000)
    idle, busy = make("d0", "pd", place_ms=60_000.0), make("d1", "pd", num_running=64)
    assert (best([full, idle, busy]).prefill, best([full, idle, busy]).decode) == ("d0", "d1")
    assert best([make("p", "p"), dataclasses.replace(idle, num_running=1), busy]).prefill == "p"
    streaming = make("d0", "pd", place_ms=60_000.0, num_running=64)
    slowed = best([make("p", "p", queue_tokens=2_000), streaming, busy])
    assert slowed.prefill == "p"
    assert slowed.terms["delay"] == 0


def test_a_decode_worker_whose_batch_is_full_hands_the_prefix_that_it_has_to_another() -> None:
    warm = make("d0", "pd", cached_blocks=60, num_running=64, place_ms=5_000.0)
    assert (best([warm, make("d1", "pd", num_running=60)]).prefill, best([warm, make("d1", "pd")]).decode) == (
        "d0",
        "d1",
    )
    no_room = dataclasses.replace(warm, cached_blocks=0, free_blocks=0)
    assert best([no_room, make("d1", "pd", num_running=8)]).path == "local"


def test_workers_of_different_layouts_are_never_paired() -> None:
    workers = [make("p", "p", layout="x"), make("d", "d", num_running=300)]
    assert best(workers, path="remote").path == "local"


def test_round_robin_takes_each_pair_in_turn() -> None:
    workers = [make("p0", "p"), make("p1", "p"), make("d0", "d"), make("d1", "d")]
    pairs = [best(workers, policy="round-robin", turn=turn) for turn in range(8)]
    assert len({(option.prefill, option.decode) for option in pairs[:4]}) == 4
    assert [(o.prefill, o.decode) for o in pairs[:4]] == [(o.prefill, o.decode) for o in pairs[4:]]


def test_prefix_only_goes_where_the_prefix_is_and_least_load_where_it_is_quiet() -> None:
    workers = [make("p0", "p", cached_blocks=9, queue_tokens=999), make("p1", "p"), make("d", "d")]
    assert best(workers, policy="prefix-only").prefill == "p0"
    assert best(workers, policy="least-load").prefill == "p1"


def test_the_step_model_learns_a_line() -> None:
    model = StepModel()
    assert model.predict(5) == 0.0
    rng = random.Random(0)
    for _ in range(500):
        n = rng.randrange(1, 100)
        model.observe(n, 5 + 0.1 * n)
    assert abs(model.predict(50) - 10) < 0.5
    assert abs(model.predict(100) - 15) < 1.0


def test_a_worker_that_has_not_reported_is_taken_for_one_like_the_others() -> None:
    known = [make("p", "p", prefill_rate=300.0, step_ms=0.0), make("d", "d", prefill_rate=500.0, step_ms=80.0)]
    new = make("n", "pd", prefill_rate=0.0, step_ms=0.0)
    guessed = like_peers([*known, new], 8000.0)
    assert guessed[:2] == [dataclasses.replace(known[0], step_ms=80.0), known[1]]
    assert (guessed[2].prefill_rate, guessed[2].step_ms) == (400.0, 80.0)
    assert like_peers([new], 8000.0)[0].prefill_rate == 8000.0


def test_the_link_model_learns_what_transfers_expose() -> None:
    link = Link()
    for _ in range(100):
        link = link.learn(1000, 0.103, now=5.0)
    assert abs(link.fixed_ms + 1000 * link.ms_per_token - 103) < 2
    assert abs(link.exposed_ms(1000, 1e6, now=5.0) - 103) < 2
    assert Link().ms_per_token > 0


def test_a_link_that_was_slow_once_is_tried_again_and_believed() -> None:
    workers = [make("p0", "p"), make("p1", "p"), make("d", "d")]
    links = {("p0", "d"): Link().learn(1000, 12.0, now=0.0)}

    def chosen(now: float) -> set[str | None]:
        decisions = (
            choose("cost", SHAPE, workers, links, path="remote", now=now, rng=random.Random(i)) for i in range(20)
        )
        return {decision.chosen.prefill for decision in decisions if decision is not None}

    assert chosen(1.0) == {"p1"}
    assert chosen(60.0) == {"p1"}
    assert chosen(3600.0) == {"p0", "p1"}
    slow = links["p0", "d"].learn(1000, 12.0, now=3600.0)
    assert slow.exposed_ms(1000, 1e6, now=3600.0) > 5_000
    good = links["p0", "d"].learn(1000, 0.005, now=3600.0)
    assert good.exposed_ms(1000, 1e6, now=3600.0) < 10


def test_what_was_learned_of_a_worker_fades_while_others_work_and_never_beyond_them() -> None:
    slow = make("slow", "pd", prefill_rate=10.0, step_ms=12_000.0)
    fast = make("fast", "pd", prefill_rate=10_000.0, step_ms=5.0)

    def after(slow_s: float, fast_s: float) -> Candidate:
        both = [dataclasses.replace(slow, idle_s=slow_s), dataclasses.replace(fast, idle_s=fast_s)]
        seen, other = like_peers(both, 8000.0)
        assert other.step_ms == 5.0 or slow_s < fast_s
        return seen

    assert (after(0.0, 0.0).step_ms, after(0.0, 0.0).prefill_rate) == (12_000.0, 10.0)
    assert after(600.0, 600.0).step_ms == 12_000.0  # nobody worked
    assert 5.0 < after(60.0, 0.0).step_ms < 1_000
    assert 5.0 <= after(600.0, 0.0).step_ms < 5.1
    assert 9_990 < after(600.0, 0.0).prefill_rate <= 10_000
    assert like_peers([dataclasses.replace(slow, idle_s=600.0)], 8000.0)[0].step_ms == 12_000.0  # the only one


def test_a_step_model_that_was_idle_believes_what_it_hears_next() -> None:
    model = StepModel()
    for _ in range(100):
        model.observe(10, 12_000.0)
    model.fade(120.0)
    assert model.predict(10) == 12_000.0
    for _ in range(5):
        model.observe(10, 5.0)
    assert model.predict(10) < 1_000


RECORDED = json.loads(Path(__file__).with_name("recorded_loads.json").read_text())
"""What workers of an 8B model on two H100s would say, in the form in which it comes over the wire, and the better way then."""


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["name"])
def test_with_recorded_reports(case: dict[str, Any]) -> None:
    shape = Shape(case["prompt"], 16, case["prompt"] // 16 + 20)
    candidates = []
    for said, queue_s in zip(case["workers"], case["queue_s"], strict=True):
        load = msgspec.convert(said["load"], Load)
        pace = msgspec.convert(said["pace"], StepPace | None)
        num = load.num_running + 1
        context = load.context_tokens // max(load.num_running, 1) * num
        candidates.append(
            Candidate(
                said["id"],
                "prefill" in said["legs"],
                "decode" in said["legs"],
                "l",
                load.waiting_tokens,
                load.prefill_rate,
                0,
                num_running=load.num_running,
                step_ms=load.decode_step_ms if pace is None else 1000 * pace.times.seconds(num, context),
                free_blocks=load.kv_free_blocks,
                total_blocks=load.kv_total_blocks,
                pace=pace,
                context_tokens=load.context_tokens,
                queue_s=queue_s,
                link_s=case["link_s"],
            )
        )
    links = {("prefill-0", "decode-0"): Link(ms_per_token=case["link_ms_per_token"])}
    weights = Weights(ttft_target_ms=500.0, holds=True)
    decision = choose("cost", shape, candidates, links, weights=weights, rng=random.Random(0))
    assert decision is not None
    assert decision.chosen.path == case["way"], decision
