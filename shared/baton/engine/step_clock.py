"""StepClock: how long steps take, measured where they run.

On a GPU the host launches the next step before it looks at the last one's result: by its own clock a step ends when the
next launch is done, which may take longer than the step. So the device itself notes when each step ends.
"""

from __future__ import annotations

import time

import torch

Mark = torch.cuda.Event | float
"""A moment: an event in a GPU's stream, or of the host's clock."""


class StepClock:
    """Marks moments on one device, in the order of the work that was launched there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Mark:
        """Mark the moment at which all that was launched until now is done."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, begin: Mark, end: Mark) -> float:
        """Return the time between two marks; waits for the second one."""
        if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
            end.synchronize()
            milliseconds: float = begin.elapsed_time(end)
            return milliseconds / 1e3
        assert isinstance(begin, float)
        assert isinstance(end, float)
        return end - begin
