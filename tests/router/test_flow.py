"""A request through its legs: order, repeats, gaps, epochs, replays, and one way out. No sockets, no processes."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from baton.errors import BatonError, QueueFull
from baton.messages import (
    WORKER_SILENCE_S,
    Cancel,
    Computed,
    Ended,
    LegError,
    Load,
    ModelFacts,
    Outputs,
    Start,
    Token,
    ToWorker,
    Transfer,
    Welcome,
    WorkerInfo,
)
from baton.metrics import RouterMetrics
from baton.prompt import Prompt
from baton.protocol import NOBODY, SamplingParams, Share
from baton.router.admission import Admission
from baton.router.config import RouterConfig
from baton.router.dispatcher import PROGRESS, Dispatcher, Running
from baton.router.flow import Flow
from baton.router.generation import Generation
from baton.router.index import PrefixIndex
from baton.router.pool import Worker, WorkerPool
from baton.router.sink import Usage
from baton.router.tenants import Tenants
from baton.router.workers import WorkerGone
from baton.text import AnswerText

pytestmark = pytest.mark.asyncio
PROMPT = list(range(10, 30))
ANSWER = [100 + i for i in range(8)]


class FakeClient:
    """Takes messages in place of a socket."""

    def __init__(self) -> None:
        self.sent: list[ToWorker] = []
        self.endpoint = "nowhere"
        self.refusal = ""
        self.is_gone = False

    def send(self, message: ToWorker) -> None:
        if self.is_gone:
            raise WorkerGone("gone")
        self.sent.append(message)


@dataclass
class Heard:
    """A sink that remembers."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    finished: dict[int, str] = field(default_factory=dict)
    error: BatonError | None = None
    is_ended: bool = False
    usage: Usage | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    on_push: Callable[[], None] = lambda: None

    def push(
        self, choice: int, text: str, token: Token, finish_reason: str | None, stop_reason: int | str | None
    ) -> None:
        assert choice not in self.finished
        assert not self.is_ended
        assert self.error is None
        self.tokens.setdefault(choice, []).append(token.token_id)
        if finish_reason is not None:
            self.finished[choice] = finish_reason
        self.on_push()

    def end(self, usage: Usage) -> None:
        assert not self.is_ended
        self.is_ended = True
        self.usage = usage
        self.over.set()

    def fail(self, error: BatonError) -> None:
        assert self.error is None
        self.error = error
        self.over.set()


class World:
    """A dispatcher with workers that say what a test lets them say."""

    def __init__(self, **config: Any) -> None:
        self.metrics = RouterMetrics("m")
        self.config = RouterConfig(model="m", **config)
        self.pool = WorkerPool(self.config, "r", self.metrics)
        self.dispatcher = Dispatcher(
            self.config,
            self.pool,
            PrefixIndex(),
            self.metrics,
            Admission(self.config, self.metrics, Tenants((), "", None)),
            random.Random(0),
        )
        self.pool._listener = self.dispatcher
        self.heard = Heard()

    def join(self, worker_id: str, *legs: Any, draining: bool = False) -> Worker:
        info = WorkerInfo(
            worker_id=worker_id,
            incarnation=worker_id + "-1",
            legs=legs,
            control="c",
            kv="tcp://kv" if "prefill" in legs else "",
            layout="l",
            model=ModelFacts(name="m", max_model_len=256, vocab_size=400, block_size=16),
        )
        client: Any = FakeClient()
        worker = Worker(client, info, Load(kv_total_blocks=1000, kv_free_blocks=1000, draining=draining))
        self.pool.workers[worker_id] = worker
        self.dispatcher.on_worker_joined(worker)
        return worker

    def begin(self, *, deadline: float | None = None, share: Share = NOBODY, **params: Any) -> Running:
        sampling = SamplingParams(**{"max_tokens": len(ANSWER), "detokenize": False} | params)
        texts = [AnswerText(None, PROMPT, sampling) for _ in range(sampling.n)]
        generation = Generation(Prompt(PROMPT), sampling, deadline=deadline, share=share)
        return self.dispatcher.start(Flow(generation, texts, self.heard))

    def say(self, worker: Worker, running: Running, at: int, **changes: Any) -> None:
        """Let a worker say the answer's token at a position."""
        fields: dict[str, Any] = {
            "request_id": running.flow.request_id,
            "epoch": epoch_of(running),
            "choice": 0,
            "position": len(PROMPT) + at,
            "token_id": ANSWER[at % len(ANSWER)],
            "finish_reason": "length" if at == len(ANSWER) - 1 else None,
        }
        token = Token(**(fields | changes))
        self.dispatcher.on_outputs(worker, Outputs("w", "i", [token], worker.load))

    def end(self, worker: Worker, running: Running, kind: str, *, retryable: bool = True) -> None:
        ended = Ended(running.flow.request_id, epoch_of(running), LegError(kind, "why", retryable))
        self.dispatcher.on_outputs(worker, Outputs("w", "i", [], worker.load, [ended]))

    def check_nothing_is_left(self) -> None:
        assert not self.dispatcher.flows
        assert all(not worker.request_ids for worker in self.pool.workers.values())
        admission = self.dispatcher._admission
        assert (admission.num_requests, admission.waiting_tokens, admission.blocks) == (0, 0, 0)


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    world = World(path="remote")
    yield world
    await world.pool.close()


