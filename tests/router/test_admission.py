"""Admission refuses what would wait too long, and says when to come again."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from baton.messages import Load
from baton.protocol import NOBODY, SamplingParams, Share
from baton.router.admission import Refused
from baton.router.helper_process import HelperPool
from baton.router.pool import Worker

from .test_flow import ANSWER, PROMPT, World

pytestmark = pytest.mark.asyncio
FREE: dict[str, Any] = {"kv_total_blocks": 1000, "kv_free_blocks": 1000}


@pytest_asyncio.fixture
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    world = World(**getattr(request, "param", {}))
    yield world
    await world.pool.close()


def busy(worker: Worker, *, seconds: float, places: int = 4, running: int = 4, waiting: int = 0) -> None:
    """Let a worker report a full batch, whose sequences have a token each so many seconds."""
    worker.info = msgspec.structs.replace(worker.info, num_places=places)
    for num_steps in (1, 11):
        worker.report(Load(num_running=running, num_waiting=waiting, num_steps=num_steps, **FREE))
        worker.pace._at -= 10 * seconds


async def test_of_workers_whose_speed_is_not_known_nothing_is_refused(world: World) -> None:
    worker = world.join("d", "decode")
    worker.info = msgspec.structs.replace(worker.info, num_places=2)
    for _ in range(50):
        world.begin()
    assert len(world.dispatcher.flows) == 50


async def test_prompts_that_would_wait_too_long_for_their_first_token_are_refused(world: World) -> None:
    worker = world.join("d", "decode")
    worker.report(Load(waiting_tokens=900, prefill_rate=100.0, **FREE))
    world.begin()
    worker.report(Load(waiting_tokens=1500, prefill_rate=100.0, **FREE))
    with pytest.raises(Refused, match=r"would wait 15\.0 s, and the limit is --max-queue-s 10\.") as caught:
        world.begin()
    assert caught.value.retry_after_s == 10  # by then half of the limit waits, if nobody else came
    assert world.metrics.admission_refusals.value("queue") == 1


async def test_without_a_free_place_the_second_token_is_what_would_come_too_late(world: World) -> None:
    prefill, decode = world.join("p", "prefill"), world.join("d", "decode")
    prefill.report(Load(prefill_rate=1e6, **FREE))
    busy(decode, seconds=20.0)  # an answer of ANSWER's length lasts 160 s, so a place is free each 40
    assert len(ANSWER) == 8
    with pytest.raises(Refused, match="would wait"):
        world.begin()
    decode.pace._steps *= 1000  # what was slow has become fast
    world.begin()


async def test_those_whose_prompts_are_being_read_count_as_if_they_were_there(world: World) -> None:
    decode = world.join("d", "decode")
    busy(decode, seconds=0.1)
    params = SamplingParams(max_tokens=len(ANSWER))  # 0.8 s, and 4 places: five a second
    reading = world.dispatcher.reading
    reading.add(NOBODY, 30)
    world.dispatcher.check_busy(params, b"", NOBODY)
    reading.add(NOBODY, 50)
    with pytest.raises(Refused, match="would wait"):
        world.dispatcher.check_busy(params, b"", NOBODY)
    reading.add(NOBODY, -80)
    world.dispatcher.check_busy(params, b"", NOBODY)


async def test_who_finds_all_helpers_busy_is_told_how_long_it_would_wait() -> None:
    pool = HelperPool("baton.router.render", 1)
    try:
        await pool.start()
        assert pool.wait_s == 0
        await pool.ask(msgspec.msgpack.encode(None), 10.0)
        asking = [asyncio.create_task(pool.ask(msgspec.msgpack.encode(None), 10.0)) for _ in range(5)]
        await asyncio.sleep(0)
        assert pool.wait_s > 0
        asking.pop().cancel()
        await asyncio.gather(*asking)
        assert pool.wait_s == 0
    finally:
        await pool.close()


@pytest.mark.parametrize("world", [{"ttft_target_ms": 500.0}], indirect=True)
async def test_a_target_for_the_first_token_refuses_what_would_miss_it(world: World) -> None:
    worker = world.join("d", "decode")
    worker.report(Load(waiting_tokens=1000, prefill_rate=1000.0, **FREE))
    with pytest.raises(Refused, match="--ttft-target-ms 500") as caught:
        world.begin()
    assert caught.value.cause == "ttft"
    worker.report(Load(waiting_tokens=300, prefill_rate=1000.0, **FREE))
    world.begin()


@pytest.mark.parametrize("world", [{"ttft_target_ms": 500.0}], indirect=True)
async def test_a_prompt_that_takes_long_by_itself_is_no_overload(world: World) -> None:
    worker = world.join("d", "decode")
    worker.report(Load(prefill_rate=1.0, **FREE))
    world.begin()


@pytest.mark.parametrize("world", [{"max_queue_s": 0.0}], indirect=True)
async def test_without_a_limit_everything_waits(world: World) -> None:
    worker = world.join("d", "decode")
    worker.report(Load(waiting_tokens=100_000, prefill_rate=1.0, **FREE))
    world.begin()


async def test_what_was_sent_counts_until_it_is_computed_whatever_a_late_report_says(world: World) -> None:
    worker = world.join("d", "decode")
    worker.report(Load(prefill_rate=1.0, **FREE))
    first = world.begin()
    worker.report(Load(prefill_rate=1.0, **FREE))  # from before it arrived
    with pytest.raises(Refused):
        world.begin()
    worker.report(Load(waiting_tokens=len(PROMPT), prefill_rate=1.0, **FREE))
    first.cancel()
    world.begin()


async def test_nothing_is_left_of_what_was_counted(world: World) -> None:
    prefill, decode = world.join("p", "prefill"), world.join("d", "decode")
    for _ in range(3):
        running = world.begin()
        assert prefill.queued.total + decode.queued.total == len(PROMPT)
        assert decode.num_choices == 1
        world.end(decode, running, "draining")  # it is replayed
        assert decode.num_choices == 1
        running.cancel()
    assert (prefill.queued.total, decode.queued.total, decode.num_choices) == (0, 0, 0)


async def test_what_one_key_floods_is_refused_to_it_and_not_to_another(world: World) -> None:
    worker = world.join("d", "decode")
    worker.report(Load(prefill_rate=10.0, **FREE))
    flood, other = Share(b"a"), Share(b"b")
    assert len(PROMPT) == 20  # 2 s each
    for _ in range(6):
        world.begin(share=flood)
    with pytest.raises(Refused):
        world.begin(share=flood)
    world.begin(share=other)


async def test_of_places_too_one_key_has_its_part_and_waits_behind_itself(world: World) -> None:
    worker = world.join("d", "decode")
    flood, other = Share(b"a"), Share(b"b")
    running = [world.begin(share=flood, max_tokens=len(ANSWER)) for _ in range(12)]
    busy(worker, seconds=2.0, places=8, running=7, waiting=5)
    for each in running[:7]:
        world.say(worker, each, 0)
    with pytest.raises(Refused):
        world.begin(share=flood)
    world.begin(share=other)  # a place is kept free for it
