"""What `baton bench serve` does with its loads: rate after rate, one server or two beside each other, or a search for a rate."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import uvloop

from baton.bench.goodput import Search, Targets
from baton.bench.loads import Load
from baton.bench.serve import Served, Server, drive, find
from baton.bench.serve_file import ServeFile
from baton.bench.serve_result import Result
from baton.bench.serve_table import table_lines
from baton.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured, apart from how requests look."""

    load_at: Callable[[float, int], Load]
    """A load at a rate, for servers with this longest context."""
    seed: str
    rates: Sequence[float] = (math.inf,)
    targets: Sequence[Targets] = ()
    search: Search | None = None
    """In place of `rates`."""
    num_runs: int = 6
    """Most runs of a search, for each pair of targets."""
    together: bool = False
    """Whether two servers are asked at the same time, else in turn."""


@dataclass(slots=True)
class Bench:
    """The servers, and what was found so far."""

    plan: Plan
    file: ServeFile
    servers: list[Served] = field(default_factory=list)
    results: list[tuple[Served, Result]] = field(default_factory=list)

    @property
    def num_failed(self) -> int:
        """Requests of all runs that failed."""
        return sum(result.num_failed for _, result in self.results)

    async def run(self, servers: Sequence[Server]) -> None:
        """Measure each rate, or search; print a block for each run, and a table at the end."""
        self.servers = [await find(server) for server in servers]
        for served in self.servers:
            print(f"{served.model} at {served.server.url}")
            if not served.ignores_eos:
                print("it cannot be told to go on after an end: answers may be shorter than asked for")
        print(f"prompts of --seed {self.plan.seed}", flush=True)
        if self.plan.search is not None:
            await self._search(self.plan.search)
        else:
            for rate in self.plan.rates:
                await self._at(rate)
        if len(self.results) > 1 or self.plan.targets:
            print("\n" + "\n".join(table_lines(self.file.runs)), flush=True)

    async def _at(self, rate: float) -> None:
        """Send the same load to each server."""
        load = self.plan.load_at(rate, min(served.max_len for served in self.servers))
        running = [drive(served, load, self.plan.targets) for served in self.servers]
        if self.plan.together:
            found = await asyncio.gather(*running)
            num_tokens = sum(result.client.num_tokens for result in found)
            for result in found:  # one process has asked them all
                result.client = dataclasses.replace(result.client, num_tokens=num_tokens)
        else:
            found = [await one for one in running]
        for served, result in zip(self.servers, found, strict=True):
            title = f"{served.server.label}, " if len(self.servers) > 1 else ""
            print(f"\n{title}" + "\n".join(result.lines()), flush=True)
            self.results.append((served, result))
            self.file.add(served, result)

    async def _search(self, search: Search) -> None:
        """Find the highest rate for each server and pair of targets; a run counts for all of these."""
        told = []
        for served in self.servers:
            one = dataclasses.replace(self, servers=[served])  # shares what was found
            for targets in self.plan.targets:
                for _ in range(self.plan.num_runs):
                    if (rate := search.next_rate(self._shares(served, targets))) is None:
                        break
                    await one._at(rate)
                told.append(f"{served.server.label}: {_verdict(search, self._shares(served, targets), targets)}")
        print("\n" + "\n".join(told), flush=True)

    def _shares(self, served: Served, targets: Targets) -> dict[float, float]:
        return {result.load.rate: targets.share(result.outcomes) for by, result in self.results if by is served}


def _verdict(search: Search, shares: dict[float, float], targets: Targets) -> str:
    held, failed = search.held(shares), search.failed(shares)
    if held is None:
        return f"less than {search.good_share:.0%} good at {search.low:g} requests/s already ({targets})"
    more = f"; {failed:g} is too many" if failed is not None else ", the most that was tried"
    return f"{search.good_share:.0%} good at {held:g} requests/s{more} ({targets})"


def run(plan: Plan, servers: Sequence[Server], file: ServeFile) -> Bench:
    """Run a plan to its end on an event loop of its own.

    Raises:
        ConfigError: a server does not answer.
    """
    if len({server.label for server in servers}) < len(servers):
        raise ConfigError(f"label={servers[0].label!r} is given to two servers. Give each --label one of its own.")
    bench = Bench(plan, file)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bench.run(servers))
    return bench