def epoch_of(running: Running) -> int:
    assert running.flow.attempt is not None
    return running.flow.attempt.epoch


def sent(worker: Worker) -> list[Any]:
    client: Any = worker.client
    messages: list[Any] = client.sent
    return messages


async def test_both_legs_start_at_once_under_one_ticket(world: World) -> None:
    prefill, decode = world.join("p", "prefill"), world.join("d", "decode")
    running = world.begin()
    (on_p,), (on_d,) = sent(prefill), sent(decode)
    assert (on_p.leg, on_d.leg) == ("prefill", "decode")
    assert on_p.ticket == on_d.ticket
    assert on_p.ticket.request_id.hex() == running.flow.request_id
    assert on_p.ticket.source == "tcp://kv"
    assert on_p.seed == on_d.seed


async def test_the_first_token_comes_from_prefill_and_the_rest_from_decode(world: World) -> None:
    prefill, decode = world.join("p", "prefill"), world.join("d", "decode")
    running = world.begin()
    world.say(prefill, running, 0, num_cached=16)
    for at in range(1, 8):
        world.say(decode, running, at)
    assert world.heard.tokens == {0: ANSWER}
    assert world.heard.is_ended
    assert world.heard.usage == Usage(len(PROMPT), 16, len(ANSWER))
    world.check_nothing_is_left()
    assert isinstance(sent(prefill)[-1], Cancel)  # what it held for the fetch is free at once
    assert not any(isinstance(m, Cancel) for m in sent(decode))


async def test_tokens_that_overtake_the_first_one_wait_for_it(world: World) -> None:
    prefill, decode = world.join("p", "prefill"), world.join("d", "decode")
    running = world.begin()
    for at in (1, 2, 3):
        world.say(decode, running, at)
    assert world.heard.tokens == {}
    world.say(prefill, running, 0)
    assert world.heard.tokens == {0: ANSWER[:4]}


async def test_another_choices_tokens_do_not_disturb_those_that_wait_for_the_first_one(world: World) -> None:
    prefill, decode = world.join("p", "prefill"), world.join("d", "decode")
    running = world.begin(n=2)
    for at in range(3):
        world.say(decode, running, at + 1)
        world.say(decode, running, at, choice=1)
    assert (world.heard.tokens, epoch_of(running)) == ({1: ANSWER[:3]}, 0)
    world.say(prefill, running, 0)
    assert world.heard.tokens == {0: ANSWER[:4], 1: ANSWER[:3]}


