"""`baton chaos`: kills and stops processes of your own `baton up` under live streams, and compares every answer.

A first pass, undisturbed, gives the right answers. Then each round asks the same again, half of it over a prefill worker,
waits for a moment, and does one fault to one process: SIGKILL, or SIGSTOP and after some seconds SIGCONT. A stream that
ends with an error or breaks off is lost; one with another token is changed. Either makes the command end with 1.

The one thing that ends streams is the end of the router that serves them: their clients see the connection break, and
those are counted apart, once their tokens are right so far. A Redis that is killed comes back empty.

With a length of time it goes on until then, and watches what the processes hold at rest: what grows makes it end with 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import psutil

from baton.chaos_report import report
from baton.chaos_round import Round
from baton.comparison import BOUNDS, dtype_of, make_questions
from baton.errors import ConfigError
from baton.listener import is_loopback
from baton.recording import Answer, Question, Server, connected
from baton.stack_processes import ROLES, StackProcesses
from baton.stack_resources import Resources

ANSWER_LEN = 96
STOP_S = 4.0
"""How long a process is stopped: longer than the silence after which a worker counts as lost."""
_BACK_S = 300.0
_POLL_S = 0.05
FAULTS = ("kill", "stop")
MOMENTS = ("half way", "first token", "sent")
"""Half of the streams have half their tokens; half have one; half are at the workers."""


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
            async with self._disturbed(planned) as target:
                answers = await asking
        finally:
            waiting.cancel()
            asking.cancel()
        for i, (question, answer, wanted) in enumerate(zip(self.questions, answers, self.wanted, strict=True)):
            planned.count(i, question, answer, wanted, self.bound)
        await self._wait_back(planned, target, before)

    @contextlib.asynccontextmanager
    async def _disturbed(self, planned: Round) -> AsyncIterator[psutil.Process]:
        """Do the fault; what was stopped goes on after a while, and before we leave."""
        assert planned.role is not None
        targets = self.processes.of_role(planned.role)
        if not targets:
            raise ConfigError(f"no {planned.role} runs: the stack is not whole.")
        target = self.rng.choice(targets)
        if planned.fault == "kill":
            target.kill()
            yield target
            return
        target.suspend()
        going_on = asyncio.ensure_future(asyncio.sleep(STOP_S))
        going_on.add_done_callback(lambda _: _resume(target))
        try:
            yield target
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await going_on
            _resume(target)

    async def _wait_back(self, planned: Round, target: psutil.Process, before: Mapping[str, str]) -> None:
        """Wait until what was killed has a successor, and the router has every worker and sees Redis."""
        assert planned.role is not None
        is_worker = planned.role not in ("router", "redis")
        deadline = time.monotonic() + _BACK_S
        while time.monotonic() < deadline:
            now: Mapping[str, str] = {}
            with contextlib.suppress(ConfigError):  # a router that begins
                if not await _is_cut_off(self.server):
                    now = await live_workers(self.server)
            if planned.fault == "stop":
                is_new = True
            elif is_worker:
                is_new = now != before
            else:
                is_new = any(each.pid != target.pid for each in self.processes.of_role(planned.role))
            if is_new and before.keys() <= now.keys():
                return
            await asyncio.sleep(_POLL_S)
        raise ConfigError(f"the {planned.role} did not come back within {_BACK_S:.0f} s.")


async def chaos(
    url: str,
    api_key: str | None,
    num_rounds: int,
    num_streams: int,
    seed: int,
    *,
    for_s: float | None = None,
    roles: Sequence[str] = (),
) -> int:
    """Run the rounds, or go on for so long, print tables, and return the exit status. `roles` are all if none is named.

    Raises:
        ConfigError: no `baton up` of ours listens there, or it does not recover; a role is none of it.
    """
    parts = urlsplit(url)
    if not is_loopback(parts.hostname or ""):
        raise ConfigError(f"url={url!r} is not valid: only a `baton up` on this machine is disturbed.")
    processes = StackProcesses(parts.port or (443 if parts.scheme == "https" else 80))
    resources = Resources(processes) if for_s is not None else None
    until = None if for_s is None else time.monotonic() + for_s
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
            planned = plan(processes, roles)
            for each in planned if until is not None else itertools.islice(planned, num_rounds):
                await runner.run(each)
                rounds.append(each)
                if resources is not None:
                    await resources.sample(server)
                if until is not None and time.monotonic() >= until:
                    break
        return report(f"{server.model} at {server.client.base_url}, answers of {ANSWER_LEN} tokens", rounds, resources)


def seconds_of(text: str) -> float:
    """Read a length of time as 90s, 30m or 8h.

    Raises:
        ConfigError: it is none.
    """
    number, unit = text[:-1], {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    if unit is None or not number.isascii() or not number.isdigit() or not int(number):
        raise ConfigError(
            f"--for {text!r} is not valid: it must be a number of seconds, minutes or hours, as 90s, 30m or 8h."
        )
    return float(int(number) * unit)


def plan(processes: StackProcesses, named: Sequence[str] = ()) -> Iterator[Round]:
    """Lay out rounds without end, so that each role and fault comes before a moment comes again."""
    roles = [role for role in ROLES if (not named or role in named) and processes.of_role(role)]
    if wrong := set(named) - set(roles):
        raise ConfigError(
            f"--role {sorted(wrong)[0]!r} is not valid: no process of this stack is one of {', '.join(ROLES)}."
        )
    while True:
        for moment, fault, role in itertools.product(MOMENTS, FAULTS, roles):
            yield Round(role, fault, moment)


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


async def _is_cut_off(server: Server) -> bool:
    """Whether the router hears nothing of its Redis."""
    lines = (await server.text("/metrics")).splitlines()
    return any(line.startswith("baton:registry_up{") and line.endswith(" 0.0") for line in lines)


async def _num_at_workers(server: Server) -> int:
    workers = (await server.read("/debug/workers"))["workers"]
    return sum(each["in_flight"] for each in workers if "decode" in each["legs"])


def _resume(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # its keeper has killed it meanwhile
        process.resume()
