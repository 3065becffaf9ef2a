"""One seed: a stack, requests, faults, all drawn from it; played in virtual time, and judged.

What must hold, whatever happens
- each request ends exactly once: complete, or with one error, or not at all if its client left;
- what a client has is the answer's beginning: no token lost, repeated, changed or out of order; `usage` counts them;
- where only one thing went wrong, and it is one that the system promises to bear, every answer is complete, and soon;
- in the end nothing is left of any request, in the router or on any worker, and all counts are back at zero.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.simulation.network import FAULTS, Network
from tests.simulation.worker import LEASE_S, WRONGS, SimulatedWorker, expected
from tests.simulation.world import BEGIN_S, VirtualLoop, World

from baton.errors import BatonError, QueueFull, Unavailable
from baton.messages import Leg, Token
from baton.metrics import RouterMetrics
from baton.prompt import Prompt
from baton.protocol import SamplingParams
from baton.router.admission import Admission
from baton.router.config import PathMode, RouterConfig
from baton.router.dispatcher import Dispatcher, Running
from baton.router.flow import DeadlinePassed, Flow
from baton.router.generation import Generation
from baton.router.index import PrefixIndex
from baton.router.pool import WorkerPool
from baton.router.sink import Usage
from baton.router.tenants import Tenants

BORNE = ("kill", "stop", "stop router", "cut", "drain", "nothing", *FAULTS[:1])
"""What alone costs no answer."""
FAULTS_WITHIN_S = 3.0
GOES_ON_S = 10.0
"""After a fault that is borne, answers are complete within so long: they take 1 s, and a lost worker is found after 3."""
MOST_S = 150.0
"""After so long every request has ended."""


@dataclass
class Asked:
    """One request, and what its client heard. It is the request's sink and its text."""

    world: World
    name: str
    prompt: list[int]
    params: SamplingParams
    begins_at: float
    leaves_after: float | None = None
    seconds: float | None = None
    stop_at: int | None = None
    """The place in choice 0 of a token that ends it as a stop string does."""
    tokens: dict[int, list[int]] = field(default_factory=dict)
    finished: dict[int, str] = field(default_factory=dict)
    ends: list[BatonError | Usage] = field(default_factory=list)
    ended_at: float = 0.0
    refusal: BatonError | None = None
    running: Running | None = None
    has_left: bool = False

    @functools.cached_property
    def wanted(self) -> list[list[int]]:
        """The answer, by choice."""
        return [self._wanted(choice) for choice in range(self.params.n)]

    def _wanted(self, choice: int) -> list[int]:
        most = self.params.max_tokens or 0
        if choice == 0 and self.stop_at is not None:
            most = min(most, self.stop_at + 1)
        return expected(self.prompt, choice, most)

    @property
    def is_over(self) -> bool:
        return bool(self.ends) or self.has_left or self.refusal is not None

    @property
    def is_complete(self) -> bool:
        return bool(self.ends) and isinstance(self.ends[0], Usage)

    # -- as a sink ----------------------------------------------------------------------------------------

    def push(
        self, choice: int, shown: int, token: Token, finish_reason: str | None, _stop_reason: int | str | None
    ) -> None:
        have = self.tokens.setdefault(choice, [])
        have.append(shown)
        self.world.note(self.name, "token", choice, len(have) - 1, finish_reason or "")
        if self.ends or self.has_left or choice in self.finished:
            self.world.violated(f"{self.name} got a token of choice {choice} after its end")
        if len(have) > len(self.wanted[choice]) or shown != self.wanted[choice][len(have) - 1]:
            self.world.violated(f"{self.name} got a wrong token: choice {choice}, place {len(have) - 1}")
        if token.position != len(self.prompt) + len(have) - 1:
            self.world.violated(f"{self.name} got a token of another place")
        if finish_reason is not None:
            self.finished[choice] = finish_reason

    def end(self, usage: Usage) -> None:
        self.world.note(self.name, "ends")
        self.ends.append(usage)
        self.ended_at = self.world.now

    def fail(self, error: BatonError) -> None:
        self.world.note(self.name, "fails:", error)
        self.ends.append(error)

    # -- its client ---------------------------------------------------------------------------------------

    @property
    def request_id(self) -> str:
        """One that is the same when it is played again."""
        return self.name.encode().hex().zfill(32)

    def begin(self, dispatcher: Dispatcher) -> None:
        """Ask."""
        deadline = None if self.seconds is None else self.world.now + self.seconds
        texts = [Shown(self, choice) for choice in range(self.params.n)]
        generation = Generation(Prompt(self.prompt), self.params, deadline=deadline, public_id=self.name)
        flow = Flow(generation, texts, self)
        flow.request_id = self.request_id
        self.world.note(self.name, "asks for", self.params.n, "x", self.params.max_tokens)
        try:
            self.running = dispatcher.start(flow)
        except BatonError as error:
            self.world.note(self.name, "is refused:", error)
            self.refusal = error

    def leave(self) -> None:
        """Hang up."""
        if self.running is not None and not self.ends:
            self.world.note(self.name, "leaves")
            self.has_left = True
            self.running.cancel()


