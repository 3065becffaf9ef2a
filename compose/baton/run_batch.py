"""`baton run-batch`: answer a file of requests, line by line, with a server that runs or one of its own.

The output has a line for each of the input, as answers come. What is interrupted is taken up: lines that have an answer in
the output stay, those that failed and those that are missing are asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import orjson

from baton.config import EngineConfig
from baton.errors import BatonError, ConfigError
from baton.flags import as_arguments, to_flags
from baton.own_http import client_of
from baton.progress import Bar
from baton.router.batches.lines import BrokenLine, Line, answer_line, error_line, read_line, read_numbered
from baton.tied import tied

_MAX_LINE_NBYTES = 64 * 2**20
_LATER = (429, 503, 504)
_RETRY_S = (0.5, 30.0)
_MAX_TRIES = 8
"""Of a line that meets no answer at all, or that of a server with no room: then it has failed."""
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done."""

    source: Path
    target: Path
    at_once: int
    api_key: str | None = None


@dataclass(slots=True)
class Counts:
    """How lines ended."""

    answered: int = 0
    failed: int = 0
    kept: int = 0
    """Answered before, by an earlier run."""

    @property
    def total(self) -> int:
        return self.answered + self.failed + self.kept


async def run_batch(job: Job, url: str) -> Counts:
    """Answer every line that has no answer yet.

    Raises:
        ConfigError: the input cannot be read, has no lines, or the output cannot be written.
    """
    try:
        num_lines = sum(1 for _ in read_numbered(job.source, _MAX_LINE_NBYTES))
    except OSError as error:
        raise ConfigError(f"input_file={str(job.source)!r} is not valid: {error.strerror}.") from None
    if not num_lines:
        raise ConfigError(f"input_file={str(job.source)!r} is not valid: it has no lines.")
    headers = {} if job.api_key is None else {"authorization": f"Bearer {job.api_key}"}
    counts = Counts()
    limits = httpx.Limits(max_connections=job.at_once)
    with _continued(job.target) as (target, done):
        async with client_of(
            httpx.AsyncClient, url, base_url=url, headers=headers, timeout=None, limits=limits
        ) as client:
            with Bar(total=num_lines, desc="run-batch", unit=" lines") as bar:
                async for line, failed in _answers(job, client, done, counts):
                    target.write(line)
                    target.flush()
                    counts.failed += failed
                    counts.answered += not failed
                    bar.update(counts.total - bar.n)
    return counts


async def _answers(
    job: Job, client: httpx.AsyncClient, done: set[str], counts: Counts
) -> AsyncIterator[tuple[bytes, bool]]:
    """Give each line of the output, and whether it is a failure, as they come."""
    running: set[asyncio.Task[tuple[bytes, bool]]] = set()
    seen: set[str] = set()
    try:
        for number, raw in read_numbered(job.source, _MAX_LINE_NBYTES):
            try:
                line = read_line(number, raw, None, seen, _MAX_LINE_NBYTES)
            except BrokenLine as broken:
                yield error_line("run", number, broken.custom_id, broken.code, str(broken)), True
                continue
            if line.custom_id in done:
                counts.kept += 1
                continue
            running.add(asyncio.create_task(_answer(client, line)))
            if len(running) >= job.at_once:
                over, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in over:
                    yield task.result()
        while running:
            over, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in over:
                yield task.result()
    finally:
        for task in running:
            task.cancel()


async def _answer(client: httpx.AsyncClient, line: Line) -> tuple[bytes, bool]:
    delay_s, why = _RETRY_S[0], ""
    for _ in range(_MAX_TRIES):
        request_id = uuid.uuid4().hex
        try:
            answer = await client.post(line.url, json=line.body, headers={"x-request-id": request_id})
        except httpx.HTTPError as error:
            why = f"{type(error).__name__}: {error}"
        else:
            if answer.status_code not in _LATER:
                text = answer_line("run", line, answer.status_code, request_id, _json_of(answer))
                return text, answer.status_code != 200
            why = f"the server answered {answer.status_code}: {answer.text[:200]}"
            with contextlib.suppress(ValueError):
                delay_s = max(delay_s, float(answer.headers.get("retry-after", "0")))
        await asyncio.sleep(min(delay_s, _RETRY_S[1]))
        delay_s *= 2
    return error_line("run", line.number, line.custom_id, "no_answer", why), True


def _json_of(answer: httpx.Response) -> bytes:
    try:
        orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return orjson.dumps(answer.text[:4096])
    return answer.content


@contextlib.contextmanager
def _continued(file: Path) -> Iterator[tuple[BinaryIO, set[str]]]:
    """Open the output to go on with it, without what failed or is torn; give also whose answers it has."""
    done: set[str] = set()
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as kept:
            if file.exists():
                with open(file, "rb") as lines:
                    for line in lines:
                        if (custom_id := _answered(line)) is not None:
                            done.add(custom_id)
                            kept.write(line)
        beside.rename(file)
        with open(file, "ab") as target:
            yield target, done
            target.flush()
            os.fsync(target.fileno())
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ConfigError(f"output_file={str(file)!r} is not valid: {error.strerror}.") from None


def _answered(line: bytes) -> str | None:
    """Return whose good answer a line of the output is; None: it is none."""
    try:
        given = orjson.loads(line)
        is_good = line.endswith(b"\n") and given["response"]["status_code"] == 200
        return str(given["custom_id"]) if is_good else None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


@contextlib.asynccontextmanager
async def own_stack(engine: EngineConfig) -> AsyncIterator[str]:
    """Run `baton up` for as long as it is needed; give its address.

    Raises:
        BatonError: it ended before it was ready.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [*as_arguments(engine), *to_flags(port=port, max_queue_s=0.0)]
    command = tied([sys.executable, "-m", "baton.cli", "up", *flags])
    environment = {name: value for name, value in os.environ.items() if name != "BATON_API_KEY"}
    process = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            while not await _is_ready(client, url):
                if process.poll() is not None:
                    raise BatonError("The server ended before it was ready: its log above says why.")
                await asyncio.sleep(_POLL_S)
        yield url
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait)


async def _is_ready(client: httpx.AsyncClient, url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return (await client.get(f"{url}/ready")).status_code == 200
    return False


async def answer_file(job: Job, url: str | None, engine: EngineConfig) -> int:
    """Do the whole of it; return the exit status."""
    stack: Any = contextlib.nullcontext(url) if url is not None else own_stack(engine)
    async with stack as address:
        counts = await run_batch(job, address.removesuffix("/v1"))
    print(
        f"{counts.total} lines: {counts.answered} answered, {counts.failed} failed, {counts.kept} were answered before. "
        f"{job.target}"
    )
    return 1 if counts.failed else 0