async def test_a_prefill_worker_lost_before_its_first_token_is_replaced_though_decode_has_answered(
    world: World,
) -> None:
    prefill, decode = world.join("p", "prefill"), world.join("d", "decode")
    running = world.begin(max_tokens=2)
    world.say(decode, running, 1, finish_reason="length")
    world.pool.lose(prefill, "test")
    assert epoch_of(running) == 1
    for at in range(2):
        world.say(decode, running, at, finish_reason="length" if at else None)
    assert world.heard.tokens == {0: ANSWER[:2]}
    assert world.heard.is_ended
    world.check_nothing_is_left()


async def test_a_sink_that_ends_its_request_from_within_ends_it_once(world: World) -> None:
    decode = world.join("d", "decode")
    running = world.begin()
    world.heard.on_push = running.cancel
    world.say(decode, running, 0)
    assert running.is_over
    assert not world.heard.is_ended
    assert (world.dispatcher.num_running, running.record.state) == (0, "cancelled")
    assert isinstance(sent(decode)[-1], Cancel)
    world.check_nothing_is_left()


async def test_a_repeat_is_dropped_and_another_token_at_a_known_place_is_an_integrity_failure(world: World) -> None:
    prefill, decode = world.join("p", "prefill"), world.join("d", "decode")
    running = world.begin()
    world.say(prefill, running, 0)
    arrived = Transfer(running.flow.request_id, 0, "p-1", len(PROMPT), 1000, 0.1, 0.0)
    world.dispatcher.on_outputs(decode, Outputs("w", "i", [], decode.load, [], [arrived]))
    world.say(decode, running, 0)
    assert world.heard.tokens == {0: ANSWER[:1]}
    assert epoch_of(running) == 0
    world.say(decode, running, 0, token_id=399)
    assert epoch_of(running) == 1
    assert world.metrics.replays.value("integrity") == 1
    assert b'baton:kv_integrity_failures_total{model_name="m"} 1.0' in world.metrics.render()


async def test_a_decode_worker_that_computed_the_prompt_itself_goes_on_from_the_token_that_the_client_has(
    world: World,
) -> None:
    """Rounding took it to another first token, which is no failure of anything."""
    prefill, decode = world.join("p", "prefill"), world.join("d", "decode")
    running = world.begin()
    world.say(prefill, running, 0)
    world.say(decode, running, 0, token_id=399)
    assert epoch_of(running) == 1
    start = sent(decode)[-1]
    assert isinstance(start, Start)
    assert (start.choices[0].emitted, start.ticket) == (ANSWER[:1], None)
    for at in range(1, 8):
        world.say(decode, running, at)
    assert world.heard.tokens == {0: ANSWER}
    assert world.metrics.replays.value("recomputed") == 1
    assert running.num_replays == 0
    assert b'baton:kv_integrity_failures_total{model_name="m"} 0.0' in world.metrics.render()


async def test_a_prefill_worker_that_is_late_with_another_first_token_is_not_heard(world: World) -> None:
    prefill, decode = world.join("p", "prefill"), world.join("d", "decode")
    running = world.begin()
    world.say(decode, running, 0)
    world.say(prefill, running, 0, token_id=399)
    for at in range(1, 8):
        world.say(decode, running, at)
    assert world.heard.tokens == {0: ANSWER}
    assert epoch_of(running) == 0


@pytest.mark.parametrize("asked", [{"max_tokens": 2}, {"max_tokens": None}])
async def test_a_worker_that_goes_on_after_what_was_asked_is_told_to_stop(world: World, asked: dict[str, Any]) -> None:
    decode = world.join("d", "decode")
    if asked["max_tokens"] is None:
        facts = msgspec.structs.replace(decode.info.model, max_model_len=len(PROMPT) + 2)
        decode.info = msgspec.structs.replace(decode.info, model=facts)
    running = world.begin(**asked)
    for at in range(4):
        world.say(decode, running, at, finish_reason=None, epoch=0)
    assert world.heard.finished == {0: "length"}
    assert world.heard.tokens == {0: ANSWER[:2]}
    assert sent(decode)[-1] == Cancel(running.flow.request_id, 0)
    world.check_nothing_is_left()


