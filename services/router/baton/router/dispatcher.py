"""Dispatcher: the one that acts: sends requests to workers, workers' tokens to requests, and keeps every clock.

Stations of a request
    start      taken in or refused, by what is waiting
    place      its decode worker and, where it pays, its prefill worker are chosen; both get a Start at once
    park       no worker is there: it waits for one, for a bounded time
    take       tokens, failures and losses go to its Flow, which says what is to be done next
    replay     a worker died, drains or failed: close the attempt, and place what is left elsewhere
    move       a decode worker drains: place what is left elsewhere, with the KV that it has
    finish     every choice ended, or the client left, or the deadline passed, or no replay is left: one way out

Calls go one way: dispatcher, flow, attempt. Everything runs on the event loop, in calls that never wait.

A request that is no generation (scoring, pooling) has its place beside Flow: a class in a file of its own with Flow's
public members, which `start` takes in as it does a Flow.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from baton.errors import BatonError, ContextTooLong, QueueFull, Unavailable
from baton.logs import get_logger
from baton.messages import Blocks, Cancel, Done, Legs, ModelFacts, OpenLeg, Outputs, Pooled, Token
from baton.metrics import RouterMetrics
from baton.prompt import Prompt
from baton.protocol import SamplingParams, Share
from baton.router.admission import Admission, Demand
from baton.router.commands import Asleep, Commands
from baton.router.config import RouterConfig
from baton.router.flow import GO, NOTHING_NEW, STALE, ChoiceOver, DeadlinePassed, Flow, Next, Onward, Over, Replay
from baton.router.generation import Generation
from baton.router.held_token import HeldToken, Holding
from baton.router.index import PrefixIndex
from baton.router.journal import Journal, RequestRecord
from baton.router.moves import next_to_move
from baton.router.placement import Placement
from baton.router.policy import Decision
from baton.router.pool import Worker, WorkerPool
from baton.router.pooling_flow import PoolingFlow
from baton.router.roll_call import Named, by_key, is_lost, name_legs
from baton.router.sink import Usage
from baton.router.turnover import AnswerLength, Backlog, Batch, answer_prior
from baton.router.vllm_series import Seen, Times, VllmSeries
from baton.router.workers import WorkerGone

_log = get_logger("dispatch")
_SHORTEST = Prompt([0])
_BUSY_S = 2.0
"""For so long after a request was refused, others are looked at before their prompts are read."""
_MANY = 16
"""Choices whose texts are being read from which others are looked at too."""
PROGRESS = 16
"""Tokens to the client after which failures are counted anew: a long answer may meet many workers that end, one after another."""


class Running:
    """A request on its way: its flow, and what the dispatcher keeps beside it. The handle of whoever started it."""

    __slots__ = (
        *(
            "_dispatcher",
            "arrived_at",
            "called_at",
            "deadline",
            "decision",
            "demand",
            "first_token_at",
            "flow",
            "held",
            "is_over",
        ),
        *(
            "last_token_at",
            "num_counted",
            "num_queued",
            "num_replays",
            "queue",
            "record",
            "replays_left",
            "sent_at",
            "timer",
            "tokens_at_replay",
        ),
        "waited_s",
        "waits_for_first",
        "workers",
    )

    def __init__(self, dispatcher: Dispatcher, flow: Flow[Any], input_of: RequestRecord | None = None) -> None:
        self.flow, generation = flow, flow.generation
        self.arrived_at = dispatcher.pool.clock()
        known = generation.public_id, flow.usage, self.arrived_at, generation.tenant
        self.record = RequestRecord(*known, input_of=input_of)
        self.demand: Demand | None = None
        """What admission counts for it; None before it is taken in."""
        self.decision: Decision | None = None
        """Where it went last."""
        self.workers: list[Worker] = []
        """Those with an open leg of it, the decode worker first."""
        self.queue: Worker | None = None
        """Who has still to compute `num_queued` tokens of it."""
        self.num_queued = 0
        self.called_at = 0
        """The roll call before its Starts were sent."""
        self.deadline: asyncio.TimerHandle | None = None
        self.timer: asyncio.TimerHandle | None = None
        """Of a retry, or of the wait for a worker."""
        self.num_replays = 0
        self.replays_left = dispatcher.config.max_replays
        """Until it fails; all of them again once the client has got more tokens."""
        self.tokens_at_replay = 0
        self.num_counted = 0
        """Tokens to the client that are in the metrics."""
        self.sent_at = self.first_token_at = 0.0
        self.waited_s: float | None = None
        """How long its first worker had it in its queue."""
        self.last_token_at = [0.0] * flow.generation.params.n
        """By choice."""
        self.waits_for_first = False
        """Whether the next token may be a prefill worker's first, which may be held."""
        self.held: HeldToken | None = None
        self.is_over = False
        self._dispatcher = dispatcher

    def times(self) -> Times | None:
        """When it did what; None without a token."""
        if not self.first_token_at:
            return None
        queued_s = self.sent_at - self.arrived_at + (self.waited_s or 0.0)
        return Times(self.arrived_at, queued_s, self.first_token_at, max(self.last_token_at))

    def cancel(self) -> None:
        """End it because nobody waits for the answer."""
        self._dispatcher.finish(self, Over("cancelled", "abort"))

    def send_legs(self, decision: Decision, workers: Mapping[str, Worker], num_tokens: int) -> Worker | None:
        """Send a Start to each leg's worker, of which one has `num_tokens` to compute; return the one that did not take it."""
        self.decision, lost, self.called_at = decision, None, self._dispatcher.pool.num_calls
        prefill = decision.chosen.prefill
        now = self._dispatcher.pool.clock()
        starts = self.flow.begin(workers[decision.chosen.decode].info, workers[prefill].info if prefill else None, now)
        for worker_id, start in starts:
            worker = workers[worker_id]
            try:
                worker.client.send(start)
            except WorkerGone:
                lost = worker
                break
            worker.request_ids[start.request_id] = None
            self.workers.append(worker)
            worker.num_choices += self.flow.generation.params.n * (start.leg != "prefill")
        self.record.placed(starts[0][1].epoch, decision, 0.0 if lost else now)
        self.waits_for_first = prefill is not None
        if lost is None:
            self.queue = workers[prefill or decision.chosen.decode]
            self.num_queued = num_tokens
            self.queue.queued.add(self.flow.generation.share, num_tokens)
            self.queue.num_prompts += prefill is not None
            chosen = decision.chosen
            send_s = None if prefill is None else chosen.busy_ms / 1000
            self.queue.lane.add(self.flow.request_id, chosen.terms["prefill"] / 1000, send_s, now)
        return lost

    def leave_queue(self, worker: Worker) -> None:
        """Its prompt waits no more for this worker."""
        if worker is self.queue:
            assert self.decision is not None
            worker.num_prompts -= self.decision.chosen.prefill is not None
            worker.queued.add(self.flow.generation.share, -self.num_queued)
            worker.lane.computed(self.flow.request_id, self._dispatcher.pool.clock())
            self.queue = None

    def leave_lane(self, worker: Worker) -> None:
        """Nothing of it is to be computed or sent by this worker any more."""
        self.leave_queue(worker)
        worker.lane.drop(self.flow.request_id, self._dispatcher.pool.clock())

    def leave_workers(self, *, cancel_decode: bool = True) -> None:
        """Close the attempt on both workers: what they hold for it is free."""
        attempt, workers = self.flow.attempt, self.workers
        if attempt is None:
            return
        self.workers = []
        for worker in workers:  # of which one is the queue, if it waits in any
            self.leave_lane(worker)
            is_decode = worker.worker_id == attempt.decode
            if is_decode:
                worker.num_choices -= self.flow.generation.params.n
            worker.request_ids.pop(self.flow.request_id, None)
            # a prefill worker whose KV has arrived hears so from the decode worker
            if cancel_decode if is_decode else not attempt.kv_arrived:
                self.cancel_leg(worker, attempt.epoch)
        attempt.close()

    def cancel_leg(self, worker: Worker, epoch: int, choice: int | None = None) -> None:
        """Tell a worker to end a choice, or all; one that does not take the message is found dead by its silence."""
        if not worker.is_live:
            return
        try:
            worker.client.send(Cancel(self.flow.request_id, epoch, choice))
        except WorkerGone:
            _log.info("cancel_not_taken", worker_id=worker.worker_id, request_id=self.flow.request_id)


