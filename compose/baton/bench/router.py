"""`baton bench router`: what the router adds, measured with a fake worker, beside a direct connection to that worker.

Two parts. Streams: many live streams at once, each token checked, with the router's CPU a token and the longest gap
between a stream's tokens. Requests: an open loop of short requests, with the time to the first token and to the end.
The direct peer speaks the router's own messages to the same worker over ZeroMQ: no HTTP, no text. The router has one
core to itself; worker and client share the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import msgspec
import orjson
import zmq
import zmq.asyncio
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from baton.checkout import ROOT, import_from_checkout
from baton.messages import ChoiceStart, Hello, Outputs, Start, decode_to_router, encode
from baton.prompt import Prompt
from baton.protocol import SamplingParams
from baton.text import Tokenizer

fake_worker = import_from_checkout("tests.fake_worker", asked_by="baton bench router")

_FIRST_WORD, _VOCAB = 1, 95
"""The ASCII bytes of the tokenizer made here: every token has a text, so every token makes an event."""
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Timing:
    """One request as its client saw it."""

    sent_at: float
    token_times: list[float] = field(default_factory=list)
    ended_at: float = 0.0
    body: bytearray = field(default_factory=bytearray)

    @property
    def first_ms(self) -> float:
        """Time to the first token."""
        return 1000 * (self.token_times[0] - self.sent_at)

    @property
    def total_ms(self) -> float:
        """Time to the end."""
        return 1000 * (self.ended_at - self.sent_at)

    @property
    def gaps_ms(self) -> list[float]:
        """Times between tokens."""
        times = self.token_times
        return [1000 * (b - a) for a, b in itertools.pairwise(times)]


def run(
    *,
    streams: int = 1000,
    step_ms: float = 50.0,
    seconds: float = 10.0,
    rate: float = 200.0,
    json_file: Path | None = None,
) -> dict[str, Any]:
    """Measure both parts, print the table, write it as JSON if asked; return the figures."""
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.install()
    figures = asyncio.run(_run(streams, step_ms, seconds, rate))
    _print(figures)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


async def _run(streams: int, step_ms: float, seconds: float, rate: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        model = make_tokenizer(Path(folder) / "bench")
        cores = sorted(os.sched_getaffinity(0))
        others = set(cores[1:]) or set(cores)
        os.sched_setaffinity(0, others)
        figures: dict[str, Any] = {"streams": {}, "requests": {}, "cores": len(cores)}
        figures["noise"] = _measure_noise(cores[0])
        async with _processes(model, step_ms, cores[0], others) as (endpoint, port, pid):
            figures["streams"] = await _measure_streams(model, endpoint, port, pid, streams, step_ms, seconds)
        async with _processes(model, 2.0, cores[0], others) as (endpoint, port, pid):
            figures["requests"] = await _measure_requests(endpoint, port, pid, rate, seconds)
        os.sched_setaffinity(0, set(cores))
        return figures


def _measure_noise(core: int) -> dict[str, float]:
    """Return what the machine itself adds on the router's core before anything runs: how late a sleep of 1 ms ends."""
    program = (
        f"import os, time; os.sched_setaffinity(0, {{{core}}}); late = []\n"
        "for _ in range(1500):\n"
        "    began = time.perf_counter(); time.sleep(0.001); late.append(time.perf_counter() - began - 0.001)\n"
        "late.sort(); print(1e3 * late[750], 1e3 * late[1485], 1e3 * late[-1])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    p50, p99, highest = map(float, result.stdout.split())
    return {"p50_ms": p50, "p99_ms": p99, "max_ms": highest}


# -- processes ------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _processes(model: Path, step_ms: float, core: int, others: set[int]) -> AsyncIterator[tuple[str, int, int]]:
    """Start a fake worker and a router; return the worker's endpoint, the router's port and its process id."""
    settings = fake_worker.FakeSettings(
        model_name=model.name, vocab_size=_VOCAB, first_word=_FIRST_WORD, step_ms=step_ms, prefill_rate=0.0
    )
    worker = subprocess.Popen(
        [sys.executable, "-m", fake_worker.__name__, msgspec.json.encode(settings).decode()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    endpoint = worker.stdout.readline().strip()
    port = random.randint(20_000, 40_000)
    config = {"model": str(model), "worker": [endpoint], "port": port}
    router = subprocess.Popen([sys.executable, "-m", "baton.router.server", json.dumps(config)])
    try:
        await _until_ready(port)
        for thread in os.listdir(f"/proc/{router.pid}/task"):
            os.sched_setaffinity(int(thread), {core})
        os.sched_setaffinity(worker.pid, others)
        yield endpoint, port, router.pid
    finally:
        for process in (router, worker):
            process.terminate()
        for process in (router, worker):
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def _until_ready(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            if b" 200 " in answer.split(b"\r\n", 1)[0]:
                return
        await asyncio.sleep(0.1)
    raise RuntimeError("the router did not become ready in 20 s")


def make_tokenizer(folder: Path) -> Path:
    """Write a small byte-level tokenizer."""
    tokenizer = HFTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog and some other words"] * 4, trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{%- for m in messages -%}{{- m.content + '\\n' -}}{%- endfor -%}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": template}))
    return folder


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


# -- clients --------------------------------------------------------------------------------------------------


class _HttpStream(asyncio.Protocol):
    """One streamed request, read as raw bytes: the client must cost less than what it measures."""

    def __init__(self, body: bytes, done: asyncio.Future[Timing]) -> None:
        self._request = (
            b"POST /v1/completions HTTP/1.1\r\nhost: bench\r\nconnection: close\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        self._done = done
        self._timing = Timing(0.0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._timing.sent_at = time.perf_counter()
        cast(asyncio.Transport, transport).write(self._request)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        timing = self._timing
        timing.token_times += [now] * data.count(b'"finish_reason":')
        timing.body += data
        if timing.ended_at == 0.0 and b"data: [DONE]" in data:
            timing.ended_at = now

    def connection_lost(self, _error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(self._timing)


async def _http_stream(port: int, prompt: Sequence[int], num_tokens: int) -> Timing:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Timing] = loop.create_future()
    body = orjson.dumps({"prompt": list(prompt), "max_tokens": num_tokens, "stream": True, "ignore_eos": True})
    began = time.perf_counter()
    await loop.create_connection(lambda: _HttpStream(body, done), "127.0.0.1", port)
    timing = await done
    timing.sent_at = began
    return timing


class _Direct:
    """The same requests without a router: Start in, tokens out."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(endpoint)
        self._open: dict[str, tuple[Timing, asyncio.Future[Timing]]] = {}
        self._task = asyncio.get_running_loop().create_task(self._read())

    async def stream(self, prompt: Sequence[int], num_tokens: int) -> Timing:
        request_id = uuid.uuid4().hex
        done: asyncio.Future[Timing] = asyncio.get_running_loop().create_future()
        timing = Timing(time.perf_counter())
        self._open[request_id] = timing, done
        params = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
        start = Start(request_id, 0, "decode", Prompt(list(prompt)), [ChoiceStart(0, [])], params, 0)
        await self._socket.send(encode(start))
        return await done

    async def _read(self) -> None:
        await self._socket.send(encode(Hello("bench")))
        while True:
            message = decode_to_router(await self._socket.recv())
            now = time.perf_counter()
            for token in message.tokens if isinstance(message, Outputs) else ():
                timing, done = self._open[token.request_id]
                timing.token_times.append(now)
                if token.finish_reason is not None:
                    timing.ended_at = now
                    done.set_result(timing)
                    del self._open[token.request_id]

    def close(self) -> None:
        self._task.cancel()
        self._context.destroy(linger=0)


# -- measurements ---------------------------------------------------------------------------------------------


def _prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(_FIRST_WORD, _VOCAB) for _ in range(length)]


async def _measure_streams(
    model: Path, endpoint: str, port: int, pid: int, count: int, step_ms: float, seconds: float
) -> dict[str, Any]:
    rng = random.Random(0)
    num_tokens = int(seconds * 1000 / step_ms)
    prompts = [_prompt(rng, 64) for _ in range(count)]
    direct = _Direct(endpoint)
    peers = await asyncio.gather(*(direct.stream(prompt, num_tokens) for prompt in prompts))
    direct.close()
    tasks = []
    for i, prompt in enumerate(prompts):
        tasks.append(asyncio.create_task(_http_stream(port, prompt, num_tokens)))
        if i % 20 == 19:
            await asyncio.sleep(0.02)
    await asyncio.sleep(1.0)
    began, cpu = time.perf_counter(), _cpu_s(pid)
    await asyncio.sleep(max(seconds - 4.0, 1.0))
    ended, cpu = time.perf_counter(), _cpu_s(pid) - cpu
    timings = await asyncio.gather(*tasks)
    in_window = sum(sum(began <= at < ended for at in timing.token_times) for timing in timings)
    tokenizer = Tokenizer(model)
    settings = fake_worker.FakeSettings(vocab_size=_VOCAB, first_word=_FIRST_WORD)
    wrong = sum(
        _text_of(bytes(timing.body)) != _expected_text(tokenizer, prompt, num_tokens, settings)
        for timing, prompt in zip(timings, prompts, strict=True)
    )
    gaps = sorted(gap for timing in timings for gap in timing.gaps_ms)
    direct_gaps = sorted(gap for timing in peers for gap in timing.gaps_ms)
    return {
        "streams": count,
        "tokens": count * num_tokens,
        "tokens_per_s": in_window / (ended - began),
        "streams_wrong": wrong,
        "cpu_us_per_token": 1e6 * cpu / max(in_window, 1),
        "cpu_share": cpu / (ended - began),
        "gap_p50_ms": _at(gaps, 0.5),
        "gap_p99_ms": _at(gaps, 0.99),
        "gap_max_ms": gaps[-1],
        "direct_gap_p50_ms": _at(direct_gaps, 0.5),
        "direct_gap_p99_ms": _at(direct_gaps, 0.99),
        "direct_gap_max_ms": direct_gaps[-1],
    }


def _text_of(body: bytes) -> str:
    """Return the text that a stream carried."""
    text = ""
    for line in body.split(b"\n"):
        if line.startswith(b'data: {"id"'):
            choices = orjson.loads(line[6:])["choices"]
            text += choices[0]["text"] if choices else ""
    return text


def _expected_text(tokenizer: Tokenizer, prompt: Sequence[int], num_tokens: int, settings: Any) -> str:
    stream = tokenizer.new_stream(prompt)
    return (
        "".join(map(stream.push, fake_worker.expected_tokens(prompt, num_tokens, settings=settings))) + stream.flush()
    )


async def _measure_requests(endpoint: str, port: int, pid: int, rate: float, seconds: float) -> dict[str, Any]:
    rng = random.Random(1)
    arrivals, at = [], 0.0
    while (at := at + rng.expovariate(rate)) < seconds:
        arrivals.append((at, _prompt(rng, 256)))
    for prompt in [_prompt(rng, 256) for _ in range(50)]:  # warm both ways up
        await _http_stream(port, prompt, 2)
    direct = _Direct(endpoint)
    peers = await _open_loop(arrivals, lambda prompt: direct.stream(prompt, 16))
    direct.close()
    cpu = _cpu_s(pid)
    timings = await _open_loop(arrivals, lambda prompt: _http_stream(port, prompt, 16))
    cpu = _cpu_s(pid) - cpu
    figures: dict[str, Any] = {
        "requests": len(timings),
        "rate": rate,
        "failed": sum(len(timing.token_times) != 16 for timing in timings),
        "cpu_us_per_request": 1e6 * cpu / len(timings),
    }
    complete = [timing for timing in timings if len(timing.token_times) == 16]
    for name in ("first", "total"):
        read = attrgetter(f"{name}_ms")
        ours, theirs = sorted(map(read, complete)), sorted(map(read, peers))
        for share in (0.5, 0.99):
            key = f"{name}_p{int(share * 100)}_ms"
            figures[key] = _at(ours, share)
            figures[f"direct_{key}"] = _at(theirs, share)
            figures[f"added_{key}"] = _at(ours, share) - _at(theirs, share)
    return figures


async def _open_loop(arrivals: Sequence[tuple[float, list[int]]], send: Any) -> list[Timing]:
    """Send each request at its time, whatever became of the others."""
    began, tasks = time.perf_counter(), []
    for at, prompt in arrivals:
        delay = began + at - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        tasks.append(asyncio.create_task(send(prompt)))
    return list(await asyncio.gather(*tasks))


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def _print(figures: dict[str, Any]) -> None:
    console = Console(width=100)
    s, r, noise = figures["streams"], figures["requests"], figures["noise"]
    console.print(
        f"The machine's own delay on the router's core, idle (a sleep of 1 ms ends late by): p50 {noise['p50_ms']:.2f}, "
        f"p99 {noise['p99_ms']:.2f}, most {noise['max_ms']:.2f} ms"
    )
    table = Table("live streams", "router", "direct", title=f"{s['streams']} streams, {s['tokens_per_s']:.0f} tokens/s")
    table.add_row("streams with a wrong, lost or repeated token", str(s["streams_wrong"]), "")
    table.add_row("router CPU a token, µs", f"{s['cpu_us_per_token']:.1f}", "")
    table.add_row("router's share of a core", f"{100 * s['cpu_share']:.0f} %", "")
    for key in ("p50", "p99", "max"):
        table.add_row(f"gap between tokens, {key}, ms", f"{s[f'gap_{key}_ms']:.1f}", f"{s[f'direct_gap_{key}_ms']:.1f}")
    console.print(table)
    table = Table(
        "requests", "router", "direct", "added", title=f"{r['rate']:.0f} requests/s, {r['requests']} requests"
    )
    for name, label in (("first", "first token"), ("total", "whole answer")):
        for share in ("p50", "p99"):
            key = f"{name}_{share}_ms"
            table.add_row(
                f"{label}, {share}, ms", f"{r[key]:.2f}", f"{r[f'direct_{key}']:.2f}", f"{r[f'added_{key}']:.2f}"
            )
    table.add_row("failed", str(r["failed"]), "", "")
    table.add_row("router CPU a request (16 tokens), µs", f"{r['cpu_us_per_request']:.0f}", "", "")
    console.print(table)
