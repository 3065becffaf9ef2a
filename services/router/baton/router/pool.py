"""WorkerPool: the live workers, and what is known of each.

A worker lives from its first Welcome until it has been silent for 3 s, says that it is stuck, says another incarnation, does
no step, or does not take a message. One that comes back is let in again. Redis only names endpoints. The pool tells a listener who came, who went, and what arrived; it knows no
requests but by their ids.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from baton.logs import get_logger
from baton.messages import (
    HELLO_INTERVAL_S,
    LOAD_INTERVAL_S,
    PAUSE_S,
    WORKER_SILENCE_S,
    Blocks,
    Done,
    Hello,
    Legs,
    Load,
    OpenLeg,
    Outputs,
    ToRouter,
    Transfer,
    Welcome,
    WorkerInfo,
)
from baton.metrics import RouterMetrics
from baton.router.config import RouterConfig
from baton.router.lane import Lane
from baton.router.links import NEW_LINK, Link, kept
from baton.router.turnover import Backlog, Pace
from baton.router.worker_records import NUM_LOST, LostWorker, Transfers
from baton.router.workers import Connections, WorkerClient
from baton.step_pace import StepPace

_log = get_logger("pool")
ENDING_LEGS = frozenset(["decode", "pool"])
"""Legs with which requests may end."""
TRIAL_S = 30.0
"""After so long a worker that did no step is tried again."""
_KEEP = 0.98
"""Weight of the past in a moving mean: about fifty reports."""


class PoolListener(Protocol):
    """Who hears of workers and of what they say."""

    def on_worker_joined(self, worker: Worker) -> None: ...

    def on_worker_lost(self, worker: Worker) -> None: ...

    def on_outputs(self, worker: Worker, outputs: Outputs) -> None: ...

    def on_blocks(self, entry: Blocks) -> None: ...

    def num_awaited(self, worker: Worker) -> int:
        """How many requests wait for this worker's next token."""

    def open_legs(self, worker: Worker) -> list[OpenLeg]:
        """Name what the worker should have."""

    def on_legs(self, worker: Worker, answer: Legs) -> None:
        """Hear what it has."""

    def on_done(self, worker: Worker, done: Done) -> None:
        """Hear what became of a command."""


class StepModel:
    """A worker's decode step as a line: its ms at the mean batch, and the ms that one sequence more adds."""

    __slots__ = ("_cov", "_mean_ms", "_mean_n", "_num", "_var")

    def __init__(self) -> None:
        self._num = 0.0
        self._mean_n = self._mean_ms = self._var = self._cov = 0.0

    def observe(self, num_running: int, step_ms: float) -> None:
        """Take a worker's report; reports of an idle worker say nothing."""
        if step_ms <= 0 or num_running <= 0:
            return
        keep = min(_KEEP, self._num / (self._num + 1))
        self._num += 1
        dn, dms = num_running - self._mean_n, step_ms - self._mean_ms
        self._mean_n += (1 - keep) * dn
        self._mean_ms += (1 - keep) * dms
        self._var = keep * (self._var + (1 - keep) * dn * dn)
        self._cov = keep * (self._cov + (1 - keep) * dn * dms)

    def fade(self, age_s: float) -> None:
        """Have what was learned until so long ago count less than what is learned from now on."""
        self._num *= kept(age_s)

    def predict(self, num_running: int) -> float:
        """Predict the ms of a step; 0 before the first report."""
        if self._num == 0:
            return 0.0
        slope = self._cov / self._var if self._var > 0.5 else 0.0
        # where nothing is learned of it yet, a sequence more costs a little: else all would go to one worker
        slope = max(slope, 0.002 * self._mean_ms)
        return max(self._mean_ms + slope * (num_running - self._mean_n), 0.1 * self._mean_ms)


