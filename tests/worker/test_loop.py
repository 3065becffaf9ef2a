"""The loop and its legs under what rarely happens: broken steps, no memory, silence, an end."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.worker.table_top import TableTop, turn_until

from baton.engine.model_runner import ForwardedStep
from baton.engine.reload_cost import ReloadCost
from baton.engine.step_plan import StepPlan
from baton.messages import Cancel, Outputs
from baton.protocol import SamplingParams
from baton.step_learning import StepLearner
from baton.worker.beat import STUCK_S
from baton.worker.load_meter import LoadMeter, _Chunks
from baton.worker.loop import EngineBroken
from baton.worker.mailbox import PeerLost, WantsBlocks
from baton.worker.rehearsal import fill, rehearse
from baton.worker.runs import ClosedEpochs

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
MakeTable = Callable[..., TableTop]


@pytest.fixture
def make_table(tiny_checkpoint: Callable[[str], Path]) -> Iterator[MakeTable]:
    tables: list[TableTop] = []

    def make(num_blocks: int = 64, family: str = "llama", **settings: Any) -> TableTop:
        tables.append(TableTop(tiny_checkpoint(family), num_blocks, **settings))
        return tables[-1]

    yield make
    for table in tables:
        table.close()


def prompt_of(seed: int, length: int) -> list[int]:
    return [3 + (seed * 31 + i * (7 + seed % 5)) % 200 for i in range(length)]


def ask_alone(table: TableTop, prompt: list[int], params: SamplingParams = GREEDY) -> list[int]:
    request_id = table.start(prompt, params)
    turn_until([table], lambda: len(table.ids(request_id)) == params.max_tokens, "the answer is whole")
    return table.ids(request_id)


def start_pair(prefill: TableTop, decode: TableTop, prompt: list[int], params: SamplingParams = GREEDY) -> str:
    request_id = uuid.uuid4().hex
    ticket = prefill.ticket(request_id, prompt)
    decode.start(prompt, params, request_id=request_id, ticket=ticket)
    prefill.start(prompt, params, leg="prefill", request_id=request_id, ticket=ticket)
    return request_id


def is_quiet(*tables: TableTop) -> bool:
    return all(not table.runs and not table.num_held for table in tables)


def test_more_prompts_than_the_decode_worker_has_blocks_for_all_end_right(make_table: MakeTable) -> None:
    prefill, decode, alone = make_table(200), make_table(20), make_table(200)
    prompts = [prompt_of(i, 100 + i) for i in range(12)]  # 8 blocks each, for a pool of 20
    ids = [start_pair(prefill, decode, prompt) for prompt in prompts]
    turn_until([prefill, decode], lambda: is_quiet(prefill, decode) and all(map(decode.ids, ids)), "all end")
    for request_id, prompt in zip(ids, prompts, strict=True):
        first, rest = prefill.ids(request_id), decode.ids(request_id)
        wanted = ask_alone(alone, prompt)
        assert first == wanted[:1]
        assert rest in (wanted, wanted[1:])


def test_a_fetch_gives_way_to_a_request_that_came_before_it_and_lost_its_blocks(make_table: MakeTable) -> None:
    prefill, decode, alone = make_table(200), make_table(20), make_table(200)
    older, younger = prompt_of(13, 100), prompt_of(14, 240)  # 7 blocks, which grow to 10; and 15
    params = GREEDY.replace(max_tokens=55)
    first = decode.start(older, params)
    turn_until([decode], lambda: decode.ids(first), "the older runs")
    second = start_pair(prefill, decode, younger)
    turn_until([prefill, decode], lambda: len(decode.ids(first)) == 55, "the older ends")
    turn_until([prefill, decode], lambda: len(decode.ids(second)) == 12, "the younger ends")
    assert decode.engine.scheduler.num_preemptions > 0
    assert decode.ids(first) == ask_alone(alone, older, params)
    assert decode.ids(second) == ask_alone(alone, younger)
    turn_until([prefill, decode], lambda: is_quiet(prefill, decode), "everything is back")


@pytest.mark.parametrize(("family", "num_blocks"), [("mistral", 4 + 1), ("gemma2", 9 + 2 * 3 + 3)])
def test_of_layers_with_a_window_only_its_blocks_travel(make_table: MakeTable, family: str, num_blocks: int) -> None:
    prefill, decode, alone = (make_table(400, family, block_size=4, max_num_batched_tokens=16) for _ in range(3))
    # 9 full blocks and a tail; a window of 13 begins in the 4th full one from the end, one of 12 in the 3rd
    prompt = prompt_of(40, 38)
    request_id = start_pair(prefill, decode, prompt)
    turn_until([prefill, decode], lambda: len(decode.ids(request_id)) >= 11, "it ends")
    assert prefill.ids(request_id) + decode.ids(request_id) == ask_alone(alone, prompt)
    turn_until([prefill, decode], lambda: is_quiet(prefill, decode), "everything is back")
    outputs = [message for _, message in decode.mailbox.posted if isinstance(message, Outputs)]
    (transfer,) = (transfer for message in outputs for transfer in message.transfers)
    assert (transfer.num_tokens, transfer.nbytes) == (38, num_blocks * decode.engine.memory.block_nbytes)
    longer = prompt + decode.ids(request_id)[:7] + prompt_of(41, 30)  # its beginning is cached on both
    request_id = start_pair(prefill, decode, longer)
    turn_until([prefill, decode], lambda: len(decode.ids(request_id)) >= 11, "it ends")
    assert prefill.ids(request_id) + decode.ids(request_id) == ask_alone(alone, longer)
    turn_until([prefill, decode], lambda: is_quiet(prefill, decode), "everything is back")


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_after_a_transfer_only_the_first_token_is_computed_whatever_the_prompts_length(
    make_table: MakeTable, family: str
) -> None:
    prefill, decode, alone = (make_table(600, family) for _ in range(3))
    prefill.engine._runs_behind = decode.engine._runs_behind = family == "gemma2"  # as on a GPU
    params = GREEDY.replace(max_tokens=6)
    prompts = [prompt_of(length, length) for length in range(1, 71)]
    ids = [start_pair(prefill, decode, prompt, params) for prompt in prompts]
    wanted = [alone.start(prompt, params) for prompt in prompts]
    for tables in ([prefill, decode], [alone]):
        turn_until(tables, lambda: is_quiet(*tables) and not tables[-1].mailbox.arrived, "all end")  # noqa: B023
    assert decode.engine.num_chunk_tokens == 0, "each continues as a row of one token"
    assert [prefill.ids(i) + decode.ids(i) for i in ids] == [alone.ids(i) for i in wanted]
    assert {len(alone.ids(i)) for i in wanted} == {6}


def test_what_is_begun_again_elsewhere_goes_on_from_the_tokens_that_the_client_has(make_table: MakeTable) -> None:
    prefill, decode, alone = make_table(), make_table(), make_table()
    prompt = prompt_of(71, 37)
    wanted, request_id = ask_alone(alone, prompt), uuid.uuid4().hex
    ticket = prefill.ticket(request_id, prompt)
    pair = {"request_id": request_id, "ticket": ticket, "emitted": wanted[:6]}
    decode.start(prompt, GREEDY, **pair)
    prefill.start(prompt, GREEDY, leg="prefill", **pair)
    turn_until([prefill, decode], lambda: len(decode.ids(request_id)) == 5, "it ends")
    assert wanted[:6] + prefill.ids(request_id) + decode.ids(request_id) == wanted
    assert decode.engine.num_chunk_tokens == 0
    turn_until([prefill, decode], lambda: is_quiet(prefill, decode), "everything is back")


def test_prompts_that_preempt_one_another_send_the_right_kv(make_table: MakeTable) -> None:
    prefill, decode, alone = make_table(17), make_table(200), make_table(200)
    prompts = [prompt_of(20 + i, 200) for i in range(5)]  # 13 blocks each, for a pool of 17
    ids = [start_pair(prefill, decode, prompt) for prompt in prompts]
    turn_until([prefill, decode], lambda: all(len(decode.ids(i)) >= 11 for i in ids), "all end", 40)
    for request_id, prompt in zip(ids, prompts, strict=True):
        assert (prefill.ids(request_id) + decode.ids(request_id))[-12:] == ask_alone(alone, prompt)
    turn_until([prefill, decode], lambda: is_quiet(prefill, decode), "everything is back")


def test_turns_that_were_driven_out_come_back_from_host_memory(
    make_table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six conversations on a prefill and a decode worker, neither of which has room for two."""
    monkeypatch.setattr(ReloadCost, "is_worth", lambda self, num_blocks, *_: num_blocks > 0)
    prefill, decode, alone = make_table(16, swap_space=0.01), make_table(16, swap_space=0.01), make_table(200)
    first = [prompt_of(40 + i, 100) for i in range(6)]
    answers = [ask_alone(alone, prompt) for prompt in first]
    second = [[*prompt, *answer, 7, 8, 9] for prompt, answer in zip(first, answers, strict=True)]
    for prompts in (first, second):
        ids = [start_pair(prefill, decode, prompt) for prompt in prompts]
        turn_until([prefill, decode], lambda: is_quiet(prefill, decode) and all(map(decode.ids, ids)), "all end")  # noqa: B023
        for request_id, prompt in zip(ids, prompts, strict=True):
            wanted = ask_alone(alone, prompt)
            assert prefill.ids(request_id) == wanted[:1]
            assert decode.ids(request_id) in (wanted, wanted[1:])
    outputs = [message for _, message in prefill.mailbox.posted if isinstance(message, Outputs)]
    restored = [token.num_restored for message in outputs for token in message.tokens if token.request_id in ids]
    assert len(restored) == 6
    assert sum(restored) > 3 * 96
    assert prefill.stats.prompt_tokens_by_source["host_memory"] == sum(restored)
    assert prefill.stats.host_kv_moves["restored"] * 16 == sum(restored)
    assert 0 < prefill.stats.host_blocks["used"] <= prefill.stats.host_kv_moves["saved"]