@dataclass
class Shown:
    """A choice's text: its tokens, and a stop string."""

    asked: Asked
    choice: int
    num: int = 0

    def push(self, token_id: int, _finish_reason: str | None) -> tuple[int, str | None]:
        at, self.num = self.num, self.num + 1
        stops = self.choice == 0 and at == self.asked.stop_at
        return token_id, "stop" if stops else None


@functools.cache
def config_of(endpoints: tuple[str, ...], path: PathMode, itl_target_ms: float) -> RouterConfig:
    """Make the settings of a router, which takes as long as a tenth of a play."""
    return RouterConfig(model="m", worker=endpoints, path=path, itl_target_ms=itl_target_ms)


class Play:
    """One seed's run."""

    def __init__(self, seed: int, *, remembers: bool = False) -> None:
        self.world = World(remembers=remembers)
        self._rng = rng = random.Random(seed)
        self._network = Network(self.world, rng)
        by_incarnation: dict[str, SimulatedWorker] = {}
        num_prefill, num_decode = rng.choice((0, 1, 1, 2)), rng.choice((1, 2, 2, 3))
        legs: list[tuple[str, tuple[Leg, ...]]] = [(f"p{i}", ("prefill",)) for i in range(num_prefill)]
        legs += [(f"d{i}", ("decode",) if rng.random() < 0.8 else ("prefill", "decode")) for i in range(num_decode)]
        self.workers = [SimulatedWorker(self._network, rng, name, its, by_incarnation) for name, its in legs]
        self.asked = [self._request(i) for i in range(rng.randint(2, 7))]
        self.faults = (
            rng.sample(FAULT_NAMES, 1) if rng.random() < 0.4 else rng.choices(FAULT_NAMES, k=rng.randint(2, 6))
        )
        self._is_mild = len(self.faults) == 1 and self.faults[0] in BORNE and num_decode > 1
        self._path: PathMode = rng.choice(("auto", "remote", "remote"))
        self._itl_target_ms = rng.choice((0.0, 0.0, 40.0))
        self._quiet_at = 0.0

    def _request(self, i: int) -> Asked:
        rng = self._rng
        prompt = [rng.randrange(5, 400) for _ in range(rng.randint(1, 120))]
        params = SamplingParams(
            max_tokens=rng.choice((1, 2, 20, 40)), n=rng.choice((1, 1, 1, 3)), detokenize=False, seed=i
        )
        asked = Asked(self.world, f"r{i}", prompt, params, rng.uniform(0.0, 2.0))
        if rng.random() < 0.15:
            asked.leaves_after = rng.uniform(0.0, 1.5)
        if rng.random() < 0.1:
            asked.seconds = rng.uniform(0.1, 8.0)
        if rng.random() < 0.2:
            asked.stop_at = rng.randrange(0, 20)
        return asked

    def run(self) -> list[str]:
        """Play it; return what must never be, and was."""
        loop = VirtualLoop(self.world)
        try:
            loop.set_exception_handler(lambda _loop, context: self.world.violated(f"an exception: {context}"))
            loop.run_until_complete(self._run())
        finally:
            loop.close()
        return self.world.violations

    async def _run(self) -> None:
        world, metrics = self.world, RouterMetrics("m")
        config = config_of(tuple(each.endpoint for each in self.workers), self._path, self._itl_target_ms)
        pool = self._pool = WorkerPool(config, "router", metrics, self._network, world.clock)
        tenants = Tenants((), "", None, world.clock)
        admission = self._admission = Admission(config, metrics, tenants)
        dispatcher = self._dispatcher = Dispatcher(config, pool, PrefixIndex(), metrics, admission, self._rng)
        pool.start(dispatcher)
        try:
            while len(pool.workers) < len(self.workers):
                await asyncio.sleep(0.05)
            self._schedule(dispatcher)
            while not all(asked.is_over for asked in self.asked) or world.now < self._quiet_at:
                await asyncio.sleep(0.25)
                if world.now - BEGIN_S > MOST_S:
                    break
            await asyncio.sleep(LEASE_S + 2.0)
            self._judge()
        finally:
            await pool.close()

    def _schedule(self, dispatcher: Dispatcher) -> None:
        world, rng = self.world, self._rng
        self._lasts(FAULTS_WITHIN_S)
        for asked in self.asked:
            world.after(asked.begins_at, lambda asked=asked: world.tell_router(lambda: asked.begin(dispatcher)))  # type: ignore[misc]
            if asked.leaves_after is not None:
                world.after(asked.begins_at + asked.leaves_after, lambda asked=asked: world.tell_router(asked.leave))  # type: ignore[misc]
        for name in self.faults:
            world.after(rng.uniform(0.0, FAULTS_WITHIN_S), lambda name=name: self._do(name))  # type: ignore[misc]

    # -- faults -------------------------------------------------------------------------------------------

    def _do(self, name: str) -> None:
        worker, rng = self._rng.choice(self.workers), self._rng
        self.world.note("fault", name, worker.worker_id)
        if name in FAULTS:
            direction = rng.choice(self._network.faults[worker.endpoint])
            direction.kind, direction.share = name, rng.choice((0.1, 0.5, 1.0))
            self._lasts(seconds := rng.choice((0.05, 0.3, 2.0)))
            direction.until = self.world.now + seconds
        elif name in WRONGS:
            worker.wrong, worker.num_wrong = name, rng.choice((1, 1, 3, 10))
        else:
            _DO[name](self, worker)

    def _lasts(self, seconds: float) -> None:
        self._quiet_at = max(self._quiet_at, self.world.now + seconds)

    def _kill(self, worker: SimulatedWorker) -> None:
        if worker.is_listening:
            worker.die()
            back_s = self._rng.choice((0.3, 2.0, 8.0))
            self._lasts(back_s)
            self.world.after(back_s, worker.begin)

    def _stop(self, worker: SimulatedWorker) -> None:
        seconds = self._rng.choice((0.5, 2.0, 3.5, 7.0, 14.0))
        self._lasts(seconds)
        worker.stop(seconds)

    def _stop_router(self, _worker: SimulatedWorker) -> None:
        seconds = self._rng.choice((0.5, 2.0, 5.0, 12.0, 20.0))
        self._lasts(seconds)
        self.world.stop_router(seconds)

    def _cut(self, worker: SimulatedWorker) -> None:
        self._network.clients[worker.endpoint].lose_connection()

    def _drain(self, worker: SimulatedWorker) -> None:
        if worker.is_listening and not worker.is_stopped:
            worker.drain()
            self._lasts(9.0)
            self.world.after(0.5, lambda: self._kill(worker))

    # -- the end ------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        for asked in self.asked:
            self._judge_one(asked)
        dispatcher, admission = self._dispatcher, self._admission
        left: dict[str, object] = {
            "open requests": len(dispatcher.flows),
            "parked requests": len(dispatcher._parked),
            "running requests": dispatcher.num_running,
            "admitted requests": admission.num_requests,
            "admitted tokens": admission.waiting_tokens,
            "admitted blocks": admission.blocks,
        }
        for worker in self._pool.workers.values():
            left[f"choices at {worker.worker_id}"] = worker.num_choices
            left[f"tokens at {worker.worker_id}"] = worker.queued.total
            left[f"requests at {worker.worker_id}"] = len(worker.request_ids)
        for each in self.workers:
            left[f"runs of {each.worker_id}"] = len(each.runs)
        for what, count in left.items():
            if count:
                self.world.violated(f"{what}: {count} left")
        if len(self._pool.workers) != len(self.workers):
            self.world.violated(f"only {sorted(self._pool.workers)} are live in the end")

    def _judge_one(self, asked: Asked) -> None:
        violated, name = self.world.violated, asked.name
        if not asked.is_over:
            violated(f"{name} never ended")
        if len(asked.ends) > (0 if asked.has_left or asked.refusal else 1):
            violated(f"{name} ended {len(asked.ends)} times, it had left: {asked.has_left}")
        if asked.is_complete:
            for choice in range(asked.params.n):
                if asked.tokens.get(choice) != asked.wanted[choice] or choice not in asked.finished:
                    violated(f"{name} ended with choice {choice} incomplete")
            (usage,) = asked.ends
            if usage.num_completion != sum(map(len, asked.tokens.values())):  # type: ignore[union-attr]
                violated(f"{name} has a usage of {usage}")
            if self._is_mild and asked.ended_at > max(self._quiet_at, BEGIN_S + asked.begins_at) + GOES_ON_S:
                violated(f"{name} ended {asked.ended_at - self._quiet_at:.1f} s after the fault")
            return
        error = asked.ends[0] if asked.ends else asked.refusal
        if error is None:
            return
        if isinstance(error, DeadlinePassed):
            is_right = asked.seconds is not None
        elif isinstance(error, QueueFull | Unavailable):
            is_right = not self._is_mild
        else:
            is_right = "impossible" in self.faults
        if not is_right:
            violated(f"{name} ended with {error!r}")


_DO: dict[str, Callable[[Play, SimulatedWorker], None]] = {
    "kill": Play._kill,
    "stop": Play._stop,
    "stop router": Play._stop_router,
    "cut": Play._cut,
    "drain": Play._drain,
    "nothing": lambda _play, _worker: None,
}
FAULT_NAMES = (*_DO, *FAULTS, *WRONGS)


def play_all(seeds: range) -> None:
    """Play seeds; the first that fails is played again, and its history printed."""
    for seed in seeds:
        if not Play(seed).run():
            continue
        again = Play(seed, remembers=True)
        violations = again.run()
        history = "\n".join(itertools.chain(again.world.history[-400:], violations))
        raise AssertionError(f"seed {seed}, faults {again.faults}:\n{history}")
