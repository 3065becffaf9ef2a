"""The worker's loop: receive, plan, step, collect, over its legs. It tells no leg from another and waits for nobody.

    receive     messages from routers, from the mailbox's queue; deadlines; events of KV transfers, through the legs
    plan, step  the engine's
    collect     tokens to the legs, through them to one message a router; cache changes to the block log

With nothing to do it waits on a wake-up that every other thread can set.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Sequence

from baton.engine.engine import Engine
from baton.errors import BatonError
from baton.logs import get_logger
from baton.messages import Cancel, Command, Hello, LegError, Legs, Load, ModelFacts, Outputs, Pool, Start, WorkerInfo
from baton.protocol import check_prompt
from baton.registry import BlockLog
from baton.step_learning import StepLearner
from baton.wakeup import Wakeup
from baton.worker.errands import Errands
from baton.worker.load_meter import LoadMeter
from baton.worker.mailbox import Mailbox, Peer, PeerLost, WantsBlocks
from baton.worker.pacer import Pacer
from baton.worker.reports import take_stats
from baton.worker.roll_call import open_legs, strays
from baton.worker.runs import ClosedEpochs, Leg, Outbox, Run, Runs, leg_error
from baton.worker.stats import Logged, Stats, ToFace

MAX_FAILED_STEPS = 3
"""In a row; then the device is taken as broken and the process ends, to be started anew."""
IDLE_S = 0.25
REPORT_S = 0.1
COUNTED_S = 1.0
"""Between what is told one router for all: a message a second costs nothing."""
RESTORING_S = 0.001
_ENDING = LegError("draining", "this worker is ending", True)
_ASLEEP = LegError("draining", "this worker sleeps", True)
_IMPOSSIBLE = LegError("internal", "the tokens before a replay are none of this model's", False)
_TOO_LATE = LegError("deadline", "the deadline of the request has passed", False)

log = get_logger("loop")


class EngineBroken(Exception):
    """Steps fail again and again."""


class WorkerLoop:
    """Owns the engine and the table of runs; one thread."""

    def __init__(
        self,
        engine: Engine,
        legs: Sequence[Leg],
        mailbox: Mailbox,
        runs: Runs,
        outbox: Outbox,
        wakeup: Wakeup,
        info: WorkerInfo,
        *,
        drain_s: float,
        tell_face: Callable[[ToFace], None] = lambda message: None,
        add_stats: Callable[[Stats], None] = lambda stats: None,
        pacer: Pacer | None = None,
    ) -> None:
        """`add_stats` fills in what only the transfer knows; `pacer` sizes the chunks of steps, None: nobody does."""
        self._engine = engine
        self._legs = {leg.name: leg for leg in legs}
        self._mailbox = mailbox
        self._runs = runs
        self._outbox = outbox
        self._wakeup = wakeup
        self._info = info
        self._drain_s = drain_s
        self._tell_face = tell_face
        self._add_stats = add_stats
        self._closed = ClosedEpochs()
        self._ended = ClosedEpochs()  # by request and leg, so that a Start that comes twice is not served again
        self._deadlines: list[tuple[float, int, Run]] = []
        self._arrivals = itertools.count()  # breaks ties of deadlines
        self._pacer = Pacer(StepLearner(), 0.0) if pacer is None else pacer
        self._meter = LoadMeter(engine, self._pacer.learner)
        self._log = BlockLog(info.worker_id, info.incarnation)
        self._errands = Errands(engine, info.incarnation)
        self._reported_at = self._counted_at = 0.0
        self._num_failed_steps = 0
        self._drain_asked = False
        self._draining_until: float | None = None
        self._num_stale = 0
        self._calls: list[tuple[Peer, int]] = []  # of this turn; answered after what it has to say
        engine.scheduler.pace = pacer
        engine.on_grammar = wakeup.set
        engine.cache.record_events = engine.scheduler.cache is not None
        runs.on_close = self._note_end
        mailbox.beat.limit_s = self._meter.limit_s

    # -- from other threads -------------------------------------------------------------------------------

    def drain(self) -> None:
        """Take nothing new, let what runs end or leave for a time, hand the rest back; then `run` returns."""
        self._drain_asked = True
        self._wakeup.set()

    # -- the loop -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until drained.

        Raises:
            EngineBroken: steps fail again and again.
        """
        while True:
            is_idle = self.turn()
            if self._draining_until is not None and not self._runs:
                return
            if is_idle:
                self._wakeup.wait(self._idle_s())

    def turn(self) -> bool:
        """Go round once, without waiting; return whether there was nothing to do. Raises as `run` does."""
        self._mailbox.beat.turns += 1
        self._receive()
        engine = self._engine
        progress = engine.num_steps + engine.num_collected
        if engine.has_work:
            self._step()
        advanced = [leg.advance() for leg in self._legs.values()]
        is_idle = engine.num_steps + engine.num_collected == progress and not any(advanced)
        self._errands.advance(len(self._runs))
        self._send(is_idle)
        return is_idle

    def _receive(self) -> None:
        for arrival in self._mailbox.take():
            match arrival:
                case PeerLost(peer):
                    for run in self._runs:
                        if run.peer is peer:
                            self._stop(run)
                case WantsBlocks(peer):
                    self._mailbox.post(peer, self._log.snapshot())
                case (peer, (Start() | Pool()) as start):
                    self._start(peer, start)
                case (_, Cancel() as cancel):
                    self._cancel(cancel)
                case (peer, Command() as command):
                    self._errands.take(peer, command)
                case (peer, Hello() as hello):
                    self._calls.append((peer, hello.number))
                    self._end_strays(peer, hello)
        self._check_time()

    def _start(self, peer: Peer, start: Start | Pool) -> None:
        """Open a run, or say why not."""
        siblings = self._runs.of_request(start.request_id)
        is_known = any(run.asked.epoch == start.epoch and run.asked.leg == start.leg for run in siblings)
        is_old = any(run.asked.epoch > start.epoch for run in siblings)
        is_over = self._closed.is_closed(start.request_id, start.epoch) or self._ended.is_closed(
            f"{start.request_id}/{start.leg}", start.epoch
        )
        if is_known or is_old or is_over:
            self._num_stale += 1
            return
        for run in siblings:
            if run.asked.epoch < start.epoch:
                self._stop(run)
        run = Run.of(start, peer)
        error: LegError | None
        if self._drain_asked and not self._moves_away(start, siblings):
            error = _ENDING
        elif self._errands.takes_nothing:
            error = _ASLEEP
        elif start.seconds_left is not None and start.seconds_left <= 0:
            error = _TOO_LATE
        elif start.leg not in self._legs:
            error = LegError("internal", f"this worker has no {start.leg} leg", True)
        else:
            error = self._begin(run)
        if error is not None:
            self._outbox.ended(run, error)

    def _moves_away(self, start: Start | Pool, siblings: Sequence[Run]) -> bool:
        """Whether a Start asks for the KV of what decodes here, or did lately, for another worker to go on with it."""
        has_decoded = self._ended.is_closed(f"{start.request_id}/decode", 0)
        return start.leg == "prefill" and (has_decoded or any(run.asked.leg == "decode" for run in siblings))

    def _begin(self, run: Run) -> LegError | None:
        start, model = run.asked, self._info.model
        if not _is_possible(start, model):
            return _IMPOSSIBLE
        try:
            if isinstance(start, Start):  # else the leg knows what may be asked
                check_prompt(start.prompt, model.vocab_size, model.max_model_len)
                start.params.check_vocab(model.vocab_size, model.eos_token_ids)
            self._runs.open(run)
            self._legs[start.leg].begin(run)
        except Exception as error:  # the edge: what one request breaks is that request
            self._runs.close(run)
            if not isinstance(error, BatonError):
                log.exception("start_failed", request_id=start.request_id, epoch=start.epoch)
            return leg_error(error)
        if start.seconds_left is not None:
            heapq.heappush(self._deadlines, (run.began_at + start.seconds_left, next(self._arrivals), run))
        return None

    def _cancel(self, cancel: Cancel) -> None:
        runs = self._runs.of_request(cancel.request_id)
        if cancel.choice is not None:
            for run in runs:
                if run.asked.epoch == cancel.epoch and cancel.choice in run.open_choices:
                    self._stop_choice(run, cancel.choice)
            return
        self._closed.close(cancel.request_id, cancel.epoch)
        for run in runs:
            if run.asked.epoch <= cancel.epoch:
                self._stop(run)

    def _end_strays(self, peer: Peer, hello: Hello) -> None:
        for run, choice in strays(self._runs, peer, hello.legs):
            if choice is None:
                self._stop(run)
            else:
                self._stop_choice(run, choice)

    def _stop_choice(self, run: Run, choice: int) -> None:
        run.open_choices.discard(choice)
        if run.open_choices:
            self._legs[run.asked.leg].stop_choice(run, choice)
        else:
            self._stop(run)

    def _stop(self, run: Run) -> None:
        run.is_over = True
        self._legs[run.asked.leg].stop(run)

    def _fail(self, run: Run, error: LegError) -> None:
        """End a run that the router still waits for."""
        if not run.is_over:
            self._outbox.ended(run, error)
        self._stop(run)

    def _check_time(self) -> None:
        while self._deadlines and self._deadlines[0][0] <= time.monotonic():
            run = heapq.heappop(self._deadlines)[2]
            if not run.is_over:
                self._fail(run, _TOO_LATE)
        if len(self._deadlines) > 2 * len(self._runs) + 1024:  # most of them ended long before
            self._deadlines = [entry for entry in self._deadlines if not entry[2].is_over]
            heapq.heapify(self._deadlines)
        if self._drain_asked and self._draining_until is None:
            log.info("draining", num_runs=len(self._runs))
            self._draining_until = time.monotonic() + self._drain_s
        if self._draining_until is not None and time.monotonic() >= self._draining_until:
            for run in self._runs:
                if not run.is_over:
                    self._fail(run, _ENDING)

    def _step(self) -> None:
        self._meter.step_begins()
        began_at = time.monotonic()
        try:
            outputs = self._engine.step()
        except Exception as error:  # the edge: the requests of this step fail, the worker lives
            self._step_failed(error)
            return
        self._num_failed_steps = 0
        for engine_id, reason in self._engine.take_refused():
            refused = self._runs.get(engine_id)
            if refused is not None:
                self._fail(refused, leg_error(reason))
        self._mailbox.beat.turns += 1  # what follows may take less, and its time is counted from here
        self._meter.step_ends()
        for engine_id in self._engine.admitted:
            admitted = self._runs.get(engine_id)
            if admitted is not None and not admitted.computing_at:
                admitted.computing_at = began_at
        for output in outputs:
            run = self._runs.get(output.request_id)
            if run is None or run.is_over:
                continue
            leg = self._legs[run.asked.leg]
            try:
                leg.take(run, output)
            except Exception as error:  # the edge, again
                log.exception("token_failed", request_id=run.asked.request_id)
                self._fail(run, leg_error(error))

    def _step_failed(self, error: Exception) -> None:
        self._num_failed_steps += 1
        touched = self._engine.discard()
        log.exception("step_failed", num_requests=len(touched), times=self._num_failed_steps)
        for engine_id in touched:
            run = self._runs.get(engine_id)
            if run is None:
                self._engine.abort(engine_id)
            else:
                self._fail(run, leg_error(error))
        if self._num_failed_steps >= MAX_FAILED_STEPS:
            self._send(is_idle=True)
            raise EngineBroken(f"{self._num_failed_steps} steps in a row failed: {error}")

    # -- what goes out ------------------------------------------------------------------------------------

    def _send(self, is_idle: bool) -> None:
        is_draining = self._draining_until is not None
        load = self._mailbox.load = self._meter.load(
            draining=is_draining, asleep=self._errands.takes_nothing, force=is_idle
        )
        for peer, outputs in self._outbox.take(self._info.worker_id, self._info.incarnation, load):
            self._mailbox.post(peer, outputs)
        while self._calls:
            peer, number = self._calls.pop()
            self._mailbox.post(peer, Legs(self._info.incarnation, number, open_legs(self._runs, peer)))
        for peer, done in self._errands.take_done():
            self._mailbox.post(peer, Outputs(self._info.worker_id, self._info.incarnation, [], load))
            self._mailbox.post(peer, done)
        self._log_blocks()
        self._tell_counted(load)
        now = time.monotonic()
        if is_idle or now - self._reported_at >= REPORT_S:
            self._reported_at = now
            self._mailbox.pace = self._pacer.pace if self._pacer.learner.is_known else None
            stats = take_stats(self._engine, self._legs.values(), self._runs, self._outbox, self._mailbox)
            stats.stale_messages += self._num_stale
            self._add_stats(stats)
            self._tell_face(stats)

    def _tell_counted(self, load: Load) -> None:
        now = time.monotonic()
        if now - self._counted_at < COUNTED_S or (peer := self._mailbox.first_peer()) is None:
            return
        self._counted_at = now
        if counted := self._meter.take_counted():
            info = self._info
            self._mailbox.post(peer, Outputs(info.worker_id, info.incarnation, [], load, counted=counted))

    def _log_blocks(self) -> None:
        events = self._engine.cache.drain_events()
        if not events:
            return
        last = {block_hash: kind == "stored" for kind, block_hash in events}
        entry = self._log.entry([h for h, is_stored in last.items() if is_stored], [h for h in last if not last[h]])
        self._mailbox.post(None, entry)
        self._tell_face(Logged(entry))

    def _note_end(self, run: Run) -> None:
        self._ended.close(f"{run.asked.request_id}/{run.asked.leg}", run.asked.epoch)
        self._outbox.phases.append((run.asked.leg, time.monotonic() - run.began_at))

    def _idle_s(self) -> float:
        wait_s = min(IDLE_S, self._deadlines[0][0] - time.monotonic()) if self._deadlines else IDLE_S
        if self._engine.scheduler.is_restoring:  # the end of a copy wakes nobody
            wait_s = min(wait_s, RESTORING_S)
        if self._draining_until is not None:
            wait_s = min(wait_s, max(0.01, self._draining_until - time.monotonic()))
        return wait_s


def _is_possible(start: Start | Pool, model: ModelFacts) -> bool:
    """Whether what a request has already can be its answer's beginning: else a step would fail, for all that are in it."""
    room = model.max_model_len - len(start.prompt)
    return all(
        not emitted or (len(emitted) < room and max(emitted) < model.vocab_size)
        for emitted in (choice.emitted for choice in start.choices)
    )