def test_published_blocks_outlive_the_sequence_that_computed_them(make_table: MakeTable) -> None:
    prefill = make_table(40)
    prompt, request_id = prompt_of(30, 80), uuid.uuid4().hex
    ticket = prefill.ticket(request_id, prompt)
    prefill.start(prompt, GREEDY, leg="prefill", request_id=request_id, ticket=ticket)
    turn_until([prefill], lambda: prefill.ids(request_id), "the first token comes")
    assert prefill.num_held == 5
    prefill.loop.turn()
    assert prefill.stats.kv_stranded_bytes == 0  # it waits for its fetch
    prefill.mailbox.arrived.append((prefill.peer, Cancel(request_id, 0)))
    turn_until([prefill], lambda: is_quiet(prefill), "the blocks are back")


def test_blocks_leave_when_their_step_has_ended_while_the_next_one_runs(make_table: MakeTable) -> None:
    prefill = make_table(max_num_batched_tokens=16)
    prefill.engine._runs_behind = True  # as on a GPU
    published, publish = [], prefill.exporter.publish

    def note(request_id: bytes, epoch: int, block_ids: list[int], names: list[bytes]) -> None:
        published.append((prefill.engine.num_steps, prefill.engine.num_collected, len(block_ids)))
        publish(request_id, epoch, block_ids, names)

    prefill.exporter.publish = note  # type: ignore[method-assign, assignment]
    prompt, request_id = prompt_of(31, 56), uuid.uuid4().hex
    ticket = prefill.ticket(request_id, prompt)
    prefill.start(prompt, GREEDY, leg="prefill", request_id=request_id, ticket=ticket)
    turn_until([prefill], lambda: prefill.ids(request_id), "the first token comes")
    assert published == [(2, 1, 1), (3, 2, 1), (4, 3, 1), (4, 4, 1)], "(launched, collected, blocks)"
    prefill.mailbox.arrived.append((prefill.peer, Cancel(request_id, 0)))
    turn_until([prefill], lambda: is_quiet(prefill), "the blocks are back")


