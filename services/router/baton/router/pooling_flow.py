"""PoolingFlow: a request that generates nothing, beside Flow: one prompt to one worker, one answer back.

The dispatcher drives it as any Flow: places it, replays it, ends it. Nothing was given to its client before its end, so a
replay begins anew, and whoever computes the prompt gives the same.
"""

from __future__ import annotations

from collections.abc import Callable

from baton.errors import BatonError
from baton.messages import Pool, Pooled, Start, Token, WorkerInfo
from baton.pooling import PoolingParams
from baton.router.attempt import Attempt
from baton.router.flow import STALE, Flow, Next, Over
from baton.router.generation import Generation
from baton.router.sink import Usage


class PoolingSink:
    """Who takes the answer, or the reason why there is none; once."""

    def __init__(self, done: Callable[[PoolingSink], None]) -> None:
        self.pooled: Pooled | None = None
        self.usage = Usage(0)
        self.error: BatonError | None = None
        self._done = done

    def push(self, _choice: int, pooled: Pooled, *_: object) -> None:
        """Take the answer; the end follows."""
        self.pooled = pooled

    def end(self, usage: Usage) -> None:
        self.usage = usage
        self._done(self)

    def fail(self, error: BatonError) -> None:
        self.error = error
        self._done(self)


class PoolingFlow(Flow[Pooled]):
    """One prompt of which something is pooled."""

    __slots__ = ("_asked", "_taker")

    def __init__(self, generation: Generation, asked: PoolingParams, sink: PoolingSink) -> None:
        """`generation` says whose it is, and how long it may take; what it says of sampling means nothing."""
        super().__init__(generation, [_NoText()], sink)
        self._asked = asked
        self._taker = sink

    def begin(self, decode: WorkerInfo, prefill: WorkerInfo | None, now: float) -> list[tuple[str, Start | Pool]]:
        """Make the next attempt."""
        assert prefill is None
        epoch = 0 if self.attempt is None else self.attempt.epoch + 1
        generation = self.generation
        self.attempt = Attempt(epoch, self.usage.num_prompt, self._choices, decode.worker_id)
        pool = Pool(
            self.request_id,
            epoch,
            generation.prompt,
            self._asked,
            generation.priority,
            generation.seconds_left(now),
            generation.salt,
            generation.share,
        )
        return [(decode.worker_id, pool)]

    def take(self, token: Token, worker: str) -> Next:
        """Drop a token: nobody was asked for one."""
        return STALE

    def take_pooled(self, pooled: Pooled, worker: str) -> Next:
        """Take the answer of a worker."""
        attempt = self.attempt
        if attempt is None or not attempt.has_leg(worker, pooled.epoch):
            return STALE
        self.usage.take_cached(pooled.num_cached, pooled.num_restored)
        self._choices[0].is_done = True
        self._taker.push(0, pooled)
        return Over("finished", "stop", runs_on=False)


class _NoText:
    """What stands for the text of an answer that has none."""

    def push(self, token_id: int, finish_reason: str | None) -> tuple[Pooled, str | None]:
        raise AssertionError("a token of a request that generates nothing")
