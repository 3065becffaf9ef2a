"""Roll call: whatever is lost, late or left in an old connection, router and worker come to the same open legs."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.router.test_flow import ANSWER, PROMPT, Heard, World, epoch_of, sent

from baton.messages import (
    Cancel,
    ChoiceStart,
    Hello,
    Legs,
    OpenLeg,
    Outputs,
    Start,
    Token,
    ToRouter,
    ToWorker,
    decode_to_worker,
    encode,
)
from baton.prompt import Prompt
from baton.protocol import SamplingParams
from baton.router.dispatcher import Running
from baton.router.pool import Worker
from baton.wakeup import Wakeup
from baton.worker.mailbox import Mailbox, Peer
from baton.worker.roll_call import open_legs, strays
from baton.worker.runs import ClosedEpochs, Run, Runs


class Wire:
    """A router's client and the ways to a worker, as ZeroMQ has them: each in order, an older one read whenever."""

    def __init__(self) -> None:
        self.endpoint, self.refusal, self.last_heard = "nowhere", "", 0.0
        self.connections: list[deque[ToWorker]] = [deque()]
        self.to_router: deque[ToRouter] = deque()

    def send(self, message: ToWorker) -> None:
        self.connections[-1].append(decode_to_worker(encode(message)))  # a copy, as on a real wire

    hello = send


class PaperWorker:
    """A worker's mailbox, table of runs and roll call, with an engine that says the answer."""

    def __init__(self, world: World, worker_id: str, *legs: str) -> None:
        self.wire = Wire()
        self.worker = world.join(worker_id, *legs)
        client: Any = self.wire
        self.worker.client = client
        world.pool._of_client[client] = self.worker
        self._pool = world.pool
        self._runs, self._closed = Runs(), ClosedEpochs()
        self._mailbox = Mailbox(Wakeup())
        self._mailbox._info = self.worker.info

    def close(self) -> None:
        self._mailbox.close()

    @property
    def is_empty(self) -> bool:
        return not self._runs

    def call(self) -> None:
        self._pool._greet(self.worker.client)

    def hear(self, connection: int) -> None:
        """Take the next message of a connection."""
        queue = self.wire.connections[connection % len(self.wire.connections)]
        if queue:
            self._mailbox._on_message(b"%d" % self.wire.connections.index(queue), queue.popleft())

    def say(self) -> None:
        """Let the router take the next message."""
        if self.wire.to_router:
            self._pool.on_message(self.worker.client, self.wire.to_router.popleft())

    def turn(self) -> None:
        """Go round once: what arrived, a token of each run, and the answers to the calls."""
        calls = []
        for peer, message in self._mailbox.take():  # type: ignore[misc]
            if isinstance(message, Start):
                self._start(message, peer)
            elif isinstance(message, Cancel):
                self._closed.close(message.request_id, message.epoch)
                for run in self._runs.of_request(message.request_id):
                    if run.start.epoch <= message.epoch:
                        self._runs.close(run)
            elif isinstance(message, Hello):
                calls.append((peer, message.number))
                for run, choice in list(strays(self._runs, peer, message.legs)):
                    assert choice is None
                    self._runs.close(run)
        tokens = [self._token(run) for run in self._runs if not run.is_over]
        info = self.worker.info
        self.wire.to_router.append(Outputs(info.worker_id, info.incarnation, tokens, self.worker.load))
        for peer, number in calls:
            self.wire.to_router.append(Legs(info.incarnation, number, open_legs(self._runs, peer)))

    def _start(self, start: Start, peer: Peer) -> None:
        known = [run.start.epoch for run in self._runs.of_request(start.request_id)]
        if start.epoch <= max(known, default=-1) or self._closed.is_closed(start.request_id, start.epoch):
            return
        for run in self._runs.of_request(start.request_id):
            self._runs.close(run)
        self._runs.open(Run.of(start, peer))

    def _token(self, run: Run) -> Token:
        (choice,) = run.start.choices
        is_fetched = run.start.leg == "decode" and run.start.ticket is not None
        at = len(choice.emitted) + len(run.begun_choices) + is_fetched
        run.begun_choices.add(at)
        is_last = at == len(ANSWER) - 1
        run.is_over = run.start.leg == "prefill" or is_last
        if is_last:
            self._closed.close(run.start.request_id, run.start.epoch)
            self._runs.close(run)
        reason: Any = "length" if is_last else None
        return Token(run.start.request_id, run.start.epoch, 0, len(PROMPT) + at, ANSWER[at], reason)


ACTS = ["begin", "leave", "hear", "hear", "say", "say", "turn", "turn", "call"]
LOSSES = ["lose what the router sent", "lose what the worker sent", "connect anew"]


def play(data: st.DataObject, acts: list[str]) -> None:
    """Do these things in any order; then nothing more is lost, and all must end right."""

    async def run() -> None:
        world = World(path="remote", max_replays=1000)
        workers = [PaperWorker(world, "p", "prefill"), PaperWorker(world, "d", "decode")]
        try:
            begun = disturb(data, acts, world, workers)
            if acts == ACTS:
                assert world.metrics.replays.value("leg_lost") == 0
            settle(workers)
            for running, heard in begun:
                assert running.is_over
                tokens = heard.tokens.get(0, [])
                assert tokens == ANSWER[: len(tokens)]
                assert heard.error is None
                assert heard.is_ended == (tokens == ANSWER)
            assert all(paper.is_empty for paper in workers)
            world.check_nothing_is_left()
        finally:
            for paper in workers:
                paper.close()
            await world.pool.close()

    asyncio.run(run())