def test_a_fetch_whose_prefill_leg_never_comes_ends_with_its_router(make_table: MakeTable) -> None:
    prefill, decode = make_table(), make_table()
    prompt, request_id = prompt_of(32, 50), uuid.uuid4().hex
    decode.start(prompt, GREEDY, request_id=request_id, ticket=prefill.ticket(request_id, prompt))
    turn_until([decode], lambda: len(prefill.exporter._exports._parked), "the fetch waits for its ticket")
    decode.mailbox.arrived.append(PeerLost(decode.peer))
    turn_until([decode], lambda: is_quiet(decode), "the fetch has ended, and the blocks are back")


def test_a_fetch_of_a_queued_prompt_ends_with_its_deadline(make_table: MakeTable) -> None:
    prefill, decode = make_table(), make_table()
    prompt, request_id = prompt_of(33, 50), uuid.uuid4().hex
    ticket = prefill.ticket(request_id, prompt)
    decode.start(prompt, GREEDY, request_id=request_id, ticket=ticket, seconds_left=0.3)
    prefill.start(prompt, GREEDY, leg="prefill", request_id=request_id, ticket=ticket)
    prefill.loop._receive()  # offered, and never computed
    turn_until([decode], lambda: decode.errors(request_id), "its time is over")
    assert decode.errors(request_id) == ["deadline"]
    turn_until([decode], lambda: is_quiet(decode), "the fetch has ended, and the blocks are back")


