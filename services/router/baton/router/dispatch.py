"""Dispatcher: brings requests, workers and index together: who goes where, who waits, who hears what.

Owns the live flows. Everything runs on the event loop, in calls that never wait.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from baton.block_hash import cache_root, hash_blocks
from baton.errors import ContextTooLong, Unavailable
from baton.logs import get_logger
from baton.messages import Blocks, ModelFacts, Outputs
from baton.metrics import RouterMetrics
from baton.router.admission import Admission, Demand
from baton.router.config import RouterConfig
from baton.router.costs import like_peers
from baton.router.flow import ChoiceText, Generation, GenerationFlow, Sink
from baton.router.index import Applied, PrefixIndex
from baton.router.policy import Candidate, Decision, Shape, choose
from baton.router.pool import Worker, WorkerPool
from baton.router.timeline import Timeline

_log = get_logger("dispatch")
_NUM_TRACES = 1024
_MAX_TRACES_EACH = 16
"""A client may send the same id for ever."""


@dataclass(slots=True)
class Trace:
    """How a request was routed, for /debug/route."""

    request_id: str
    at: float
    epoch: int
    decision: Decision


class Dispatcher:
    """Routes requests to workers, and workers' tokens to requests."""

    def __init__(
        self,
        config: RouterConfig,
        pool: WorkerPool,
        index: PrefixIndex,
        metrics: RouterMetrics,
        admission: Admission,
        rng: random.Random | None = None,
    ) -> None:
        self.config = config
        self.pool = pool
        self.index = index
        self.metrics = metrics
        self.flows: dict[str, GenerationFlow] = {}
        self.wants_snapshot: set[str] = set()
        """Workers whose log has a gap; whoever reads the registry clears it."""
        self.last_facts: ModelFacts | None = None
        """Of the last worker that came: what to check requests against while all are away."""
        self.timeline = Timeline()
        self._admission = admission
        self._demands: dict[GenerationFlow, Demand] = {}
        self._parked: dict[GenerationFlow, asyncio.TimerHandle] = {}
        self._traces: OrderedDict[str, list[Trace]] = OrderedDict()
        self._turn = 0
        self._rng = rng or random.Random()
        self._loop = asyncio.get_running_loop()
        self._num_with_token = 0

    # -- requests -----------------------------------------------------------------------------------------

    def start(self, generation: Generation, texts: Sequence[ChoiceText], sink: Sink) -> GenerationFlow:
        """Take a request in, and send it on its way; `texts` has one entry a choice.

        Raises:
            QueueFull: refused before it queues, with the seconds after which to try again.
            ContextTooLong: no decode worker could ever hold it.
            Unavailable: no worker has come yet.
        """
        if self.last_facts is None:
            raise Unavailable("No decode worker is ready. Try again in a few seconds.")
        block_size = self.last_facts.block_size
        flow = GenerationFlow(self, generation, texts, sink)
        demand = self._demand(flow, block_size)
        capacities = [w.load.kv_total_blocks for w in self.pool.workers.values() if w.can_decode]
        least = math.ceil((flow.num_prompt_tokens + 1) / block_size)
        if capacities and all(0 < capacity < least for capacity in capacities):
            raise ContextTooLong(
                f"prompt of {flow.num_prompt_tokens} tokens is not valid: the KV cache of the largest decode worker "
                f"holds {max(capacities) * block_size} tokens. Shorten the prompt, or raise --kv-cache-memory-bytes.",
                field="prompt",
                code="context_length_exceeded",
            )
        self._admission.admit(demand, self._prefill_rate(), sum(capacities))
        self._demands[flow] = demand
        self.flows[flow.request_id] = flow
        self.timeline.add(flow.record)
        flow.start()
        return flow

    def route(self, flow: GenerationFlow, avoid: Worker | None) -> Decision | None:
        """Decide where a request goes now; None with no worker to take it."""
        started = time.perf_counter()
        workers = [w for w in self.pool.workers.values() if w.can_decode or w.can_prefill]
        if avoid is not None and any(w.can_decode and w is not avoid for w in workers):
            workers = [w for w in workers if w is not avoid]
        if not workers:
            return None
        block_size = workers[0].info.model.block_size
        # what was emitted is only at a decode worker's to compute: the first token is known already
        path = "local" if flow.has_token else self.config.path
        num_tokens = flow.num_prompt_tokens + flow.longest_emitted
        decision = choose(
            self.config.policy,
            Shape(num_tokens, block_size, math.ceil((num_tokens + 1) / block_size)),
            like_peers([self._candidate(w, flow) for w in workers], self.config.default_prefill_rate),
            self.pool.links,
            path=path,
            interference_weight=self.config.interference_weight,
            turn=self._turn,
            rng=self._rng,
        )
        if decision is None:
            return None
        self._turn += 1
        self._note(flow, decision)
        self.metrics.phase_seconds.observe("route", time.perf_counter() - started)
        return decision

    def park(self, flow: GenerationFlow) -> None:
        """Keep a request until a worker comes, for a bounded time."""
        if flow not in self._parked:
            self._parked[flow] = self._loop.call_later(self.config.worker_wait_s, self._give_up, flow)

    def on_first_token(self, flow: GenerationFlow) -> None:
        """Its prompt waits no more."""
        self._num_with_token += 1
        self._admission.on_first_token(self._demands[flow])

    def on_flow_over(self, flow: GenerationFlow) -> None:
        """Forget a request; late messages for it are dropped."""
        self.flows.pop(flow.request_id, None)
        if flow.has_token:
            self._num_with_token -= 1
        timer = self._parked.pop(flow, None)
        if timer is not None:
            timer.cancel()
        demand = self._demands.pop(flow, None)
        if demand is not None:
            self._admission.release(demand)

    def cache_parts(self) -> set[tuple[str, ...]]:
        """Give the parts by which live workers' hash chains start: one set of parts, but for rolling upgrades."""
        return {worker.info.model.cache_parts for worker in self.pool.workers.values()}

    def count(self) -> None:
        """Bring the gauges up to date; called when somebody reads them."""
        self.metrics.num_requests_running.set(self._num_with_token)
        self.metrics.num_requests_waiting.set(len(self.flows) - self._num_with_token)
        self.metrics.index_blocks.set(len(self.index))

    def traces(self, public_id: str) -> list[Trace]:
        """Give how a request was routed, each time that it was."""
        return self._traces.get(public_id, [])

    def last_requests(self, count: int) -> list[dict[str, Any]]:
        """Give when the newest requests did what, as JSON."""
        described = []
        for record in self.timeline.newest(count):
            flow = self.flows.get(record.request_id)
            tokens = record.num_completion_tokens if flow is None else flow.num_completion_tokens
            described.append(record.describe(tokens))
        return described

    # -- what the pool tells ------------------------------------------------------------------------------

    def on_worker_joined(self, worker: Worker) -> None:
        self.last_facts = worker.info.model
        self.index.expect(worker.info.worker_id, worker.info.incarnation)
        self.wants_snapshot.add(worker.info.worker_id)
        self._unpark()

    def on_worker_lost(self, worker: Worker, reason: str) -> None:
        self.index.forget(worker.info.worker_id)
        self.wants_snapshot.discard(worker.info.worker_id)
        for flow in list(worker.flows):
            flow.take_loss(worker)
        worker.flows.clear()

    def on_outputs(self, worker: Worker, outputs: Outputs) -> None:
        now = time.monotonic()
        flows = self.flows
        worker_id = worker.info.worker_id
        for transfer in outputs.transfers:
            flow = flows.get(transfer.request_id)
            if flow is not None:
                flow.record.transferred(worker_id, transfer, now)
        for computed in outputs.computed:
            flow = flows.get(computed.request_id)
            if flow is not None:
                flow.record.computed(worker_id, computed, now)
        for token in outputs.tokens:
            flow = flows.get(token.request_id)
            if flow is None:
                self.metrics.stale_messages.inc()
                continue
            try:
                flow.take(token, worker, now)
            except Exception:  # one request's failure is not the others'
                self._fail_unexpectedly(flow)
        for ended in outputs.ended:
            flow = flows.get(ended.request_id)
            if flow is not None:
                flow.take_ended(ended, worker)
        if self._parked:
            self._unpark()

    def on_blocks(self, entry: Blocks) -> None:
        """Take an entry of a block log, from wherever it came."""
        if self.index.apply(entry) is Applied.GAP:
            self.wants_snapshot.add(entry.worker_id)

    # -- inside -------------------------------------------------------------------------------------------

    def _candidate(self, worker: Worker, flow: GenerationFlow) -> Candidate:
        load = worker.load
        running = max(load.num_running + load.num_waiting, len(worker.flows))
        return Candidate(
            worker_id=worker.info.worker_id,
            can_prefill=worker.can_prefill,
            can_decode=worker.can_decode,
            layout=worker.info.layout,
            queue_tokens=load.waiting_tokens + worker.sent_tokens,
            prefill_rate=load.prefill_rate,
            cached_blocks=self.index.num_cached(worker.info.worker_id, self._hashes(worker, flow)),
            num_running=running,
            step_ms=worker.steps.predict(running + flow.generation.params.n),
            free_blocks=load.kv_free_blocks if load.kv_total_blocks else 1 << 30,
            total_blocks=load.kv_total_blocks or 1 << 30,
        )

    def _hashes(self, worker: Worker, flow: GenerationFlow) -> list[bytes]:
        """Give the prompt's block hashes as this worker computes them; the same for all of one build."""
        facts, generation = worker.info.model, flow.generation
        hashes = generation.hashes.get(facts.cache_parts)
        if hashes is None:
            hashes = hash_prompt(generation, facts.cache_parts, self.config.cache_key, facts.block_size)
            generation.hashes[facts.cache_parts] = hashes
        return hashes

    def _note(self, flow: GenerationFlow, decision: Decision) -> None:
        chosen = decision.chosen
        self.metrics.route_decisions.inc(chosen.path)
        computing = self.pool.workers[chosen.prefill or chosen.decode]
        cached = self.index.num_cached(computing.info.worker_id, self._hashes(computing, flow))
        computing.sent_tokens += max(flow.num_prompt_tokens - cached * computing.info.model.block_size, 1)
        public_id = flow.generation.public_id
        traces = self._traces.setdefault(public_id, [])
        del traces[: -_MAX_TRACES_EACH + 1]
        traces.append(Trace(flow.request_id, time.time(), flow.epoch, decision))
        self._traces.move_to_end(public_id)
        if len(self._traces) > _NUM_TRACES:
            self._traces.popitem(last=False)

    def _demand(self, flow: GenerationFlow, block_size: int) -> Demand:
        params = flow.generation.params
        answer = 256 if params.max_tokens is None else min(params.max_tokens, 256)
        blocks = math.ceil(flow.num_prompt_tokens / block_size) + params.n * math.ceil(answer / block_size)
        return Demand(flow.num_prompt_tokens, blocks)

    def _prefill_rate(self) -> float:
        """Prompt tokens a second of all workers that compute prompts."""
        default = self.config.default_prefill_rate
        rates = {w.info.worker_id: w.load.prefill_rate or default for w in self.pool.workers.values()}
        prefills = [rates[w.info.worker_id] for w in self.pool.workers.values() if w.can_prefill]
        return sum(prefills) or sum(rates.values())

    def _unpark(self) -> None:
        if not self.pool.has_decode:
            return
        parked, self._parked = self._parked, {}
        for flow, timer in parked.items():
            timer.cancel()
            flow.place()

    def _give_up(self, flow: GenerationFlow) -> None:
        self._parked.pop(flow, None)
        flow.fail(Unavailable(f"No decode worker came within {self.config.worker_wait_s:g} s. Try again later."))

    def _fail_unexpectedly(self, flow: GenerationFlow) -> None:
        _log.exception("request_failed", request_id=flow.request_id)
        flow.fail(Unavailable("The request failed inside the router. Its reason is in the log."))


def hash_prompt(generation: Generation, parts: tuple[str, ...], key: str, block_size: int) -> list[bytes]:
    """Give the hashes of a prompt's full blocks, as a worker of these parts computes them. For any thread."""
    hashes: list[bytes] = []
    if generation.params.prompt_logprobs is None:  # scoring a prompt computes all of it
        root = cache_root(key.encode(), *parts, generation.salt)
        hash_blocks(root, hashes, generation.prompt_ids, block_size)
    return hashes
