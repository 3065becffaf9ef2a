"""The fault matrix: role x moment x fault, each cell with its outcome, played in virtual time by a router and workers.

Cells where a real process is killed, stopped or stuck stand beside: test_workers_die.py, test_pauses.py,
test_stuck_step.py; those of Redis in tests/router/test_faults.py; of the disk and of clocks there is nothing to fail:
no service writes to a disk, and times travel as seconds left. A router that is killed cuts its streams: `baton chaos`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from tests.simulation.network import Network
from tests.simulation.play import Asked, config_of
from tests.simulation.worker import LEASE_S, SimulatedWorker
from tests.simulation.world import VirtualLoop, World

from baton.messages import Leg
from baton.metrics import RouterMetrics
from baton.protocol import SamplingParams
from baton.router.admission import Admission
from baton.router.dispatcher import Dispatcher
from baton.router.index import PrefixIndex
from baton.router.pool import WorkerPool
from baton.router.tenants import Tenants

pytestmark = pytest.mark.usefixtures("quiet_log")
MOMENTS = ("queued", "prefilling", "transferring", "first token", "mid-decode", "last token", "draining")
"""The Starts are sent; the prompt is computed; its KV waits to be fetched; tokens 1, 10 and the one before the last are at
the client; the decode worker drains."""
OF_WORKERS = ("kill", "stop", "partition", "half-open", "corrupt frames", "slow link", "lost frames", "OOM of a step")
WHOLE, GONE, LATE = "complete answer", "nothing is left", "504 in time"
MATRIX: dict[tuple[str, str, str], str] = {
    **{(role, moment, fault): WHOLE for role in ("prefill", "decode") for moment in MOMENTS for fault in OF_WORKERS},
    **{("router", moment, "stop"): WHOLE for moment in MOMENTS},
    **{("client", moment, "leaves"): GONE for moment in MOMENTS},
    **{("client", moment, "deadline passes"): LATE for moment in MOMENTS},
}
PROMPT_LEN, ANSWER_LEN = 100, 20
NUM_OTHERS = 4
WITHIN_S = 12.0
"""Virtual seconds after a fault, of which the stop of a process takes 7."""


class Scene:
    """Two workers a leg, and streams; one of them is looked at."""

    def __init__(self) -> None:
        self.world, rng = World(remembers=True), random.Random(0)
        self.network = Network(self.world, rng)
        by_incarnation: dict[str, Any] = {}
        legs: tuple[Leg, ...] = ("prefill", "decode")
        names = [(f"{leg[0]}{i}", leg) for leg in legs for i in range(2)]
        self.workers = {name: SimulatedWorker(self.network, rng, name, (leg,), by_incarnation) for name, leg in names}
        params = SamplingParams(max_tokens=ANSWER_LEN, detokenize=False, seed=1)
        prompts = [[rng.randrange(5, 400) for _ in range(PROMPT_LEN)] for _ in range(NUM_OTHERS + 1)]
        self.asked = [Asked(self.world, f"r{i}", prompt, params, 0.0) for i, prompt in enumerate(prompts)]
        self.watched = self.asked[0]
        self.done_at = 0.0
        self._is_draining = False

    def play(self, role: str, moment: str, fault: str) -> str:
        """Do the fault at the moment; return what became of the stream that is looked at."""
        loop = VirtualLoop(self.world)
        try:
            loop.run_until_complete(self._play(role, moment, fault))
        finally:
            loop.close()
        assert self.world.violations == []
        if self.watched.has_left:
            return GONE
        (end,) = self.watched.ends
        return WHOLE if self.watched.is_complete else f"{getattr(end, 'status', 0)} in time"

    async def _play(self, role: str, moment: str, fault: str) -> None:
        world, metrics = self.world, RouterMetrics("m")
        config = config_of(tuple(worker.endpoint for worker in self.workers.values()), "remote", 0.0)
        pool = WorkerPool(config, "router", metrics, self.network, world.clock)  # type: ignore[arg-type]
        admission = Admission(config, metrics, Tenants((), "", None, world.clock))
        dispatcher = Dispatcher(config, pool, PrefixIndex(), metrics, admission, random.Random(0))
        pool.start(dispatcher)
        try:
            while len(pool.workers) < len(self.workers):
                await asyncio.sleep(0.05)
            if fault == "deadline passes":
                self.watched.seconds = 3600.0
            for asked in self.asked:
                asked.begin(dispatcher)
            self._await(moment, lambda: self._do(role, fault))
            while not (self.done_at and all(asked.is_over for asked in self.asked)):
                await asyncio.sleep(0.25)
                assert world.now < 1100.0, world.history[-100:]
            assert world.now - self.done_at < WITHIN_S
            assert all(asked.is_complete for asked in self.asked[1:])
            await asyncio.sleep(LEASE_S + 8.0)
            assert not dispatcher.flows
            assert (admission.num_requests, admission.waiting_tokens, admission.blocks) == (0, 0, 0)
            assert [len(worker.runs) for worker in self.workers.values()] == [0] * len(self.workers)
            assert [(w.num_choices, w.queued.total, len(w.request_ids)) for w in pool.workers.values()] == [
                (0, 0, 0)
            ] * 4
        finally:
            await pool.close()

    # -- moments ------------------------------------------------------------------------------------------

    def _await(self, moment: str, do: Callable[[], None]) -> None:
        """Call once the stream is there; look each half millisecond, between any two messages."""
        if not self._is_at(moment):
            assert not self.watched.is_over, f"{moment} was not seen"
            self.world.after(0.0005, lambda: self._await(moment, do))
            return
        self.world.note("scene", moment)
        self.done_at = self.world.now
        do()

    def _is_at(self, moment: str) -> bool:
        prefill, decode, request_id = self._of("prefill"), self._of("decode"), self.watched.request_id
        num_tokens = len(self.watched.tokens.get(0, ()))
        match moment:
            case "queued":
                return True
            case "prefilling":
                return bool(prefill.runs.of_request(request_id) and decode.runs.of_request(request_id))
            case "transferring":
                return any(run.is_over for run in prefill.runs.of_request(request_id))
            case "draining" if num_tokens == 5:
                if not self._is_draining:
                    self._is_draining = True
                    decode.drain()
                return True
            case "draining":
                return False
        return num_tokens >= {"first token": 1, "mid-decode": 10, "last token": ANSWER_LEN - 1}[moment]

    def _of(self, leg: str) -> SimulatedWorker:
        """Return the worker of a leg of the stream that is looked at."""
        assert self.watched.running is not None
        attempt = self.watched.running.flow.attempt
        assert attempt is not None
        name = attempt.decode if leg == "decode" else attempt.prefill
        # a prompt is computed once: its worker is looked for where it was
        return self.workers[name or next(each for each in self.workers if each.startswith("p"))]

    # -- faults -------------------------------------------------------------------------------------------

    def _do(self, role: str, fault: str) -> None:
        if role == "router":
            self.world.stop_router(7.0)
        elif role == "client":
            running = self.watched.running
            assert running is not None
            assert running.deadline is None or fault == "deadline passes"
            if fault == "leaves":
                self.world.tell_router(self.watched.leave)
            else:  # the timer that the request's time has set comes now
                assert running.deadline is not None
                self.world.tell_router(running.deadline._run)
        else:
            self._disturb(self._of(role), fault)

    def _disturb(self, worker: SimulatedWorker, fault: str) -> None:
        both = self.network.faults[worker.endpoint]
        kinds = {"corrupt frames": "garble", "lost frames": "drop", "slow link": "delay", "half-open": "drop"}
        if fault == "kill":
            worker.die()
            self.world.after(1.0, worker.begin)
        elif fault == "stop":
            worker.stop(7.0)
        elif fault == "partition":
            for direction in both:
                direction.kind, direction.share, direction.until = "drop", 1.0, self.world.now + 7.0
            self.network.clients[worker.endpoint].lose_connection()
        elif fault == "OOM of a step":
            worker.wrong, worker.num_wrong = "broken", 2
        else:  # only what the worker says is lost in a half-open connection
            for direction in both[1:] if fault == "half-open" else both:
                direction.kind, direction.share = kinds[fault], 1.0 if fault == "half-open" else 0.5
                direction.until = self.world.now + (7.0 if fault == "half-open" else 1.0)


@pytest.mark.parametrize(("role", "moment", "fault"), MATRIX)
def test_each_cell_has_its_outcome(role: str, moment: str, fault: str) -> None:
    assert Scene().play(role, moment, fault) == MATRIX[role, moment, fault]