def test_without_prefix_caching_kv_travels_all_the_same(make_table: MakeTable) -> None:
    prefill = make_table(enable_prefix_caching=False)
    decode = make_table(enable_prefix_caching=False)
    prompt = prompt_of(40, 75)
    request_id = start_pair(prefill, decode, prompt)
    turn_until([prefill, decode], lambda: len(decode.ids(request_id)) == 11, "the answer is whole")
    assert prefill.ids(request_id) + decode.ids(request_id) == ask_alone(decode, prompt)
    turn_until([prefill, decode], lambda: is_quiet(prefill, decode), "everything is back")


def test_a_step_that_fails_ends_its_requests_as_retryable_and_the_worker_lives(make_table: MakeTable) -> None:
    table = make_table()
    wanted = ask_alone(table, prompt_of(50, 30))
    forward, failures = table.engine.runner.forward, iter([True])

    def fail_once(plan: Any) -> Any:
        if next(failures, False):
            raise RuntimeError("the device said no")
        return forward(plan)

    table.engine.runner.forward = fail_once  # type: ignore[method-assign]
    ids = [table.start(prompt_of(51 + i, 30), GREEDY) for i in range(3)]
    turn_until([table], lambda: all(table.errors(i) for i in ids), "all are told")
    assert {error for i in ids for error in table.errors(i)} == {"internal retryable"}
    turn_until([table], lambda: is_quiet(table), "the blocks are back")
    assert ask_alone(table, prompt_of(50, 30)) == wanted


def test_steps_that_keep_failing_end_the_process(make_table: MakeTable) -> None:
    table = make_table()

    def fail(plan: Any) -> Any:
        raise RuntimeError("the device said no")

    table.engine.runner.forward = fail  # type: ignore[method-assign]
    for i in range(2):
        table.start(prompt_of(60 + i, 30), GREEDY)
        table.loop.turn()
    table.start(prompt_of(62, 30), GREEDY)
    with pytest.raises(EngineBroken):
        table.loop.turn()


def test_a_router_that_is_lost_has_its_work_ended_and_others_not(make_table: MakeTable) -> None:
    from baton.worker.mailbox import Peer

    table, other = make_table(), Peer("other", b"o", 0.0)
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    lost = table.start(prompt_of(70, 30), params, peer=other)
    kept = table.start(prompt_of(71, 30), params)
    turn_until([table], lambda: table.ids(lost) and table.ids(kept), "both run")
    table.mailbox.arrived.append(PeerLost(other))
    turn_until([table], lambda: len(table.ids(kept)) == 100, "the other's answer is whole")
    assert len(table.ids(lost)) < 100
    assert is_quiet(table)