class Dispatcher:
    """Drives requests through their legs: whatever a worker, a client or a clock does to a request meets here."""

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
        self.vllm = VllmSeries(metrics)
        self.journal = Journal()
        self.commands = Commands(pool)
        self.flows: dict[str, Running] = {}
        """Open requests by request id."""
        self.last_facts: ModelFacts | None = None
        """Of the last worker that came: what to check requests against while all are away."""
        self._admission = admission
        self._holding = Holding(config)
        self._placement = Placement(config, pool, index, metrics, rng or random.Random(), self._batch)
        self._parked: dict[str, Running] = {}
        self.num_running = 0
        """Requests whose client has a token."""
        self._end: BatonError | None = None
        """Why nothing is taken in any more."""
        self._refused_at = -math.inf
        self.reading = Backlog()
        """Choices of requests whose texts are being read."""
        self._loop = asyncio.get_running_loop()

    # -- requests -----------------------------------------------------------------------------------------

    def start(self, flow: Flow[Any], *, input_of: RequestRecord | None = None) -> Running:
        """Take a request in, and send it on its way.

        input_of: the request that has it as one of its inputs, and is in the journal in its place.

        Raises:
            QueueFull: refused before it queues, with the seconds after which to try again.
            ContextTooLong: no decode worker could ever hold it.
            InvalidRequest: its pin names a worker that is not there.
            Unavailable: no worker has come yet, or all sleep.
        """
        running, generation = Running(self, flow, input_of), flow.generation
        if self._end is not None:
            raise self._end
        if self.last_facts is None:
            raise Unavailable("No decode worker is ready. Try again in a few seconds.")
        if self.pool.is_asleep:
            raise Asleep()
        if generation.pin is not None:
            generation.pin.check(self.pool.workers)
        block_size = self.last_facts.block_size
        capacities = [w.load.kv_total_blocks for w in self.pool.workers.values() if w.can_decode]
        _check_fits(len(generation.prompt), capacities, block_size)
        demand = _demand(generation, block_size)
        decision = self._placement.place(generation, 0, None)
        try:
            self._admission.admit(demand, None if decision is None else decision.chosen, sum(capacities))
        except QueueFull:
            self._refused_at = running.arrived_at
            raise
        running.demand = demand
        self.flows[flow.request_id] = running
        if input_of is None:
            self.journal.add(running.record)
        seconds_left = generation.seconds_left(self.pool.clock())
        if seconds_left is not None:
            running.deadline = self._loop.call_later(seconds_left, lambda: self._fail(running, DeadlinePassed()))
        self._place(running, decision=decision)
        return running

    def check_busy(self, params: SamplingParams, tenant: bytes, share: Share, text_s: float = 0.0) -> None:
        """Refuse what would be refused whatever its prompt, before that is rendered: looked at while others are refused.

        Those whose texts are being read (`reading`) count as if they were there: else they pass together, and are refused
        behind all that is read before them. `text_s`: what the text would wait for those before it.

        Raises:
            QueueFull: as `start` would.
        """
        try:
            self._admission.check_reading(text_s)
            self._check_ahead(params, tenant, share)
        except QueueFull:
            self._refused_at = self.pool.clock()
            raise

    def _check_ahead(self, params: SamplingParams, tenant: bytes, share: Share) -> None:
        is_refusing = self.pool.clock() - self._refused_at <= _BUSY_S
        if self.last_facts is None or not (is_refusing or self.reading.total > _MANY):
            return
        num_decode = sum(worker.can_decode for worker in self.pool.workers.values())
        num_ahead = math.ceil(self.reading.before(share, params.n) / max(num_decode, 1))
        least = Generation(_SHORTEST, params, tenant=tenant, share=share, num_ahead=num_ahead)
        decision = self._placement.place(least, 0, None)
        total_blocks = sum(w.load.kv_total_blocks for w in self.pool.workers.values() if w.can_decode)
        demand = _demand(least, self.last_facts.block_size)
        self._admission.check(demand, None if decision is None else decision.chosen, total_blocks)

    def end_open(self, error: BatonError, public_ids: Collection[str] | None = None) -> int:
        """End the requests that clients know by these ids, with None all that are open, with an error; return how many."""
        ended = [r for r in self.flows.values() if public_ids is None or r.flow.generation.public_id in public_ids]
        for running in ended:
            self._fail(running, error)
        return len(ended)

    def end_all(self, error: BatonError) -> None:
        """Take nothing more in, and end all that is open, with this error."""
        self._end = error
        self.end_open(error)

    def finish(self, running: Running, over: Over) -> None:
        """End a request, whatever became of it: the one way out. Late messages for it are dropped."""
        if running.is_over:
            return
        running.is_over = True
        held, running.held = running.held, None
        for timer in (running.deadline, running.timer, None if held is None else held.timer):
            if timer is not None:
                timer.cancel()
        flow, metrics, now = running.flow, self.metrics, self.pool.clock()
        if flow.usage.num_completion:
            params = flow.generation.params
            self._placement.answer_length.learn(params.max_tokens, flow.usage.num_completion / params.n)
        running.leave_workers(cancel_decode=over.runs_on)
        self.flows.pop(flow.request_id, None)
        self._parked.pop(flow.request_id, None)
        metrics.request_success.inc(over.finish_reason)
        metrics.e2e_request_latency_seconds.observe(now - running.arrived_at)
        metrics.prompt_tokens.value += flow.usage.num_prompt
        self.vllm.finished(flow.generation.params, flow.usage, flow.num_emitted, running.times())
        if running.first_token_at:
            metrics.phase_seconds.observe("generate", now - running.first_token_at)
            self.num_running -= 1
        if running.demand is not None:
            self._admission.release(running.demand, flow.usage.num_completion)
        running.record.end(over.state, over.error, now)
        if over.error is not None:
            over.error.is_recorded = True
        flow.end(over)

    def _fail(self, running: Running, error: BatonError) -> None:
        """End a request with an error that the client sees."""
        self.finish(running, Over("failed", "error", error=error))

    def _place(self, running: Running, avoid: str | None = None, decision: Decision | None = None) -> None:
        """Choose workers, unless they are chosen, and send the legs; park the request when no worker is there."""
        running.timer = None
        flow = running.flow
        while not running.is_over:
            num_emitted = 0 if flow.attempt is None else flow.num_emitted
            decision = decision or self._placement.place(flow.generation, num_emitted, avoid)
            if decision is None and self.pool.is_asleep:
                self._fail(running, Asleep())
                return
            if decision is None:
                wait_s = self.config.worker_wait_s
                error = Unavailable(f"No decode worker came within {wait_s:g} s. Try again later.")
                running.timer = self._loop.call_later(wait_s, self._fail, running, error)
                self._parked[flow.request_id] = running
                return
            self._placement.take(decision)
            chosen, workers = decision.chosen, self.pool.workers
            num_tokens = self._placement.num_uncached(workers[chosen.prefill or chosen.decode], flow.generation)
            lost = running.send_legs(decision, workers, num_tokens + num_emitted)
            if lost is None:
                if running.sent_at == 0.0:
                    running.sent_at = self.pool.clock()
                    self.metrics.request_queue_time_seconds.observe(running.sent_at - running.arrived_at)
                    self.metrics.phase_seconds.observe("queue", running.sent_at - running.arrived_at)
                return
            running.leave_workers()
            self.pool.lose(lost, "takes no messages")
            decision = None

    def _unpark(self) -> None:
        if not any(worker.can_decode for worker in self.pool.workers.values()):
            return
        parked, self._parked = self._parked, {}
        for running in parked.values():
            if running.timer is not None:
                running.timer.cancel()
            self._place(running)

    # -- from the workers ---------------------------------------------------------------------------------

    def on_worker_joined(self, worker: Worker) -> None:
        self.last_facts = worker.info.model
        self.index.expect(worker.worker_id, worker.info.incarnation)
        self._unpark()

    def on_worker_lost(self, worker: Worker) -> None:
        self.index.forget(worker.worker_id)
        self.commands.lose(worker)
        for request_id in list(worker.request_ids):
            running = self._with_leg(request_id, worker)
            if running is not None:
                self._act_on_leg(running, worker, running.flow.leg_lost(worker.worker_id))

    def on_done(self, worker: Worker, done: Done) -> None:
        self.commands.take(worker, done)

    def on_blocks(self, entry: Blocks) -> None:
        self.index.apply(entry)

    def open_legs(self, worker: Worker) -> list[OpenLeg]:
        """Name what a worker should have of ours."""
        attempts = ((request_id, self.flows[request_id].flow.attempt) for request_id in worker.request_ids)
        return name_legs((request_id, attempt) for request_id, attempt in attempts if attempt is not None)

    def on_legs(self, worker: Worker, answer: Legs) -> None:
        """Run elsewhere what a worker has lost of what it should have."""
        named = by_key(answer.legs)
        for request_id in list(worker.request_ids):
            running = self.flows.get(request_id)
            if (
                running is None
                or running.called_at >= answer.number
                or not _has_lost(running, request_id, worker, named)
            ):
                continue
            if self._with_leg(request_id, worker) is not None:
                self._act_on_leg(running, worker, running.flow.leg_lost(worker.worker_id, "leg_lost"))

    def num_awaited(self, worker: Worker) -> int:
        """How many requests wait for this worker's next token."""
        attempts = [self.flows[request_id].flow.attempt for request_id in worker.request_ids]
        return sum(attempt is not None and attempt.waits_for(worker.worker_id) for attempt in attempts)

    def _batch(self, worker: Worker, length: AnswerLength) -> Batch:
        """What decodes on a worker, and what waits to, as far as we know."""
        batch = Batch()
        for request_id in worker.request_ids:
            flow = self.flows[request_id].flow
            attempt, params, share = flow.attempt, flow.generation.params, flow.generation.share
            if attempt is None or attempt.decode != worker.worker_id:
                continue
            if attempt.decode_gave_token:
                batch.left.append(length.predict_rest(params.max_tokens, flow.usage.num_completion / params.n))
                batch.running.add(share, params.n)
            else:
                batch.waiting.add(share, params.n)
        batch.left.sort()
        return batch

    def on_outputs(self, worker: Worker, outputs: Outputs) -> None:
        now = self.pool.clock()
        flows, worker_id = self.flows, worker.worker_id
        if outputs.counted is not None:
            self.vllm.counted(outputs.counted)
        for transfer in outputs.transfers:
            if (running := flows.get(transfer.request_id)) is not None:
                running.record.transferred(worker_id, transfer, now)
                running.flow.kv_arrived(worker_id, transfer.epoch)
        for computed in outputs.computed:
            if (running := flows.get(computed.request_id)) is not None:
                if running.waited_s is None:
                    running.waited_s = computed.waited_seconds
                running.leave_queue(worker)
                if running.workers and worker is running.workers[0]:  # the decode worker goes on: all is there
                    self._learn_wait(running, now)
                    for each in running.workers:
                        running.leave_lane(each)
                running.record.computed(worker_id, computed, now)
        num_tokens, observe_gap = self.metrics.generation_tokens, self.metrics.inter_token_latency_seconds.observe
        for token in outputs.tokens:
            if (running := flows.get(token.request_id)) is None:
                self.metrics.stale_messages.inc()
                continue
            try:
                if running.waits_for_first and self._hold(running, token, worker_id, now):
                    continue
                step = running.flow.take(token, worker_id)
                if step is GO and (last_at := running.last_token_at[token.choice]):  # the way of nearly every token
                    num_tokens.value += 1
                    running.num_counted += 1
                    observe_gap(now - last_at)
                    running.last_token_at[token.choice] = now
                else:
                    self._count_tokens(running, token.choice, now)
                    self._act(running, step)
                    self._let_go(running)
            except Exception:  # one request's failure is not the others'
                _log.exception("request_failed", request_id=token.request_id)
                self._fail(running, Unavailable("The request failed inside the router. Its reason is in the log."))
        for pooled in outputs.pooled:
            self._take_pooled(pooled, worker_id, now)
        for ended in outputs.ended:
            if (running := self._with_leg(ended.request_id, worker)) is not None:
                self._act_on_leg(running, worker, running.flow.leg_failed(worker_id, ended.epoch, ended.error))
        if worker.hands_over and worker.is_live:
            self._move_some(worker)
        if self._parked:
            self._unpark()

    def _take_pooled(self, pooled: Pooled, worker_id: str, now: float) -> None:
        """Give a request that generates nothing what came of it."""
        running = self.flows.get(pooled.request_id)
        if running is None or not isinstance(running.flow, PoolingFlow):
            self.metrics.stale_messages.inc()
            return
        step = running.flow.take_pooled(pooled, worker_id)
        if isinstance(step, Over):
            self._count_cached(running.flow.usage)
        self._act(running, step)

    def _learn_wait(self, running: Running, now: float) -> None:
        """Compare how long a request has waited for its second token with what was predicted."""
        if running.decision is not None and not running.num_replays:
            way = running.decision.chosen
            own_ms = way.terms["prefill"] + way.terms.get("transfer", 0.0)
            self._admission.foresight.learn(way.wait_ms / 1000, now - running.sent_at - own_ms / 1000)

    def _hold(self, running: Running, token: Token, worker_id: str, now: float) -> bool:
        """Keep a first token back, if it is one that may wait."""
        attempt = running.flow.attempt
        assert attempt is not None
        longest_s = self._holding.longest_s(attempt, token, worker_id, now - running.arrived_at)
        running.waits_for_first = False
        if longest_s:
            timer = self._loop.call_later(longest_s, self._let_go, running)
            running.held = HeldToken(token, worker_id, now, timer)
        return longest_s > 0

    def _let_go(self, running: Running) -> None:
        """Give the token that is held, if there is one."""
        held, running.held = running.held, None
        if held is None or running.is_over:
            return
        held.timer.cancel()
        now = self.pool.clock()
        self.metrics.phase_seconds.observe("held", now - held.held_at)
        step = running.flow.take(held.token, held.worker_id)
        self._count_tokens(running, held.token.choice, now)
        self._act(running, step)

    def _with_leg(self, request_id: str, worker: Worker) -> Running | None:
        """Find a request whose leg on a worker is ending; what the worker has given of it counts first."""
        running = self.flows.get(request_id)
        if running is not None:
            self._let_go(running)
        # what is done for one request may end another
        return running if running is not None and worker in running.workers else None

    def _count_cached(self, usage: Usage) -> None:
        self.metrics.prefix_cache_queries.value += usage.num_prompt
        self.metrics.prefix_cache_hits.value += usage.num_cached

    def _count_tokens(self, running: Running, choice: int, now: float) -> None:
        """Count the tokens that a choice has got at once, if any."""
        usage, metrics = running.flow.usage, self.metrics
        if not (count := usage.num_completion - running.num_counted):
            return
        running.num_counted += count
        metrics.generation_tokens.value += count
        last_at, running.last_token_at[choice] = running.last_token_at[choice], now
        if last_at:
            metrics.inter_token_latency_seconds.observe(now - last_at)
        elif not running.first_token_at:
            running.first_token_at = now
            self._count_cached(usage)
            self.vllm.first_token(usage)
            metrics.time_to_first_token_seconds.observe(now - running.arrived_at)
            metrics.phase_seconds.observe("first_token", now - running.sent_at)
            if not running.is_over:
                self.num_running += 1
                running.record.first_token(now, usage.num_cached)
                assert running.demand is not None
                self._admission.on_first_token(running.demand)
        for _ in range(count - 1):  # those that had waited for it
            metrics.inter_token_latency_seconds.observe(0.0)

    # -- what a flow says --------------------------------------------------------------------------------

    def _act(self, running: Running, step: Next) -> None:
        if isinstance(step, Over):
            self.finish(running, step)
        elif isinstance(step, Replay):
            self._replay(running, step)
        elif isinstance(step, ChoiceOver):
            self.metrics.request_success.inc(step.finish_reason)
            attempt = running.flow.attempt
            if step.runs_on and attempt is not None:
                running.cancel_leg(running.workers[0], attempt.epoch, step.choice)
        elif isinstance(step, Onward):
            self._go_on(running, step)
        elif step is STALE:
            self.metrics.stale_messages.inc()

    def _act_on_leg(self, running: Running, worker: Worker, step: Next) -> None:
        """Do what a flow asks for when a worker's leg has ended without its tokens."""
        if step is NOTHING_NEW:  # the other worker has all that it needs
            worker.request_ids.pop(running.flow.request_id, None)
            running.workers.remove(worker)
            running.leave_lane(worker)
        else:
            self._act(running, step)

    def _go_on(self, running: Running, step: Onward) -> None:
        """Begin the next attempt where the last one was, if that worker still takes some."""
        flow, worker = running.flow, running.workers[0]
        running.leave_workers(cancel_decode=step.runs_on)
        is_there = worker.is_live and not step.runs_on  # else its KV may not have come
        decision = self._placement.place_again(flow.generation, flow.num_emitted, worker) if is_there else None
        self._place(running, decision=decision)

    def _replay(self, running: Running, step: Replay) -> None:
        """Run what is left as a new attempt; what comes from the old one is dropped from here on."""
        flow, reason = running.flow, step.reason
        if step.mismatch_at is not None:
            self.metrics.kv_integrity_failures.inc()
            _log.error("integrity_failure", request_id=flow.request_id, position=step.mismatch_at)
        self.metrics.replays.inc(reason)
        running.record.replayed(reason, self.pool.clock())
        running.leave_workers()
        most, num_tokens = self.config.max_replays, flow.usage.num_completion
        if num_tokens - running.tokens_at_replay >= PROGRESS:
            running.replays_left = most
        running.tokens_at_replay = num_tokens
        delay = 0.05 * 4 ** (most - running.replays_left) if step.is_busy else 0.0
        if reason not in ("draining", "recomputed"):  # a worker that drains hands over; nothing failed
            running.num_replays += 1
            running.replays_left -= 1
        if running.replays_left < 0:
            error = f"The request failed on {running.num_replays} workers, the last time by {reason}."
            self._fail(running, Unavailable(error))
            return
        epoch = 0 if flow.attempt is None else flow.attempt.epoch + 1
        _log.info("replay", request_id=flow.request_id, epoch=epoch, reason=reason)
        if delay:
            running.timer = self._loop.call_later(delay, self._place, running, step.avoid)
        else:
            self._place(running, step.avoid)

    def _move_some(self, worker: Worker) -> None:
        """Have requests of a worker that drains go on elsewhere with their KV; without room there they stay until it ends."""
        attempts = {each: self.flows[each].flow.attempt for each in worker.request_ids}
        for request_id in next_to_move(worker.worker_id, {each: it for each, it in attempts.items() if it is not None}):
            running = self.flows[request_id]
            decision = self._placement.place_moved(running.flow.generation, running.flow.num_emitted, worker)
            if decision is None:
                return
            self.metrics.replays.inc("moved")
            running.record.replayed("moved", self.pool.clock())
            running.leave_workers(cancel_decode=False)  # what it runs there ends as its KV is asked for
            self._place(running, decision=decision)

    # -- for those who look on ----------------------------------------------------------------------------

    def count(self) -> None:
        """Bring the gauges up to date; called when somebody reads them."""
        self.metrics.num_requests_running.set(self.num_running)
        self.metrics.num_requests_waiting.set(len(self.flows) - self.num_running)
        self.metrics.index_blocks.set(len(self.index))
        loads = [worker.load for worker in self.pool.workers.values()]
        num_free, num_blocks = sum(each.kv_free_blocks for each in loads), sum(each.kv_total_blocks for each in loads)
        self.vllm.seen = Seen(
            *(self.num_running, len(self.flows) - self.num_running, len(self._parked), num_free, num_blocks),
            block_size=0 if self.last_facts is None else self.last_facts.block_size,
            is_awake=any(worker.can_decode for worker in self.pool.workers.values()),
            is_asleep=self.pool.is_asleep,
        )