async def test_a_gap_is_replayed(world: World) -> None:
    decode = world.join("d", "decode")
    running = world.begin()
    world.say(decode, running, 0)
    world.say(decode, running, 2)
    assert epoch_of(running) == 1
    start = sent(decode)[-1]
    assert start.choices[0].emitted == ANSWER[:1]
    for at in range(1, 8):
        world.say(decode, running, at)
    assert world.heard.tokens == {0: ANSWER}


async def test_a_dead_decode_worker_is_replaced_and_the_stream_goes_on_at_the_next_token(world: World) -> None:
    first = world.join("d0", "decode")
    running = world.begin()
    second = world.join("d1", "decode")
    for at in range(3):
        world.say(first, running, at)
    old_epoch = epoch_of(running)
    world.pool.lose(first, "test")
    start = sent(second)[-1]
    assert (start.epoch, start.leg, start.ticket) == (1, "decode", None)
    assert start.choices[0].emitted == ANSWER[:3]
    world.say(first, running, 3, epoch=old_epoch, token_id=399)  # late, from the dead
    world.say(second, running, 3, epoch=old_epoch, token_id=399)
    for at in range(3, 8):
        world.say(second, running, at)
    assert world.heard.tokens == {0: ANSWER}
    assert world.heard.is_ended
    world.check_nothing_is_left()


async def test_a_dead_prefill_worker_is_replaced_unless_its_kv_has_arrived(world: World) -> None:
    prefill, decode = world.join("p0", "prefill"), world.join("d", "decode")
    running = world.begin()
    other = world.join("p1", "prefill")
    world.pool.lose(prefill, "test")
    assert epoch_of(running) == 1
    assert sent(other)[-1].leg == "prefill"
    assert [m.epoch for m in sent(decode) if isinstance(m, Cancel)] == [0]
    world.say(other, running, 0)
    world.say(decode, running, 1)
    world.pool.lose(other, "test")
    assert epoch_of(running) == 1
    for at in range(2, 8):
        world.say(decode, running, at)
    assert world.heard.tokens == {0: ANSWER}


async def test_the_same_seed_serves_every_epoch(world: World) -> None:
    decode = world.join("d", "decode")
    running = world.begin(temperature=1.0)
    world.end(decode, running, "draining")
    starts = [m for m in sent(decode) if isinstance(m, Start)]
    assert len(starts) == 2
    assert len({start.seed for start in starts}) == 1


async def test_after_the_last_replay_comes_one_error(world: World) -> None:
    decode = world.join("d", "decode")
    running = world.begin()
    for _ in range(4):
        world.end(decode, running, "internal")
    assert world.heard.error is not None
    assert world.heard.error.status == 503
    assert not world.heard.is_ended
    world.check_nothing_is_left()


async def test_a_long_answer_meets_any_number_of_lost_workers_with_tokens_between(world: World) -> None:
    decode = world.join("d", "decode")
    world.heard.tokens[0] = []
    running = world.begin(max_tokens=None)
    for round in range(10):
        for at in range(round * PROGRESS, (round + 1) * PROGRESS):
            world.say(decode, running, at, token_id=100 + at, finish_reason=None)
        world.end(decode, running, "internal")
        assert epoch_of(running) == round + 1
    assert world.heard.tokens == {0: [100 + at for at in range(10 * PROGRESS)]}
    for _ in range(3):
        world.end(decode, running, "internal")
    assert world.heard.error is not None, "without a token between it is over"
    assert "13 workers" in str(world.heard.error)
    world.check_nothing_is_left()


async def test_handing_over_while_draining_costs_no_replay(world: World) -> None:
    decode = world.join("d", "decode")
    running = world.begin()
    for _ in range(10):
        world.end(decode, running, "draining")
    assert running.num_replays == 0
    assert not running.is_over