def test_draining_hands_back_what_runs_and_refuses_what_comes(make_table: MakeTable) -> None:
    table = make_table()
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    running = table.start(prompt_of(80, 30), params)
    turn_until([table], lambda: table.ids(running), "it runs")
    table.loop.drain()
    late = table.start(prompt_of(81, 30), params)
    table.loop.run()  # returns once nothing is held
    assert table.errors(running) == table.errors(late) == ["draining retryable"]
    assert is_quiet(table)


@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {"temperature": 0.8, "presence_penalty": 0.5}, {"temperature": 0.8, "n": 2}]
)
def test_what_runs_on_a_worker_that_drains_goes_on_elsewhere_with_its_kv(
    make_table: MakeTable, settings: dict[str, Any]
) -> None:
    old, new, alone = make_table(), make_table(), make_table()
    params, prompt = GREEDY.replace(max_tokens=60, **settings), prompt_of(82, 40)
    wanted = ask_alone(alone, prompt, params)
    request_id = old.start(prompt, params)
    turn_until([old], lambda: len(old.ids(request_id)) >= 30, "it runs")
    old.loop._drain_s = 60.0
    old.loop.drain()
    late = [old.start(prompt_of(83, 20), params, leg=leg) for leg in ("decode", "prefill")]
    turn_until([old], lambda: all(old.errors(each) for each in late), "it takes nothing new")
    emitted = old.ids(request_id)[:28]  # what the router had when it chose; more was on its way
    before, computed = len(old.ids(request_id)), old.engine.num_chunk_tokens
    ticket = old.ticket(request_id, prompt, epoch=1)
    move: dict[str, Any] = {"request_id": request_id, "epoch": 1, "emitted": emitted, "ticket": ticket}
    new.start(prompt, params, **move)
    old.start(prompt, params, leg="prefill", **move)
    turn_until([old, new], lambda: len(new.ids(request_id)) == 31, "the answer is whole")
    assert emitted + old.ids(request_id)[before:] + new.ids(request_id) == wanted
    if params.n == 2:  # of the other choice, the client has nothing here
        turn_until([old, new], lambda: len(new.ids(request_id, 1)) == 60, "the other choice is whole")
        begun = old.ids(request_id, 1)
        assert new.ids(request_id, 1)[: len(begun)] == begun
    assert old.engine.num_chunk_tokens - computed < 16  # it had the rest in its cache
    outputs = [message for _, message in new.mailbox.posted if isinstance(message, Outputs)]
    (transfer,) = (transfer for message in outputs for transfer in message.transfers)
    assert transfer.num_tokens == len(prompt) + len(emitted)
    turn_until([old, new], lambda: is_quiet(old, new), "nothing is held")
    told = len(old.ids(request_id))
    old.start(prompt, params, leg="prefill", request_id=request_id, epoch=2, emitted=emitted)  # the other one died
    turn_until([old], lambda: len(old.ids(request_id)) == told + 1, "it is still known")
    old.loop.run()  # returns at once


def test_a_router_that_asks_gets_the_block_log_from_a_snapshot_on(make_table: MakeTable) -> None:
    table = make_table(16)
    ask_alone(table, prompt_of(90, 64))
    table.mailbox.posted.clear()
    table.mailbox.arrived.append(WantsBlocks(table.peer))
    table.loop.turn()
    snapshot: Any = next(m for _, m in table.mailbox.posted if not isinstance(m, Outputs))
    hashes = set(snapshot.stored)
    assert snapshot.is_snapshot
    assert len(hashes) == table.engine.pool.num_cached
    for i in range(4):  # the pool is small, so older blocks are evicted
        ask_alone(table, prompt_of(91 + i, 64))
    entries: list[Any] = [m for _, m in table.mailbox.posted if not isinstance(m, Outputs)][1:]
    assert [entry.sequence for entry in entries] == list(
        range(snapshot.sequence + 1, snapshot.sequence + 1 + len(entries))
    )
    assert any(entry.evicted for entry in entries)
    for entry in entries:
        hashes = (hashes - set(entry.evicted)) | set(entry.stored)
    assert hashes == set(table.engine.cache.hashes())


