"""What the processes of a stack hold at rest, sample after sample, and whether it grows.

Processes that were killed begin anew, so a series is a role's: the most that one of its processes holds. It grows if it
is higher in the last third of the samples than in the middle one, by more than a series of this kind wanders: the first
third is where caches fill and code is loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import psutil

from baton.errors import ConfigError
from baton.recording import Server
from baton.stack_processes import ROLES, Role, StackProcesses

MIN_SAMPLES = 9
_SETTLE_S = 30.0
_POLL_S = 0.2
_GROWTH = {"memory MiB": (1.15, 48), "descriptors": (1.1, 8), "threads": (1.0, 4), "tasks": (1.0, 4), "keys": (1.1, 8)}
"""What a series may rise by: a factor, and something beside it. What is not here may not rise at all."""


@dataclass(slots=True)
class Series:
    """One kind of thing that one role holds."""

    role: str
    kind: str
    values: list[float] = field(default_factory=list)

    def thirds(self) -> tuple[float, float, float]:
        """Return the median of each third."""
        size = max(len(self.values) // 3, 1)
        parts = (self.values[:size], self.values[size:-size] or self.values, self.values[-size:])
        first, middle, last = (float(median(part)) for part in parts)
        return first, middle, last

    @property
    def grows(self) -> bool:
        """Whether it does not stay where it was; nothing is said of a few samples."""
        if len(self.values) < MIN_SAMPLES:
            return False
        factor, beside = _GROWTH.get(self.kind, (1.0, 0))
        _, middle, last = self.thirds()
        return last > factor * middle + beside


class Resources:
    """All series of one stack."""

    def __init__(self, processes: StackProcesses) -> None:
        self._processes = processes
        self._series: dict[tuple[str, str], Series] = {}

    @property
    def series(self) -> Sequence[Series]:
        return list(self._series.values())

    async def sample(self, server: Server) -> None:
        """Take one sample, once the stack is at rest; what is still held after a while is what is counted."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SETTLE_S
        while any((held := await _held(server)).values()) and loop.time() < deadline:
            await asyncio.sleep(_POLL_S)
        for role in ROLES:
            self._sample_role(role)
        for kind, value in held.items():
            self._add("workers", kind, value)
        text = await server.text("/metrics")
        self._add("router", "tasks", _value(text, "baton:event_loop_tasks"))
        self._add("router", "open streams", _value(text, "baton:streams_open"))
        if (keys := await _num_keys(self._processes)) is not None:
            self._add("redis", "keys", keys)

    def _sample_role(self, role: Role) -> None:
        held = [_holds(process) for process in self._processes.of_role(role)]
        for kind in ("memory MiB", "descriptors", "threads"):
            if values := [each[kind] for each in held if kind in each]:
                self._add(role, kind, max(values))

    def _add(self, role: str, kind: str, value: float) -> None:
        self._series.setdefault((role, kind), Series(role, kind)).values.append(value)


def _holds(process: psutil.Process) -> dict[str, float]:
    with contextlib.suppress(psutil.Error), process.oneshot():
        info = process.memory_info()
        memory = (info.rss - info.shared) / 2**20  # a KV pool that others map fills for hours, up to its size
        return {"memory MiB": memory, "descriptors": process.num_fds(), "threads": process.num_threads()}
    return {}


async def _held(server: Server) -> dict[str, float]:
    """Sum what workers hold for requests."""
    sums = {"held blocks": 0.0, "leases": 0.0, "requests": 0.0}
    names = {
        "held blocks": 'baton:kv_blocks{.*state="held"',
        "leases": "baton:kv_leases_held",
        "requests": "baton:num_requests_running",
    }
    for worker in (await server.read("/debug/workers"))["workers"]:
        if worker["http"]:
            text = await server.text(f"{worker['http']}/metrics")
            for kind, name in names.items():
                sums[kind] += _value(text, name)
    return sums


def _value(text: str, name: str) -> float:
    """Sum the values of a series."""
    return sum(float(value) for value in re.findall(rf"^{name}.* (\S+)$", text, re.MULTILINE))


async def _num_keys(processes: StackProcesses) -> int | None:
    """Count the keys of the stack's Redis; None without one, or without the password that it was given."""
    password = os.environ.get("BATON_REDIS_PASSWORD")
    for process in processes.of_role("redis"):
        ports = [each.laddr.port for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        if ports and password:
            import redis.asyncio

            client = redis.asyncio.Redis(port=ports[0], password=password)
            try:
                return int(await client.dbsize())
            except redis.RedisError as error:
                raise ConfigError(f"BATON_REDIS_PASSWORD is not that of the stack's Redis: {error}.") from None
            finally:
                await client.aclose()
    return None