def disturb(
    data: st.DataObject, acts: list[str], world: World, workers: list[PaperWorker]
) -> list[tuple[Running, Heard]]:
    """Begin requests, and do to them what may be done; return them."""
    begun: list[tuple[Running, Heard]] = []
    for paper in workers:
        paper.call()
        paper.hear(0)
    for _ in range(data.draw(st.integers(0, 80))):
        paper = data.draw(st.sampled_from(workers))
        match data.draw(st.sampled_from(acts)):
            case "begin":
                world.heard = Heard()
                begun.append((world.begin(), world.heard))
            case "leave" if begun:
                data.draw(st.sampled_from(begun))[0].cancel()
            case "hear":
                paper.hear(data.draw(st.integers(0, 9)))
            case "say":
                paper.say()
            case "turn":
                paper.turn()
            case "call":
                paper.call()
            case "lose what the router sent" if paper.wire.connections[-1]:
                paper.wire.connections[-1].popleft()
            case "lose what the worker sent" if paper.wire.to_router:
                paper.wire.to_router.popleft()
            case "connect anew":
                paper.wire.connections.append(deque())
    return begun


def settle(workers: list[PaperWorker]) -> None:
    """Call twice, and let all be heard; a request that was lost needs a turn a token after the first call."""
    for _ in range(2):
        for paper in workers:
            paper.call()
        for _ in range(2 * len(ANSWER)):
            for paper in workers:
                for i, queue in enumerate(paper.wire.connections):
                    while queue:
                        paper.hear(i)
                paper.turn()
            for paper in workers:
                while paper.wire.to_router:
                    paper.say()
    for paper in workers:
        paper.call()
        for i in range(len(paper.wire.connections)):
            while paper.wire.connections[i]:
                paper.hear(i)
        paper.turn()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_is_lost_all_requests_end_right_and_nothing_runs_on(data: st.DataObject) -> None:
    play(data, ACTS + LOSSES)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_is_only_late_is_never_taken_as_lost(data: st.DataObject) -> None:
    play(data, ACTS)


# -- one by one --------------------------------------------------------------------------------------------------


def answer(world: World, worker: Worker, number: int, *legs: OpenLeg) -> None:
    world.dispatcher.on_legs(worker, Legs(worker.info.incarnation, number, list(legs)))


@pytest.mark.asyncio
async def test_a_leg_that_was_sent_after_the_call_is_not_judged_by_its_answer() -> None:
    world = World(path="remote")
    decode = world.join("d", "decode")
    world.pool.num_calls = 7
    running = world.begin()
    answer(world, decode, 7)
    assert epoch_of(running) == 0
    answer(world, decode, 8)
    assert epoch_of(running) == 1
    assert isinstance(sent(decode)[-1], Start)
    await world.pool.close()


@pytest.mark.asyncio
async def test_a_decode_worker_that_ended_with_the_first_token_may_tell_before_the_prefill_worker() -> None:
    world = World(path="remote")
    world.join("p", "prefill")
    decode = world.join("d", "decode")
    running = world.begin()
    answer(world, decode, 1)
    assert epoch_of(running) == 0
    await world.pool.close()


@pytest.mark.asyncio
async def test_a_choice_whose_last_token_was_lost_is_run_again() -> None:
    world = World(path="local")
    decode = world.join("d", "decode")
    running = world.begin(n=2)
    for at in range(3):
        world.say(decode, running, at)
        world.say(decode, running, at, choice=1)
    answer(world, decode, 1, OpenLeg(running.flow.request_id, 0, [0, 1]))
    assert epoch_of(running) == 0
    answer(world, decode, 2, OpenLeg(running.flow.request_id, 0, [1]))
    assert epoch_of(running) == 1
    assert [len(choice.emitted) for choice in sent(decode)[-1].choices] == [3, 3]
    await world.pool.close()


@pytest.mark.asyncio
async def test_a_prefill_worker_that_gave_its_token_need_not_name_its_leg() -> None:
    world = World(path="remote")
    prefill = world.join("p", "prefill")
    world.join("d", "decode")
    running = world.begin()
    world.say(prefill, running, 0)
    answer(world, prefill, 1)
    assert epoch_of(running) == 0
    running.cancel()
    await world.pool.close()


def test_a_choice_that_the_router_has_ended_is_a_stray() -> None:
    peer, runs = Peer("r", b"r", 0.0), Runs()
    choices = [ChoiceStart(0), ChoiceStart(1)]
    runs.open(run := Run.of(Start("a" * 32, 0, "decode", Prompt(PROMPT), choices, SamplingParams(n=2), 0), peer))
    assert list(strays(runs, peer, [OpenLeg("a" * 32, 0, [1])])) == [(run, 0)]
    assert list(strays(runs, Peer("other", b"o", 0.0), [])) == []
    assert list(strays(runs, peer, [OpenLeg("a" * 32, 1, [0, 1])])) == [(run, None)]
