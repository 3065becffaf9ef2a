"""`baton chaos`: kills and stops worker processes of your own `baton up` under live streams, and compares every answer.

A first pass, undisturbed, gives the right answers. Then each round asks the same again, half of it over a prefill worker,
waits for a moment, and does one fault to one process: SIGKILL, or SIGSTOP and after some seconds SIGCONT. A stream that
ends with an error or breaks off is lost; one with another token is changed. Either makes the command end with 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import psutil
from rich.console import Console
from rich.table import Table

from baton.comparison import BOUNDS, compare, dtype_of, make_questions
from baton.errors import ConfigError
from baton.listener import is_loopback
from baton.recording import Answer, Question, Server, connected
from baton.stack_processes import ROLES, Role, StackProcesses

ANSWER_LEN = 96
STOP_S = 4.0
"""How long a process is stopped: longer than the silence after which a worker counts as lost."""
_BACK_S = 300.0
_POLL_S = 0.05
FAULTS = ("kill", "stop")
MOMENTS = ("half way", "first token", "sent")
"""Half of the streams have half their tokens; half have one; half are at the workers."""


@dataclass(slots=True)
class Round:
    """One fault, and what became of the streams."""

    role: Role | None = None
    """None: nothing is disturbed."""
    fault: str = ""
    moment: str = ""
    num_streams: int = 0
    lost: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    longest_pause_s: float = 0.0
    is_late: bool = False
    """The answers had come before the moment was seen."""

    def count(self, i: int, question: Question, answer: Answer, wanted: Answer, bound: float) -> None:
        """Judge one stream."""
        self.num_streams += 1
        self.longest_pause_s = max(self.longest_pause_s, answer.longest_pause_s)
        if answer.error is not None:
            self.lost.append(f"stream {i} after {len(answer.token_ids)} tokens: {answer.error}")
        elif difference := compare(question, answer, wanted, bound).difference:
            self.changed.append(f"stream {i}: {difference}")


@dataclass(slots=True)
class Moments:
    """How far the streams of a round are."""

    num_streams: int
    num_begun: int = 0
    num_half: int = 0
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def on_token(self, answer: Answer) -> None:
        """Count a stream that reaches a moment."""
        self.num_begun += len(answer.token_ids) == 1
        self.num_half += len(answer.token_ids) == ANSWER_LEN // 2
        self.moved.set()

    async def wait(self, moment: str, server: Server) -> None:
        """Return at the moment."""
        if moment == "sent":
            while not self.num_begun and await _num_at_workers(server) < self.num_streams // 2:
                await asyncio.sleep(_POLL_S)
            return
        while (self.num_begun if moment == "first token" else self.num_half) < self.num_streams // 2:
            self.moved.clear()
            await self.moved.wait()


@dataclass(frozen=True, slots=True)
class Chaos:
    """A stack, what is asked of it, and what is right."""

    server: Server
    processes: StackProcesses
    questions: Sequence[Question]
    wanted: Sequence[Answer]
    bound: float
    rng: random.Random

    async def run(self, planned: Round) -> None:
        """Run one round."""
        before = await live_workers(self.server)
        moments = Moments(len(self.questions))
        asking = asyncio.ensure_future(ask_all(self.server, self.questions, moments))
        waiting = asyncio.ensure_future(moments.wait(planned.moment, self.server))
        try:
            await asyncio.wait((asking, waiting), return_when=asyncio.FIRST_COMPLETED)
            planned.is_late = asking.done()
            async with self._disturbed(planned):
                answers = await asking
        finally:
            waiting.cancel()
            asking.cancel()
        for i, (question, answer, wanted) in enumerate(zip(self.questions, answers, self.wanted, strict=True)):
            planned.count(i, question, answer, wanted, self.bound)
        await self._wait_back(before, is_new=planned.fault == "kill")

    @contextlib.asynccontextmanager
    async def _disturbed(self, planned: Round) -> AsyncIterator[None]:
        """Do the fault; what was stopped goes on after a while, and before we leave."""
        assert planned.role is not None
        targets = self.processes.of_role(planned.role)
        if not targets:
            raise ConfigError(f"no {planned.role} runs: the stack is not whole.")
        target = self.rng.choice(targets)
        if planned.fault == "kill":
            target.kill()
            yield
            return
        target.suspend()
        going_on = asyncio.ensure_future(asyncio.sleep(STOP_S))
        going_on.add_done_callback(lambda _: _resume(target))
        try:
            yield
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await going_on
            _resume(target)

    async def _wait_back(self, before: Mapping[str, str], *, is_new: bool) -> None:
        """Wait until every worker is there again, one of them with a new engine process if one was killed."""
        deadline = time.monotonic() + _BACK_S
        while time.monotonic() < deadline:
            now = await live_workers(self.server)
            if before.keys() <= now.keys() and (now != before or not is_new):
                return
            await asyncio.sleep(_POLL_S)
        missing = ", ".join(sorted(before.keys() - now.keys())) or "what was killed"
        raise ConfigError(f"{missing} did not come back within {_BACK_S:.0f} s.")


async def chaos(url: str, api_key: str | None, num_rounds: int, num_streams: int, seed: int) -> int:
    """Run the rounds, print a table, and return the exit status.

    Raises:
        ConfigError: no `baton up` of ours listens there, or it does not recover.
    """
    parts = urlsplit(url)
    if not is_loopback(parts.hostname or ""):
        raise ConfigError(f"url={url!r} is not valid: only a `baton up` on this machine is disturbed.")
    processes = StackProcesses(parts.port or (443 if parts.scheme == "https" else 80))
    async with connected(url, api_key) as server:
        questions = (await make_questions(server, -(-num_streams // 2), ANSWER_LEN))[:num_streams]
        bound = BOUNDS[dtype_of((await server.read("/debug/workers"))["workers"])]
        quiet = Round()
        wanted = await ask_all(server, questions, Moments(len(questions)))
        for i, (question, answer) in enumerate(zip(questions, wanted, strict=True)):
            quiet.count(i, question, answer, answer, bound)
        rounds = [quiet]
        if not quiet.lost:
            runner = Chaos(server, processes, questions, wanted, bound, random.Random(seed))
            for planned in plan(processes, num_rounds):
                await runner.run(planned)
                rounds.append(planned)
        return report(server, rounds)


def plan(processes: StackProcesses, num_rounds: int) -> list[Round]:
    """Lay out rounds so that each role and fault comes before a moment comes again."""
    roles = [role for role in ROLES if processes.of_role(role)]
    cells = [Round(role, fault, moment) for moment in MOMENTS for role in roles for fault in FAULTS]
    return [Round(c.role, c.fault, c.moment) for c in itertools.islice(itertools.cycle(cells), num_rounds)]


async def ask_all(server: Server, questions: Sequence[Question], moments: Moments) -> list[Answer]:
    """Ask all at once; every other one over a prefill worker. Nothing is found in a cache."""
    salt = uuid.uuid4().hex
    headers: tuple[dict[str, str], ...] = ({"x-baton-pin": "path=remote"}, {})
    asked = (server.ask(each, headers[i % 2], salt, moments.on_token) for i, each in enumerate(questions))
    return list(await asyncio.gather(*asked))


async def live_workers(server: Server) -> dict[str, str]:
    """Return the incarnations of those that take requests, by name."""
    workers = (await server.read("/debug/workers"))["workers"]
    return {str(each["id"]): str(each["incarnation"]) for each in workers if each["state"] == "live"}


async def _num_at_workers(server: Server) -> int:
    workers = (await server.read("/debug/workers"))["workers"]
    return sum(each["in_flight"] for each in workers if "decode" in each["legs"])


def _resume(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # its keeper has killed it meanwhile
        process.resume()


def report(server: Server, rounds: Sequence[Round]) -> int:
    """Print what was done and what became of it; return the exit status."""
    console = Console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("role", "fault", "moment", "streams", "lost", "changed", "longest pause"):
        table.add_column(name, justify="left" if name in ("role", "fault", "moment") else "right")
    for each in rounds:
        moment = f"{each.moment}, late" if each.is_late else each.moment
        counts = (each.num_streams, len(each.lost), len(each.changed))
        table.add_row(each.role or "none", each.fault, moment, *map(str, counts), f"{each.longest_pause_s:.1f} s")
    console.print(f"{server.model} at {server.client.base_url}, answers of {ANSWER_LEN} tokens", soft_wrap=True)
    console.print(table)
    wrong = [(each, line) for each in rounds for line in (*each.lost, *each.changed)]
    for each, line in wrong[:10]:
        console.print(f"{each.role or 'none'}, {each.fault}, {each.moment}: {line}", soft_wrap=True, markup=False)
    if not wrong:
        console.print("Nothing was lost, nothing changed.")
    return 1 if wrong else 0