def test_epochs_stay_closed_and_are_forgotten_in_time() -> None:
    now = [0.0]
    closed = ClosedEpochs(clock=lambda: now[0])
    closed.close("a", 3)
    closed.close("a", 1)
    assert closed.is_closed("a", 3)
    assert not closed.is_closed("a", 4)
    assert not closed.is_closed("b", 0)
    now[0] = 1e6
    closed.close("b", 0)
    assert not closed.is_closed("a", 3)


def test_the_loop_does_not_rest_between_a_prompts_arrival_and_its_first_step(make_table: MakeTable) -> None:
    prefill, decode = make_table(), make_table()
    request_id = start_pair(prefill, decode, prompt_of(95, 60))
    turn_until([prefill], lambda: prefill.ids(request_id), "the prompt is computed")
    rested_with_work = []

    def is_done() -> bool:
        rests = decode.loop.turn()
        rested_with_work.append(rests and decode.engine.has_work)
        return len(decode.ids(request_id)) == 11

    turn_until([prefill], is_done, "the answer is whole")
    assert not any(rested_with_work)


def test_a_worker_with_both_legs_serves_itself_and_others(make_table: MakeTable) -> None:
    one, two = make_table(), make_table()
    prompts = [prompt_of(100 + i, 70) for i in range(4)]
    pairs = [(one, one), (one, two), (two, one), (two, two)]
    ids = [start_pair(p, d, prompt) for (p, d), prompt in zip(pairs, prompts, strict=True)]

    def answers() -> list[list[int]]:
        return [
            [*p.ids(i)[:1], *d.ids(i)[-11:]] if p is not d else p.ids(i) for (p, d), i in zip(pairs, ids, strict=True)
        ]

    turn_until([one, two], lambda: all(len(answer) == 12 for answer in answers()), "all answers are whole")
    got = answers()
    assert got == [ask_alone(one, prompt) for prompt in prompts]
    turn_until([one, two], lambda: is_quiet(one, two), "everything is back")


def test_workers_that_wait_for_each_others_blocks_do_not_wait_for_ever(make_table: MakeTable) -> None:
    one, two, alone = make_table(20), make_table(20), make_table(200)
    prompts = [prompt_of(110 + i, 240) for i in range(4)]  # 15 blocks each, for pools of 20
    pairs = [(one, two), (two, one), (one, two), (two, one)]
    ids, tickets = [uuid.uuid4().hex for _ in prompts], []
    for (prefill, decode), request_id, prompt in zip(pairs, ids, prompts, strict=True):
        tickets.append(prefill.ticket(request_id, prompt))
        decode.start(prompt, GREEDY, request_id=request_id, ticket=tickets[-1])
    for table in (one, two):
        table.loop.turn()  # both have promised their blocks to KV that the other has no block to compute
    for (prefill, _), request_id, prompt, ticket in zip(pairs, ids, prompts, tickets, strict=True):
        prefill.start(prompt, GREEDY, leg="prefill", request_id=request_id, ticket=ticket)
    one.loop.turn()
    two.loop.turn()
    turn_until([one, two], lambda: is_quiet(one, two), "all end", 60)
    for (_, decode), request_id, prompt in zip(pairs, ids, prompts, strict=True):
        assert decode.ids(request_id)[-11:] == ask_alone(alone, prompt)[1:]


