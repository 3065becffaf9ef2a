"""Serving without machines: the router's own choice and the workers' own pacing, over step times and links that are given.

Each worker computes as one with these step times does: decodes first, then chunks of prompts as far as its pacer lets them;
KV leaves with each chunk and takes its turn on the link. Nothing waits: the clock jumps from event to event.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from baton.engine.chunk_room import ChunkRoom
from baton.messages import Leg, Load, ModelFacts, WorkerInfo
from baton.metrics import RouterMetrics
from baton.prompt import Prompt
from baton.protocol import SamplingParams
from baton.router.admission import Admission, Demand, Refused
from baton.router.config import RouterConfig
from baton.router.generation import Generation
from baton.router.index import PrefixIndex
from baton.router.links import NEW_LINK
from baton.router.placement import Placement
from baton.router.pool import Worker
from baton.router.tenants import Tenants
from baton.router.turnover import AnswerLength, Batch
from baton.step_learning import StepLearner
from baton.worker.pacer import Pacer

KV_NBYTES = 131_072
"""Of a token of Llama-8B in 16 bits."""
STEP_TOKENS = 8192
TTFT_S = 0.5


def h100(rows: int, context: int, tokens: int, pairs: float) -> float:
    """Llama-8B in 16 bits on an H100: it reads weights in 5 ms, in which it multiplies by 208 tokens.

    Beside chunks decodes read their KV less well: by such steps two workers that do all serve as many as was measured.
    """
    seconds = max(5e-3, 24e-6 * (rows + tokens)) + 0.7e-3 + 14e-6 * rows
    return seconds + (1e-3 + 55e-9 * context + 0.28e-9 * pairs if tokens else 43e-9 * context)


@dataclass(eq=False)
class Request:
    """One that came, and when its tokens did."""

    request_id: str
    at: float
    num_prompt: int
    num_answer: int
    way: str = ""
    done: int = 0
    computed: int = 0
    times: list[float] = field(default_factory=list)
    is_refused: bool = False
    admitted: Demand | None = None

    def is_good(self, itl_s: float) -> bool:
        """Whether its first token came in time, and 99 of 100 gaps were short enough."""
        if self.is_refused or not self.times or self.times[0] - self.at > TTFT_S:
            return False
        gaps = sorted(b - a for a, b in itertools.pairwise(self.times))
        return not gaps or gaps[min(len(gaps) - 1, int(0.99 * len(gaps)))] <= itl_s


class SimulatedWorker:
    """One worker: its queue, its batch, its link."""

    def __init__(self, model: ServingModel, worker_id: str, legs: tuple[Leg, ...], target_ms: float | None) -> None:
        self.model = model
        self.learner = StepLearner()
        self.pacer = Pacer(self.learner, target_ms)
        for rows, tokens in itertools.product((0, 8), (256, 1024, 64, 512, 128, 0, 0)):  # as a worker rehearses
            if rows or tokens:
                step = rows, rows * 600, tokens, tokens * tokens
                self.learner.learn(model.truth(*step), *step)
        info = WorkerInfo(
            worker_id=worker_id,
            incarnation=worker_id,
            legs=legs,
            control="",
            kv="tcp://kv" if "prefill" in legs else "",
            layout="l",
            model=ModelFacts(name="m", max_model_len=8192, vocab_size=400, block_size=16),
            num_places=256,
        )
        client: Any = None
        self.seen = Worker(client, info, Load(kv_total_blocks=24_000, kv_free_blocks=24_000), model.clock)
        self.queue: deque[Request] = deque()
        self.ready: list[Request] = []
        self.rows: list[Request] = []
        self.is_stepping = False
        self.num_steps = 0
        self.reported_at = -1.0
        self.link_free_at = 0.0
        self.steps: list[float] = []

    def step(self) -> None:
        """Begin the next step, if there is something to do."""
        if self.is_stepping or not (self.queue or self.rows or self.ready):
            return
        if self.rows:
            mean = sum(r.num_prompt + r.done for r in self.rows) // len(self.rows)
            seats = self.pacer.pace.most_rows(mean) - len(self.rows) - sum(r.computed > 0 for r in self.queue)
        else:
            seats = 1 << 20
        self.rows, self.ready = self.rows + self.ready[: max(seats, 0)], self.ready[max(seats, 0) :]
        rows, context = len(self.rows), sum(r.num_prompt + r.done for r in self.rows)
        room = self.pacer.room(rows, context, STEP_TOKENS - rows) if self.queue else ChunkRoom(0)
        chunks: list[tuple[Request, int]] = []
        tokens = pairs = 0
        for request in self.queue:
            num = room.most(request.computed, request.num_prompt - request.computed)
            if num <= 0:
                break
            room.take(request.computed, num)
            request.computed += num
            tokens, pairs = tokens + num, pairs + num * request.computed
            chunks.append((request, num))
        if not (rows or tokens):
            return
        seconds = self.model.truth(rows, context, tokens, pairs) * self.model.rng.gauss(1, 0.02)
        self.learner.learn(seconds, rows, context, tokens, pairs)
        self.steps.append(seconds)
        self.is_stepping = True
        self.model.after(seconds, self._end, chunks, list(self.rows))

    def _end(self, chunks: list[tuple[Request, int]], rows: list[Request]) -> None:
        now = self.model.now
        self.is_stepping = False
        self.num_steps += 1
        for request in rows:
            self.model.token(request)
            if request.done >= request.num_answer:
                self.rows.remove(request)
        for request, num in chunks:
            if request.way == "remote":
                self.link_free_at = max(self.link_free_at, now) + num * KV_NBYTES / self.model.bandwidth
            if request.computed == request.num_prompt:
                self.queue.remove(request)
                self.model.prefilled(self, request)
        if now - self.reported_at > 0.1 or not (self.queue or self.rows):
            self.report()
        self.step()

    def report(self) -> None:
        """Tell the router the load, and at times the pace."""
        self.reported_at = self.model.now
        context = sum(r.num_prompt + r.done for r in self.rows)
        used = sum((r.num_prompt + r.num_answer) // 16 for r in (*self.rows, *self.queue))
        load = Load(
            num_running=len(self.rows),
            num_waiting=len(self.queue) + len(self.ready),
            waiting_tokens=sum(r.num_prompt - r.computed for r in self.queue),
            kv_free_blocks=max(24_000 - used, 0),
            kv_total_blocks=24_000,
            num_steps=self.num_steps,
            context_tokens=context,
        )
        self.seen.report(load)
        self.seen.step_pace = self.pacer.pace if self.learner.is_known else None


class ServingModel:
    """A router and its workers."""

    def __init__(
        self,
        *,
        num_prefill: int = 1,
        num_decode: int = 1,
        also_prefill: bool = False,
        path: str = "auto",
        target_ms: float | None = None,
        ttft_target_ms: float = 1000 * TTFT_S,
        bandwidth: float = 150e9,
        seed: int = 0,
        truth: Callable[[int, int, int, float], float] = h100,
        holds: bool = True,
        admits: bool = True,
    ) -> None:
        self.now = 0.0
        self.rng = random.Random(seed)
        self.truth, self.bandwidth, self.holds, self.admits = truth, bandwidth, holds, admits
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self.config = RouterConfig(model="m", path=path, ttft_target_ms=ttft_target_ms, itl_target_ms=target_ms or 0.0)  # type: ignore[arg-type]
        metrics = RouterMetrics("m")
        self.workers: dict[str, SimulatedWorker] = {}
        self.links: dict[tuple[str, str], Any] = {}
        pool: Any = self
        self.placement = Placement(self.config, pool, PrefixIndex(), metrics, random.Random(seed), self._batch)
        self.admission = Admission(self.config, metrics, Tenants((), "", None))
        decode: tuple[Leg, ...] = ("prefill", "decode") if also_prefill else ("decode",)
        prefill: tuple[Leg, ...] = ("prefill",)
        self._simulated = {
            f"{legs[-1]}-{i}": SimulatedWorker(self, f"{legs[-1]}-{i}", legs, target_ms)
            for legs, num in ((prefill, num_prefill), (decode, num_decode))
            for i in range(num)
        }
        self.workers = {name: each.seen for name, each in self._simulated.items()}  # type: ignore[misc]
        self.open: dict[str, Request] = {}
        self.requests: list[Request] = []
        self._of: dict[str, tuple[Worker | None, Worker, Generation]] = {}

    def clock(self) -> float:
        return self.now + 1.0

    def after(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), call, arguments))

    def run(self, rate: float | Callable[[float], float], seconds: float) -> list[Request]:
        """Send Poisson arrivals for so long, and serve them all."""
        at = 0.0
        while at < seconds:
            at += self.rng.expovariate(rate(at) if callable(rate) else rate)
            request = Request(f"{at:.9f}", at, self.rng.randint(512, 3584), self.rng.randint(64, 448))
            self.requests.append(request)
            self.after(at, self._arrive, request)
        while self._events:
            self.now, _, call, arguments = heapq.heappop(self._events)
            call(*arguments)
        return self.requests

    # -- the router's part ------------------------------------------------------------------------------------

    def _batch(self, worker: Worker, length: AnswerLength) -> Batch:
        batch = Batch()
        simulated = self._simulated[worker.worker_id]
        batch.left = sorted(length.predict_rest(r.num_answer, r.done) for r in simulated.rows)
        return batch

    def _arrive(self, request: Request) -> None:
        params = SamplingParams(max_tokens=request.num_answer, ignore_eos=True)
        generation = Generation(Prompt([1] * request.num_prompt), params, hashes={(): []})
        decision = self.placement.place(generation, 0, None)
        assert decision is not None
        chosen = decision.chosen
        demand = Demand(request.num_prompt, (request.num_prompt + request.num_answer) // 16)
        if self.admits:
            try:
                self.admission.admit(demand, chosen, 24_000)
            except Refused:
                request.is_refused = True
                return
            request.admitted = demand
        request.way = chosen.path
        prefill = self._simulated[chosen.prefill] if chosen.prefill else None
        decode = self._simulated[chosen.decode]
        first = prefill or decode
        self._of[request.request_id] = (prefill.seen if prefill else None, decode.seen, generation)
        first.seen.queued.add(generation.share, request.num_prompt)
        send_s = chosen.busy_ms / 1000 if prefill else None
        first.seen.lane.add(request.request_id, chosen.terms["prefill"] / 1000, send_s, self.now)
        for worker in {first.seen.worker_id: first.seen, decode.seen.worker_id: decode.seen}.values():
            worker.request_ids[request.request_id] = None
        decode.seen.num_choices += 1
        first.seen.num_prompts += prefill is not None
        first.queue.append(request)
        first.step()

    def prefilled(self, worker: SimulatedWorker, request: Request) -> None:
        prefill, _, generation = self._of[request.request_id]
        seen = worker.seen
        seen.queued.add(generation.share, -request.num_prompt)
        seen.num_prompts -= prefill is not None
        seen.lane.computed(request.request_id, self.now)
        if prefill is None:
            self.token(request)
            worker.rows.append(request)
            return
        arrives_at = worker.link_free_at + 0.002
        began_at = self.now
        if not self.holds:
            self.token(request)
        self.after(arrives_at - self.now, self._transferred, request, began_at)

    def _transferred(self, request: Request, began_at: float) -> None:
        prefill, decode, _ = self._of[request.request_id]
        assert prefill is not None
        before = prefill.lane.sent(request.request_id, self.now)
        pair = (prefill.worker_id, decode.worker_id)
        alone_s = self.now - max(before, request.at)
        link = self.links.get(pair, NEW_LINK)
        self.links[pair] = link.learn(request.num_prompt, self.now - began_at, self.now, alone_s)
        prefill.lane.drop(request.request_id, self.now)
        prefill.request_ids.pop(request.request_id, None)
        worker = self._simulated[decode.worker_id]
        if self.holds:  # the first token waits for the second, but no longer than to its target
            request.times.append(max(began_at, min(self.now, request.at + 0.95 * TTFT_S)))
            request.done += 1
        worker.ready.append(request)
        worker.step()

    def token(self, request: Request) -> None:
        request.times.append(self.now)
        request.done += 1
        if request.done == 2 and self.holds and request.way == "remote":
            first = max(request.times[0], min(self.now, request.at + 0.95 * TTFT_S))
            request.times[0] = first
        if request.admitted is not None:
            self.admission.on_first_token(request.admitted)
        if request.done >= request.num_answer:
            _, decode, _ = self._of.pop(request.request_id)
            decode.num_choices -= 1
            decode.request_ids.pop(request.request_id, None)
            self.placement.answer_length.learn(request.num_answer, request.done)
            if request.admitted is not None:
                self.admission.release(request.admitted, request.done)


def good_share(model: ServingModel, itl_ms: float) -> float:
    """Return the share of requests within both targets."""
    return sum(r.is_good(itl_ms / 1000) for r in model.requests) / len(model.requests)
