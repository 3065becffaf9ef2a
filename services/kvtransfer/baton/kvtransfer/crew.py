"""Threads that copy and sum blocks beside the one that transfers: one processor does some 6 GB/s of both, sockets more."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
JOBS_A_THREAD = 2
"""That are begun or wait. Each may hold a message's memory, so that sockets are not read faster than blocks are copied."""


class Crew:
    """Does what one thread gives it, in any order."""

    def __init__(self, num_threads: int) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="baton-kv-copy")
        self._most = JOBS_A_THREAD * num_threads
        self._jobs: deque[Future[Any]] = deque()

    def start(self, work: Callable[[], T]) -> Future[T]:
        """Have work done soon; wait for the oldest if there is too much."""
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft()
        if len(self._jobs) >= self._most:
            self._jobs.popleft().exception()
        job = self._threads.submit(work)
        self._jobs.append(job)
        return job


def make_crew(num_threads: int) -> Crew | None:
    """Make a crew; None: who transfers does it all, which is faster than handing it to one other thread."""
    return Crew(num_threads) if num_threads > 1 else None