def _has_lost(running: Running, request_id: str, worker: Worker, named: Named) -> bool:
    """Whether a worker that has these legs will never say what it owes a request."""
    attempt, held = running.flow.attempt, running.held
    if attempt is None or (held is not None and held.worker_id == worker.worker_id):  # it has said all that it will
        return False
    return is_lost(request_id, attempt, worker.worker_id, named)


def _check_fits(num_prompt: int, capacities: Sequence[int], block_size: int) -> None:
    """Refuse a prompt that no decode worker could ever hold; a capacity of 0 is not known yet."""
    least = math.ceil((num_prompt + 1) / block_size)
    if capacities and all(0 < capacity < least for capacity in capacities):
        raise ContextTooLong(
            f"prompt of {num_prompt} tokens is not valid: the KV cache of the largest decode worker holds "
            f"{max(capacities) * block_size} tokens. Shorten the prompt, or raise --kv-cache-memory-bytes.",
            field="prompt",
            code="context_length_exceeded",
        )


def _demand(generation: Generation, block_size: int) -> Demand:
    num_prompt, answer = len(generation.prompt), answer_prior(generation.params.max_tokens)
    num_blocks = math.ceil(num_prompt / block_size) + generation.params.n * math.ceil(answer / block_size)
    return Demand(num_prompt, num_blocks, generation.tenant)