def test_a_pause_of_its_own_is_no_reason_for_a_fetch_to_give_way(
    make_table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = make_table(64), make_table(15, max_model_len=240)
    now, given_way = [time.monotonic()], list[object]()
    monkeypatch.setattr("baton.decode.leg.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(two.importer, "cancel", lambda *key: given_way.append(key))
    for i in range(2):
        request_id, prompt = uuid.uuid4().hex, prompt_of(120 + i, 236)
        two.start(prompt, GREEDY.replace(max_tokens=2), request_id=request_id, ticket=one.ticket(request_id, prompt))
    for _ in range(3):
        two.loop.turn()  # the second one waits for blocks that the first one has
        now[0] += 60.0
    assert not given_way
    for _ in range(8):
        two.loop.turn()
        now[0] += 0.2
    assert given_way


def test_a_step_may_take_long_while_none_like_it_is_known_and_then_in_proportion(make_table: MakeTable) -> None:
    table = make_table(64)
    meter, runner = table.loop._meter, table.engine.runner
    limits: list[float] = []
    forward = runner.forward

    def looked_at(plan: StepPlan) -> ForwardedStep:  # as the mailbox's thread does in the middle of a step
        limits.append(meter.limit_s())
        return forward(plan)

    runner.forward = looked_at  # type: ignore[method-assign]
    ask_alone(table, prompt_of(1, 50))
    assert meter.limit_s() == STUCK_S
    assert limits[0] == 600.0
    assert limits[-1] == STUCK_S
    limits.clear()
    meter._largest_chunks = _Chunks(10, 10 * 10, 1.0)  # as slow as a model can be
    ask_alone(table, prompt_of(2, 50))
    assert limits[0] == 250.0  # ten times the 25 s that 50 tokens take, whose attention is 25 times as much


def test_a_long_step_that_has_ended_is_not_held_against_what_follows(make_table: MakeTable) -> None:
    table = make_table(64)
    beat, runner, send = table.mailbox.beat, table.engine.runner, table.loop._send
    forward = runner.forward
    clock = itertools.count(0.0, 0.5)
    judged: list[bool] = []

    def long_forward(plan: StepPlan) -> ForwardedStep:
        assert not any(beat.look(next(clock)) for _ in range(100))
        return forward(plan)

    def looked_at(is_idle: bool) -> None:
        judged.append(beat.look(next(clock)))
        send(is_idle)

    runner.forward = long_forward  # type: ignore[method-assign]
    table.loop._send = looked_at  # type: ignore[method-assign]
    table.start(prompt_of(1, 50), GREEDY)
    table.loop.turn()
    assert judged == [False]


class Recorded(StepLearner):
    """Keep what is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[int, int, int, float]] = []

    def learn(self, seconds: float, rows: int, context: int, tokens: int = 0, pairs: float = 0) -> None:
        assert seconds > 0
        self.steps.append((rows, context, tokens, pairs))


@pytest.mark.parametrize("is_behind", [False, True])
def test_a_steps_time_is_measured_with_what_that_step_computed(make_table: MakeTable, is_behind: bool) -> None:
    table = make_table(64, enable_prefix_caching=False)
    table.engine._runs_behind = is_behind  # as on a GPU: a call gives the result of the step before
    learner = Recorded()
    table.loop._meter = LoadMeter(table.engine, learner)
    ask_alone(table, prompt_of(1, 50))
    turn_until([table], lambda: not table.engine.has_work, "the last step is collected")
    num_decodes = len(learner.steps) - 1
    assert num_decodes >= 3
    assert learner.steps == [(0, 0, 50, 50 * 50)] + [(1, 50 + at, 0, 0) for at in range(num_decodes)]


def test_the_largest_batch_is_filled_once_and_leaves_nothing(make_table: MakeTable) -> None:
    table = make_table(600, max_num_seqs=12, max_num_batched_tokens=2048)
    seen: list[int] = []
    commit = table.engine.scheduler.commit

    def watch(plan: StepPlan, token_lists: list[list[int]]) -> None:
        seen.append(plan.num_decodes)
        commit(plan, token_lists)

    table.engine.scheduler.commit = watch  # type: ignore[method-assign]
    fill(table.engine)
    assert set(seen) == set(range(13))
    assert table.num_held == 0
    assert not table.engine.has_work


def test_a_rehearsal_shows_steps_of_every_kind_and_leaves_nothing(make_table: MakeTable) -> None:
    table = make_table(1200, max_num_batched_tokens=2048)
    learner = Recorded()
    rehearse(table.engine, learner)
    kinds = {(rows > 0, tokens > 0) for rows, _, tokens, _ in learner.steps}
    assert kinds == {(True, True), (True, False), (False, True)}
    assert table.num_held == 0
    assert not table.engine.has_work
