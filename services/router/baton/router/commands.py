"""What an admin asks of all live workers, and their answers: sent by the connections over which requests go."""

from __future__ import annotations

import asyncio
import itertools

from baton.errors import InvalidRequest, Unavailable
from baton.messages import Command, Done, Order
from baton.router.pool import Worker, WorkerPool
from baton.router.workers import WorkerGone

ANSWER_S = 30.0
"""For what a worker does between two steps."""


class Asleep(Unavailable):
    """All workers sleep."""

    retry_after_s = 10

    def __init__(self) -> None:
        super().__init__("The model sleeps, and takes no requests. An admin wakes it up with POST /wake_up.")


class NotDone(InvalidRequest):
    """A worker refuses what was asked, as none of its kind does it."""


class Commands:
    """Those that wait for workers."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._numbers = itertools.count(1)
        self._open: dict[tuple[str, int], asyncio.Future[str]] = {}

    async def give(
        self, order: Order, *, level: int = 0, external: bool = False, timeout_s: float = ANSWER_S
    ) -> list[str]:
        """Have all live workers do it, and wait for them; return their ids.

        Raises:
            Unavailable: none is there, one is lost meanwhile, or the time is over.
            NotDone: one says why it does not.
        """
        workers = list(self._pool.workers.values())
        if not workers:
            raise Unavailable("No worker is there. Try again in a few seconds.")
        asked = {worker.worker_id: self._ask(worker, order, level, external) for worker in workers}
        answers = asyncio.gather(*asked.values())
        try:
            said = await asyncio.wait_for(answers, timeout_s)
        except TimeoutError:
            silent = [worker_id for worker_id, answer in asked.items() if answer.cancelled() or not answer.done()]
            raise Unavailable(f"{order} was not done within {timeout_s:g} s by {', '.join(silent)}.") from None
        finally:
            for key in [key for key, answer in self._open.items() if answer.done()]:
                del self._open[key]
        if errors := [f"{worker_id}: {error}" for worker_id, error in zip(asked, said, strict=True) if error]:
            raise NotDone(f"{order} was not done: {'; '.join(errors)}.")
        return list(asked)

    def take(self, worker: Worker, done: Done) -> None:
        """Take a worker's answer."""
        answer = self._open.get((worker.info.incarnation, done.number))
        if answer is not None and not answer.done():
            answer.set_result(done.error)

    def lose(self, worker: Worker) -> None:
        """Take it that a worker answers no more."""
        for (incarnation, _number), answer in self._open.items():
            if incarnation == worker.info.incarnation and not answer.done():
                answer.set_exception(Unavailable(f"{worker.worker_id} was lost meanwhile. Ask again."))

    def _ask(self, worker: Worker, order: Order, level: int, external: bool) -> asyncio.Future[str]:
        number = next(self._numbers)
        answer = self._open[worker.info.incarnation, number] = asyncio.get_running_loop().create_future()
        try:
            worker.client.send(Command(number, order, level, external))
        except WorkerGone:
            answer.set_exception(Unavailable(f"{worker.worker_id} takes no messages. Ask again."))
        return answer