async def test_a_users_mistake_found_by_a_worker_is_told_and_not_replayed(world: World) -> None:
    decode = world.join("d", "decode")
    running = world.begin()
    world.end(decode, running, "context_too_long", retryable=False)
    assert world.heard.error is not None
    assert world.heard.error.status == 400
    world.check_nothing_is_left()


async def test_internal_reasons_are_not_told_to_clients(world: World) -> None:
    decode = world.join("d", "decode")
    running = world.begin()
    world.end(decode, running, "internal", retryable=False)
    assert world.heard.error is not None
    assert "why" not in str(world.heard.error)


async def test_a_cancel_reaches_both_workers_once(world: World) -> None:
    prefill, decode = world.join("p", "prefill"), world.join("d", "decode")
    running = world.begin()
    running.cancel()
    running.cancel()
    for worker in (prefill, decode):
        assert [m for m in sent(worker) if isinstance(m, Cancel)] == [Cancel(running.flow.request_id, 0)]
    assert world.heard.tokens == {}
    world.check_nothing_is_left()


async def test_a_deadline_travels_as_the_seconds_that_are_left(world: World) -> None:
    """Not as a time of day: the worker's clock may be minutes off."""
    decode = world.join("d", "decode")
    running = world.begin(deadline=time.monotonic() + 100)
    assert 0 < sent(decode)[-1].seconds_left <= 100
    running.cancel()


async def test_a_deadline_ends_a_request(world: World) -> None:
    decode = world.join("d", "decode")
    world.begin(deadline=0.0)
    await world.heard.over.wait()
    assert world.heard.error is not None
    assert world.heard.error.status == 504
    assert isinstance(sent(decode)[-1], Cancel)
    world.check_nothing_is_left()


async def test_choices_are_forked_on_decode_and_each_ends_by_itself(world: World) -> None:
    prefill, decode = world.join("p", "prefill"), world.join("d", "decode")
    running = world.begin(n=3)
    assert [choice.index for choice in sent(decode)[0].choices] == [0, 1, 2]
    world.say(prefill, running, 0)
    for at in range(8):
        for choice in range(3):
            if (choice, at) != (0, 0):
                world.say(decode, running, at, choice=choice)
    assert world.heard.tokens == dict.fromkeys(range(3), ANSWER)
    assert world.heard.is_ended
    world.check_nothing_is_left()


async def test_a_replay_carries_only_what_is_unfinished(world: World) -> None:
    first = world.join("d0", "decode")
    running = world.begin(n=2)
    second = world.join("d1", "decode")
    world.say(first, running, 0, finish_reason="stop")
    world.say(first, running, 0, choice=1)
    world.pool.lose(first, "test")
    (choice,) = sent(second)[-1].choices
    assert (choice.index, choice.emitted) == (1, ANSWER[:1])


async def test_without_a_worker_a_request_waits_for_one(world: World) -> None:
    decode = world.join("d", "decode")
    running = world.begin()
    world.say(decode, running, 0)
    world.pool.lose(decode, "test")
    assert not running.is_over
    again = world.join("d", "decode")
    assert sent(again)[-1].choices[0].emitted == ANSWER[:1]
    running.cancel()
    world.check_nothing_is_left()


async def test_waiting_for_a_worker_is_bounded() -> None:
    world = World(worker_wait_s=0.02)
    decode = world.join("d", "decode")
    world.begin()
    world.pool.lose(decode, "test")
    await world.heard.over.wait()
    assert world.heard.error is not None
    assert world.heard.error.status == 503
    world.check_nothing_is_left()
    await world.pool.close()


async def test_a_worker_that_takes_no_message_is_lost_and_another_asked(world: World) -> None:
    deaf, other = world.join("d0", "decode"), world.join("d1", "decode")
    deaf.client.is_gone = True  # type: ignore[attr-defined]
    for _ in range(4):
        running = world.begin()
        assert isinstance(sent(other)[-1], Start)
        running.cancel()
        world.heard = Heard()
    assert "d0" not in world.pool.workers or not sent(deaf)