class Worker:
    """One live incarnation of a worker."""

    def __init__(
        self, client: WorkerClient, info: WorkerInfo, load: Load, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.client = client
        self._clock = clock
        self.info = info
        self.worker_id = info.worker_id
        self.load = load
        self.store = ""
        """The store of its host, whose blocks it shares."""
        self.is_live = True
        self.since = time.time()
        self.can_prefill = self.can_decode = False
        """Whether new prompts may go there for another worker; whether new requests may end there."""
        self.hands_over = False
        """Whether it drains, and what runs there may leave with its KV."""
        self.request_ids: dict[str, None] = {}
        """Requests with an open leg here, in the order in which they came; kept by whoever sends them."""
        self.queued, self.num_choices, self.num_prompts = Backlog(), 0, 0
        """What we have asked of it: prompt tokens that it has not computed, sequences that end here, prompts of other workers that
        it has not computed. Kept by whoever sends them:
        a report that left a worker in a long step knows nothing of what was sent meanwhile."""
        self.other_tokens = self.other_choices = 0
        """What others have, by its last report."""
        self.lane = Lane()
        """The same in seconds, with what it sends on. Kept by the same."""
        self.step_pace: StepPace | None = None
        """How long its steps take, once it has said so."""
        self.steps = StepModel()
        self.pace = Pace()
        self.moved_at = self.worked_at = clock()
        """When it last told of a new step, or had nothing of ours to do; and when it told of one."""
        self.report(load)

    def report(self, load: Load) -> None:
        """Take the worker's own word on its load."""
        has_stepped = load.num_steps != self.load.num_steps
        if has_stepped or load.in_long_step or not self.request_ids:
            self.moved_at = self._clock()
        if has_stepped:  # and what was learned until then counts less
            if self.moved_at - self.worked_at > 1.0:
                self.steps.fade(self.moved_at - self.worked_at)
            self.worked_at = self.moved_at
        self.load = load
        takes_new = not (load.draining or load.asleep)
        self.can_prefill = takes_new and "prefill" in self.info.legs and bool(self.info.kv)
        self.can_decode = takes_new and not ENDING_LEGS.isdisjoint(self.info.legs)
        self.hands_over = load.draining and "prefill" in self.info.legs and bool(self.info.kv)
        self.other_tokens = max(load.waiting_tokens - self.queued.total, 0)
        self.other_choices = max(load.num_running + load.num_waiting - self.num_choices - self.num_prompts, 0)
        self.pace.report(load, self._clock())
        self.steps.observe(load.num_running, load.decode_step_ms)


class WorkerPool:
    """All connections, and the workers that answered on them."""

    def __init__(
        self,
        config: RouterConfig,
        router_id: str,
        metrics: RouterMetrics,
        connections: Connections | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` is what everything beside the event loop's timers is measured with, the dispatcher's requests included."""
        self._config = config
        self.clock = clock
        self._router_id = router_id
        self._metrics = metrics
        self._connections = connections or Connections(config)
        self._clients: dict[str, WorkerClient] = {}
        self._of_client: dict[WorkerClient, Worker] = {}
        self._twins: dict[WorkerClient, Worker] = {}
        """Connections to workers that we talk to by another one."""
        self._listener: PoolListener
        self._stalled: dict[str, tuple[int, float]] = {}
        """Incarnations that did no step any more: the number of their last, and until when they are passed over."""
        self._beat: asyncio.Task[None] | None = None
        self.workers: dict[str, Worker] = {}
        """Live workers by id."""
        self.links: dict[tuple[str, str], Link] = {}
        """What is known of transfers, by ids of prefill and decode worker."""
        self.transfers: dict[tuple[str, str], Transfers] = {}
        """Those there were, by the same."""
        self.lost: deque[LostWorker] = deque(maxlen=NUM_LOST)
        """Workers that are gone, newest first."""
        self.num_calls = 0
        """Roll calls, to all workers together."""
        self.wants_blocks = False
        """Ask workers for their block logs by socket: set while Redis does not answer."""

    # -- life ---------------------------------------------------------------------------------------------

    def start(self, listener: PoolListener) -> None:
        """Connect to the static workers, and begin to say hello."""
        self._listener = listener
        for endpoint in self._config.worker:
            self.connect(endpoint)
        self._beat = asyncio.get_running_loop().create_task(self._keep_in_touch())

    async def close(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
            await asyncio.gather(self._beat, return_exceptions=True)
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._connections.close()

    def connect(self, endpoint: str) -> None:
        """Talk to whoever lives at a control endpoint, from now on."""
        if endpoint not in self._clients:
            client = self._connections.open(endpoint, self.on_message, self.on_bad_message)
            self._clients[endpoint] = client
            self._greet(client)

    def disconnect(self, endpoint: str) -> None:
        """Stop talking to an endpoint at which nobody lives."""
        client = self._clients.get(endpoint)
        if client is not None and client not in self._of_client and endpoint not in self._config.worker:
            client.close()
            del self._clients[endpoint]
            self._twins.pop(client, None)

    def endpoints(self) -> Iterable[str]:
        return list(self._clients)

    # -- what is known ------------------------------------------------------------------------------------

    def cache_parts(self) -> set[tuple[str, ...]]:
        """The parts by which live workers' hash chains start: one set of parts, but for rolling upgrades."""
        return {worker.info.model.cache_parts for worker in self.workers.values()}

    @property
    def is_asleep(self) -> bool:
        """Whether no request can be taken because workers sleep."""
        workers = self.workers.values()
        return any(w.load.asleep for w in workers) and not any(w.can_decode for w in workers)

    def lose(self, worker: Worker, reason: str) -> None:
        """Take a worker as dead: it answers no more, or took no message."""
        if not worker.is_live:
            return
        worker.is_live = False
        self._of_client.pop(worker.client, None)
        if self.workers.get(worker.worker_id) is worker:
            del self.workers[worker.worker_id]
        for pair in [pair for pair in self.links if worker.worker_id in pair]:
            del self.links[pair]
            self.transfers.pop(pair, None)
        self.lost.appendleft(_lost(worker, reason))
        if worker.client.endpoint in self._clients:
            worker.client.reopen()
        _log.warning("worker_lost", worker_id=worker.worker_id, reason=reason, in_flight=len(worker.request_ids))
        self._count_workers()
        self._listener.on_worker_lost(worker)

    # -- what workers say ---------------------------------------------------------------------------------

    def on_message(self, client: WorkerClient, message: ToRouter) -> None:
        worker = self._of_client.get(client)
        if isinstance(message, Outputs):
            if worker is None or worker.info.incarnation != message.incarnation:
                self._metrics.stale_messages.inc()
                return
            worker.report(message.load)
            if message.load.stuck:
                self.lose(worker, "stuck")
                return
            for transfer in message.transfers:
                self._learn(worker, transfer)
            if message.tokens or message.ended or message.transfers or message.counted or message.pooled:
                self._listener.on_outputs(worker, message)
        elif isinstance(message, Welcome):
            self._welcome(client, worker, message)
        elif worker is None:
            return
        elif isinstance(message, Legs):
            if message.incarnation == worker.info.incarnation:
                self._listener.on_legs(worker, message)
        elif isinstance(message, Done):
            if message.incarnation == worker.info.incarnation:
                self._listener.on_done(worker, message)
        elif message.worker_id == worker.worker_id:
            self._listener.on_blocks(message)

    def on_bad_message(self, client: WorkerClient, reason: str) -> None:
        self._metrics.stale_messages.inc()
        _log.warning("bad_message", endpoint=client.endpoint, reason=reason)

    def _welcome(self, client: WorkerClient, worker: Worker | None, message: Welcome) -> None:
        info = message.info
        if worker is not None and worker.info.incarnation == info.incarnation:
            worker.report(message.load)
            worker.step_pace = message.pace
            worker.store = message.store
            return
        if worker is not None:
            self.lose(worker, "restarted")
            return  # it says hello again on the new connection
        num_steps, until = self._stalled.get(info.incarnation, (-1, 0.0))
        if message.load.stuck or (message.load.num_steps == num_steps and self.clock() < until):
            return
        self._stalled.pop(info.incarnation, None)
        if self._is_twin(client, info) or not self._accepts(client, info):
            return
        if (other := self.workers.get(info.worker_id)) is not None:
            self.lose(other, "replaced")
        joined = Worker(client, info, message.load, self.clock)
        joined.step_pace = message.pace
        joined.store = message.store
        self.workers[info.worker_id] = self._of_client[client] = joined
        _log.info("worker_joined", worker_id=info.worker_id, legs=",".join(info.legs), endpoint=client.endpoint)
        self._count_workers()
        self._listener.on_worker_joined(joined)
        self._greet(client)  # what runs there of an earlier time is nobody's any more
        for each in list(self.workers.values()):  # those that came before any decode worker were compared with nobody
            if reason := self._refusal(each.info):
                self.lose(each, reason)

    def _is_twin(self, client: WorkerClient, info: WorkerInfo) -> bool:
        """Whether this is another way to a worker that we talk to."""
        other = self.workers.get(info.worker_id)
        if other is None or other.info.incarnation != info.incarnation:
            return False
        self._twins[client] = other
        return True

    def _accepts(self, client: WorkerClient, info: WorkerInfo) -> bool:
        """Whether a worker may serve; one that may not is told why, and so is the log, once."""
        reason = self._refusal(info)
        if reason != client.refusal:
            client.refusal = reason
            self._greet(client)
            if reason:
                _log.error("worker_refused", worker_id=info.worker_id, endpoint=client.endpoint, reason=reason)
        return not reason

    def _refusal(self, info: WorkerInfo) -> str:
        """Say why a worker cannot serve with the others; empty: it can."""
        if not info.legs:
            return "it has no leg"
        same = self.workers.get(info.worker_id)
        if same is not None and same.info.incarnation != info.incarnation and self._speaks(same):
            return (
                f"worker_id={info.worker_id!r} is that of the worker at {same.client.endpoint}. "
                "Give each worker its own --worker-id."
            )
        if info.model.name not in self._config.model_names:
            return f"it serves {info.model.name!r}, this router {self._config.model_names[0]!r}"
        other = next((w for w in self.workers.values() if not ENDING_LEGS.isdisjoint(w.info.legs)), None)
        if other is None:
            return ""
        theirs = msgspec.structs.asdict(other.info.model)
        differing = [
            f"{name} is {value!r}, and {theirs[name]!r} on {other.worker_id}"
            for name, value in msgspec.structs.asdict(info.model).items()
            # parts of the hash chains may differ: workers of two layouts serve side by side while versions roll
            if value != theirs[name] and name != "cache_parts"
        ]
        return "; ".join(differing)

    def _speaks(self, worker: Worker) -> bool:
        """Whether it lives: one that does not say its load any more may have been started anew elsewhere."""
        return asyncio.get_running_loop().time() - worker.client.last_heard < 4 * LOAD_INTERVAL_S

    def _learn(self, decode: Worker, transfer: Transfer) -> None:
        for prefill in self.workers.values():
            if prefill.info.incarnation == transfer.source_incarnation:
                pair = (prefill.worker_id, decode.worker_id)
                link, now = self.links.get(pair, NEW_LINK), self.clock()
                alone_s = now - max(prefill.lane.sent(transfer.request_id, now), now - transfer.seconds)
                alone_s = max(alone_s, transfer.exposed_seconds if not transfer.seconds else 0.0)
                self.links[pair] = link.learn(transfer.num_tokens, transfer.exposed_seconds, now, alone_s)
                self.transfers.setdefault(pair, Transfers()).add(transfer)

    # -- heartbeats ---------------------------------------------------------------------------------------

    async def _keep_in_touch(self) -> None:
        loop = asyncio.get_running_loop()
        next_hello, checked_at = 0.0, loop.time()
        while True:
            await asyncio.sleep(0.25)
            now = loop.time()
            if now - checked_at > PAUSE_S:
                self._forgive(now - checked_at, now)
            checked_at = now
            if now >= next_hello:
                next_hello = now + HELLO_INTERVAL_S
                for client in list(self._clients.values()):
                    self._greet(client)
            self.lose_silent(now)

    def _greet(self, client: WorkerClient) -> None:
        """Say who we are, and to a worker that serves, or is refused, which legs it should have."""
        twin = self._twins.pop(client, None)
        if twin is not None and twin.is_live:  # a hello would take its connection from it
            self._twins[client] = twin
            return
        worker = self._of_client.get(client)
        hello = Hello(self._router_id, self.wants_blocks, client.refusal)
        if worker is not None or client.refusal:
            self.num_calls += 1
            legs = [] if worker is None else self._listener.open_legs(worker)
            hello = msgspec.structs.replace(hello, number=self.num_calls, legs=legs)
        client.hello(hello)

    def _forgive(self, pause_s: float, now: float) -> None:
        """Take a pause of our own for nobody's silence: what came meanwhile is still unread."""
        for client in self._clients.values():
            client.last_heard = min(client.last_heard + pause_s, now)

    def lose_silent(self, now: float) -> None:
        """Lose the workers that say nothing any more by `now` of the loop's clock, or do no step."""
        for client, worker in list(self._of_client.items()):
            if now - client.last_heard > WORKER_SILENCE_S:
                self.lose(worker, "silent")
            elif self._is_stalled(worker):
                # its loop turns, its work does not move: it is let in again when it has done a step, or for a trial
                self._stalled[worker.info.incarnation] = worker.load.num_steps, self.clock() + TRIAL_S
                self.lose(worker, "stalled")

    def _is_stalled(self, worker: Worker) -> bool:
        """Whether requests wait for a step that does not come; a prompt's KV that is held waits for nothing."""
        has_moved = self.clock() - worker.moved_at <= self._config.stall_s
        return not has_moved and self._listener.num_awaited(worker) > 0

    def _count_workers(self) -> None:
        for leg in ("prefill", "decode", "pool"):
            count = sum(leg in worker.info.legs for worker in self.workers.values())
            self._metrics.workers.labels(leg).set(count)


def _lost(worker: Worker, reason: str) -> LostWorker:
    has_left = worker.load.draining and not worker.request_ids
    info = worker.info
    return LostWorker(
        *(info.worker_id, info.legs, info.incarnation, "left" if has_left else "died", reason, worker.since),
        in_flight=len(worker.request_ids),
    )
