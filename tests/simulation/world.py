"""Virtual time: one clock for a router's event loop and for all that happens around it. An hour takes as long as its events.

The router runs on `VirtualLoop`, unchanged. What it waits for, the world does: when the loop would sleep, the world's own
events come in their order, up to the loop's next timer, or until one of them has something for the router. A router that
is stopped is a world that goes on without it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Any

BEGIN_S = 1000.0
"""The clock's first value: 0 stands for "never" in places."""


class World:
    """All events outside the router, by time."""

    def __init__(self, *, remembers: bool) -> None:
        self.now = BEGIN_S
        self.history: list[str] = []
        """What happened, in order, if it is remembered."""
        self.violations: list[str] = []
        """What must never be."""
        self._remembers = remembers
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._wakes: list[Callable[[], None]] = []
        """What the router has to do, once it runs."""
        self._router_stopped_until = 0.0
        self.wake_router: Callable[[Callable[[], None]], Any] = lambda call: None

    def clock(self) -> float:
        """Return the time."""
        return self.now

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Have something happen later."""
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), call))

    def tell_router(self, call: Callable[[], None]) -> None:
        """Have the router's loop make a call as soon as it runs."""
        self._wakes.append(call)

    def stop_router(self, for_s: float) -> None:
        """Stop the router's process for a while."""
        self._router_stopped_until = self.now + for_s

    def note(self, who: str, what: str, *values: object) -> None:
        """Write a line of the history."""
        if self._remembers:
            text = " ".join(map(str, values))
            self.history.append(f"{self.now - BEGIN_S:9.4f}  {who:<10} {what} {text}")

    def violated(self, what: str) -> None:
        """Note what must never be."""
        self.violations.append(what)
        self.note("!", what)

    def advance(self, timeout_s: float | None) -> None:
        """Let time pass until the router has something to do: after so long at the latest."""
        until = self.now + timeout_s if timeout_s is not None else float("inf")
        while self._events:
            until = max(until, self._router_stopped_until)
            if self._events[0][0] > until:
                break
            if self._wakes and self.now >= self._router_stopped_until:
                break
            at, _, call = heapq.heappop(self._events)
            self.now = max(self.now, at)
            call()
        else:
            assert timeout_s is not None or self._wakes, "everybody waits for ever"
        if not self._wakes:
            self.now = until
        self.now = max(self.now, self._router_stopped_until)
        for call in self._wakes:
            self.wake_router(call)
        self._wakes.clear()


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop that reads the world's clock and never sleeps."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._selector = self
        world.wake_router = self.call_soon

    def time(self) -> float:
        return self._world.now

    def select(self, timeout_s: float | None) -> list[object]:
        """What a selector does when nobody writes."""
        self._world.advance(timeout_s)
        return []

    def _process_events(self, _event_list: list[object]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nothing is called from other threads."""