async def test_a_worker_that_answers_but_does_no_step_is_taken_as_dead_until_it_does() -> None:
    world = World(stall_s=60.0)
    stuck = world.join("d0", "decode")
    client: Any = stuck.client
    client.hello = client.send
    world.pool._of_client[client] = stuck
    client.last_heard = now = asyncio.get_running_loop().time()
    stuck.moved_at -= 61.0
    world.pool.lose_silent(now)
    assert "d0" in world.pool.workers  # nobody waits for it
    world.begin()
    stuck.report(Load(in_long_step=True))
    world.pool.lose_silent(now)
    assert "d0" in world.pool.workers  # it knows what its step may take
    stuck.report(Load())
    stuck.moved_at -= 61.0
    world.pool.lose_silent(now)
    assert "d0" not in world.pool.workers
    world.pool.on_message(client, Welcome(stuck.info, stuck.load))
    assert "d0" not in world.pool.workers
    world.pool.on_message(client, Welcome(stuck.info, Load(num_steps=1)))
    assert "d0" in world.pool.workers
    await world.pool.close()


async def test_a_silent_worker_is_lost(world: World) -> None:
    worker = world.join("d0", "decode")
    client: Any = worker.client
    world.pool._of_client[client] = worker
    client.last_heard = 100.0
    world.pool.lose_silent(100.0 + WORKER_SILENCE_S)
    assert worker.is_live
    world.pool.lose_silent(100.1 + WORKER_SILENCE_S)
    assert not worker.is_live


async def test_a_worker_that_drains_gets_nothing_new(world: World) -> None:
    draining, other = world.join("d0", "decode", draining=True), world.join("d1", "decode")
    world.begin()
    assert not sent(draining)
    assert sent(other)


async def test_while_requests_are_refused_others_are_before_their_prompts_are_read() -> None:
    world = World(max_streams=1)
    world.join("d", "decode")
    asked = (SamplingParams(), b"", NOBODY)
    running = world.begin()
    world.dispatcher.check_busy(*asked)  # nobody was refused: nothing is looked at
    with pytest.raises(QueueFull):
        world.begin()
    with pytest.raises(QueueFull, match="--max-streams 1"):
        world.dispatcher.check_busy(*asked)
    assert world.metrics.admission_refusals.value("streams") == 2
    running.cancel()
    world.dispatcher.check_busy(*asked)
    world.check_nothing_is_left()
    await world.pool.close()


async def test_a_text_that_would_wait_too_long_to_be_read_is_refused_before_it_does(world: World) -> None:
    world.join("d", "decode")
    world.dispatcher.check_busy(SamplingParams(), b"", NOBODY, text_s=9.0)
    with pytest.raises(QueueFull, match=r"would wait 11\.0 s until it is read, and the limit is --max-queue-s 10\."):
        world.dispatcher.check_busy(SamplingParams(), b"", NOBODY, text_s=11.0)
    assert world.metrics.admission_refusals.value("text") == 1


async def test_prompts_of_other_workers_are_no_streams_of_the_one_that_computes_them(world: World) -> None:
    lender, other = world.join("d0", "decode", "prefill"), world.join("d1", "decode")
    lender.report(Load(kv_total_blocks=1))  # too few to decode here
    running = [world.begin() for _ in range(3)]
    lender.report(Load(num_running=1, num_waiting=2))
    seen = [world.dispatcher._placement._candidate(each, running[0].flow.generation) for each in (lender, other)]
    assert [each.num_running for each in seen] == [0, 3]
    computed = Computed(running[0].flow.request_id, 0, len(PROMPT), 0, 0.0, 0.1)
    world.dispatcher.on_outputs(lender, Outputs("w", "i", [], lender.load, computed=[computed]))
    running[1].cancel()
    assert lender.num_prompts == 1
    world.pool.lose(lender, "test")
    assert lender.num_prompts == 0
