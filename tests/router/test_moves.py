"""A decode worker that drains: what runs there goes on elsewhere with its KV, some at a time, and nothing is lost on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tests.router.test_flow import ANSWER, World, epoch_of, sent

from baton.messages import Blocks, Cancel, Load, Outputs, Start, Transfer
from baton.router.dispatcher import Running
from baton.router.moves import AT_ONCE
from baton.router.pool import Worker

pytestmark = pytest.mark.asyncio
BOTH = ("decode", "prefill")
ROOM = Load(kv_total_blocks=1000, kv_free_blocks=1000)


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    world = World(path="local")
    yield world
    await world.pool.close()


def begin(world: World, worker: Worker, num_tokens: int = 2, **params: Any) -> Running:
    """Have a request decode on the only worker, which tells that it has cached the prompt."""
    running = world.begin(**params)
    for at in range(num_tokens):
        world.say(worker, running, at)
    hashes = [each for found in running.flow.generation.hashes.values() for each in found]
    world.dispatcher.on_blocks(Blocks(worker.worker_id, worker.info.incarnation, 1, hashes, is_snapshot=True))
    return running


def drain(world: World, worker: Worker) -> None:
    """Have a worker report that it drains."""
    worker.report(msgspec.structs.replace(worker.load, draining=True))
    world.dispatcher.on_outputs(worker, Outputs("w", "i", [], worker.load))


def starts(worker: Worker) -> list[Start]:
    return [message for message in sent(worker) if isinstance(message, Start)]


def moved(world: World) -> float:
    return world.metrics.replays.value("moved")


def arrive(world: World, worker: Worker, running: Running, source: Worker) -> None:
    """Say that a request's KV has arrived."""
    transfer = Transfer(running.flow.request_id, epoch_of(running), source.info.incarnation, 16, 1000, 0.1, 0.0)
    world.dispatcher.on_outputs(worker, Outputs("w", "i", [], worker.load, [], [transfer]))


async def test_a_running_request_goes_on_elsewhere_with_its_kv(world: World) -> None:
    old = world.join("d0", *BOTH)
    running = begin(world, old)
    new = world.join("d1", *BOTH)
    drain(world, old)
    (on_new,), (_, on_old) = starts(new), starts(old)
    assert (on_new.leg, on_old.leg, on_new.epoch) == ("decode", "prefill", 1)
    assert on_new.ticket == on_old.ticket
    assert on_new.ticket is not None
    assert on_new.ticket.source_incarnation == old.info.incarnation
    assert on_new.choices[0].emitted == on_old.choices[0].emitted == ANSWER[:2]
    assert not any(isinstance(message, Cancel) for message in sent(old))  # its blocks stay until they are asked for
    world.say(old, running, 2, epoch=0)  # on its way when the request was moved
    assert world.heard.tokens == {0: ANSWER[:2]}
    world.say(old, running, 2)
    arrive(world, new, running, old)
    for at in range(3, 8):
        world.say(new, running, at)
    assert world.heard.tokens == {0: ANSWER}
    assert world.heard.is_ended
    assert (moved(world), running.num_replays) == (1, 0)
    world.check_nothing_is_left()


@pytest.mark.parametrize("lost", ["d0", "d1"])
async def test_a_worker_that_dies_during_a_move_costs_a_replay_and_no_token(world: World, lost: str) -> None:
    old = world.join("d0", *BOTH)
    running = begin(world, old)
    workers = {"d0": old, "d1": world.join("d1", *BOTH)}
    drain(world, old)
    third = world.join("d2", *BOTH)
    world.pool.lose(workers[lost], "test")
    after = next(each for each in (workers["d1"], third) if starts(each) and starts(each)[-1].epoch == 2)
    assert starts(after)[-1].ticket is None
    assert starts(after)[-1].choices[0].emitted == ANSWER[:2]
    for at in range(2, 8):
        world.say(after, running, at)
    assert world.heard.tokens == {0: ANSWER}
    world.check_nothing_is_left()


async def test_a_worker_that_refuses_to_hand_over_is_answered_by_a_replay(world: World) -> None:
    old = world.join("d0", *BOTH)
    running = begin(world, old)
    new = world.join("d1", *BOTH)
    drain(world, old)
    world.end(old, running, "draining")
    assert [(start.epoch, start.ticket is None) for start in starts(new)] == [(1, False), (2, True)]
    assert running.num_replays == 0


@pytest.mark.parametrize("why", ["nobody", "layout", "room", "cache", "leg"])
async def test_what_cannot_be_moved_goes_on_where_it_is(world: World, why: str) -> None:
    old = world.join("d0", *(BOTH if why != "leg" else ("decode",)))
    running = begin(world, old)
    if why == "cache":
        world.dispatcher.on_blocks(Blocks("d0", old.info.incarnation, 2, [], is_snapshot=True))
    if why != "nobody":
        new = world.join("d1", *BOTH)
        new.info = msgspec.structs.replace(new.info, layout="another" if why == "layout" else new.info.layout)
        new.report(msgspec.structs.replace(ROOM, kv_free_blocks=0 if why == "room" else 1000))
    drain(world, old)
    assert moved(world) == 0
    for at in range(2, 8):
        world.say(old, running, at)
    assert world.heard.tokens == {0: ANSWER}


async def test_some_requests_move_at_once_and_the_others_decode_meanwhile(world: World) -> None:
    old = world.join("d0", *BOTH)
    all_running = [begin(world, old) for _ in range(AT_ONCE + 3)]
    new = world.join("d1", *BOTH)
    drain(world, old)
    assert moved(world) == len(starts(new)) == AT_ONCE
    world.say(old, all_running[-1], 2)
    assert moved(world) == AT_ONCE
    world.say(old, all_running[0], 2)
    arrive(world, new, all_running[0], old)
    world.say(old, all_running[-1], 3)
    assert moved(world) == AT_ONCE + 1
    assert epoch_of(all_running[-1]) == 0


async def test_a_request_without_its_first_token_or_choice_0_stays(world: World) -> None:
    old = world.join("d0", *BOTH)
    early = world.begin()
    over = begin(world, old, n=2)
    world.say(old, over, 2, finish_reason="stop")
    world.join("d1", *BOTH)
    drain(world, old)
    assert (epoch_of(early), epoch_of(over), moved(world)) == (0, 0, 0)
