"""A worker without a model: the real messages, made-up tokens. For the router's tests and for `baton bench router`.

Its tokens are a function of the prompt, the choice and the position, so any fake worker goes on where another one died,
and a reader can tell every wrong, lost or repeated token. One thread, one loop: receive, step, send.

    python -m tests.fake_worker '{"worker_id": "d0", "legs": ["decode"], "control": "tcp://127.0.0.1:5701"}'
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import zmq

from baton.block_hash import cache_root, hash_blocks
from baton.messages import (
    LOAD_INTERVAL_S,
    ROUTER_SILENCE_S,
    BadMessage,
    Cancel,
    Command,
    Computed,
    Done,
    Ended,
    Hello,
    Leg,
    LegError,
    Legs,
    Load,
    ModelFacts,
    OpenLeg,
    Outputs,
    Start,
    Token,
    TokenLogprobs,
    ToRouter,
    Transfer,
    Welcome,
    WorkerInfo,
    decode_to_worker,
    encode,
    write_rows,
)
from baton.registry import RENEW_S, BlockLog, Registry, RegistryDown

SNAPSHOT_EVERY = 1_000
"""Log entries between snapshots."""


class FakeSettings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How a fake worker behaves."""

    worker_id: str = "d0"
    legs: tuple[Leg, ...] = ("decode",)
    control: str = "tcp://127.0.0.1:0"
    model_name: str = "fake"
    layout: str = "fake-layout"
    max_model_len: int = 8192
    vocab_size: int = 400
    first_word: int = 5
    """The lowest token id that it says; those below are special."""
    last_word: int = 0
    """The id above the highest that it says; 0: the vocabulary's size."""
    eos_token_id: int = 1
    block_size: int = 16
    num_blocks: int = 100_000
    cache_key: str = ""
    redis_url: str | None = None
    step_ms: float = 5.0
    prefill_rate: float = 100_000.0
    """Prompt tokens a second; 0: at once."""
    transfer_ms: float = 1.0
    num_places: int = 0
    """Choices that get a token in one step, those that came first; 0: all."""
    answer_len: int = 0
    """Tokens after which it ends by itself; 0: only max_tokens ends it."""
    compute_despite_ticket: bool = False
    """Behave as if every fetch failed: compute the prompt, and say its first token too."""
    fail_kind: str = ""
    """End every request with this error."""
    fail_retryable: bool = True
    wrong_token_at: int = -1
    """Say another token than the others would at this position of the answer."""
    die_after_tokens: int = 0
    """Kill the process after so many tokens."""
    drop_starts: int = 0
    """Take no notice of so many Starts, as if they had been lost on the way."""
    drop_cancels: bool = False
    """Take no notice of any Cancel."""
    max_sleep: int = 1
    """The deepest level of sleep that it knows."""
    script_ids: tuple[int, ...] = ()
    """Tokens that it says in place of made-up ones."""

    @property
    def words(self) -> tuple[int, int]:
        """Return the range of ids that it says."""
        return self.first_word, self.last_word or self.vocab_size


@dataclass(slots=True, eq=False)
class _Running:
    """One choice that it answers."""

    request: _Request
    choice: int
    num_emitted: int
    is_first: bool = True


@dataclass(slots=True, eq=False)
class _Request:
    start: Start
    router: bytes
    ready_at: float
    crc: int
    num_cached: int
    choices: list[_Running] = field(default_factory=list)
    began_at: float = field(default_factory=time.monotonic)


def token_at(crc: int, choice: int, position: int, low: int, high: int) -> int:
    """Return the token that every fake worker says there."""
    return low + zlib.crc32(b"%d %d" % (choice, position), crc) % (high - low)


def prompt_crc(token_ids: Sequence[int]) -> int:
    """Return what an answer depends on."""
    return zlib.crc32(b",".join(b"%d" % token_id for token_id in token_ids))


def expected_tokens(
    token_ids: Sequence[int], num_tokens: int, *, choice: int = 0, settings: FakeSettings | None = None
) -> list[int]:
    """Return the answer that fake workers give."""
    settings = settings or FakeSettings()
    crc = prompt_crc(token_ids)
    return [token_at(crc, choice, i, *settings.words) for i in range(num_tokens)]


class FakeWorker:
    """A decode or prefill worker that computes nothing."""

    def __init__(self, settings: FakeSettings) -> None:
        self.settings = settings
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, 100_000)
        self._socket.bind(settings.control)
        endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.info = WorkerInfo(
            worker_id=settings.worker_id,
            incarnation=os.urandom(8).hex(),
            legs=settings.legs,
            control=endpoint,
            kv="tcp://127.0.0.1:1" if "prefill" in settings.legs else "",
            layout=settings.layout,
            num_places=settings.num_places,
            model=ModelFacts(
                name=settings.model_name,
                max_model_len=settings.max_model_len,
                vocab_size=settings.vocab_size,
                block_size=settings.block_size,
                eos_token_ids=(settings.eos_token_id,),
                cache_parts=(settings.model_name, settings.layout),
            ),
        )
        self._is_asleep = False
        self._routers: dict[bytes, float] = {}
        self._wants_blocks: dict[bytes, bool] = {}
        self._requests: dict[str, _Request] = {}
        self._cancelled: dict[str, int] = {}
        self._log = BlockLog(settings.worker_id, self.info.incarnation)
        self._cached: set[bytes] = set()
        self._stored: list[bytes] = []
        self._ended: dict[bytes, list[Ended]] = {}
        self._transfers: dict[bytes, list[Transfer]] = {}
        self._computed: dict[bytes, list[Computed]] = {}
        self._num_steps = self._num_starts = 0
        self._num_tokens = 0
        self.is_draining = False
        self.is_over = False

    # -- the loop -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `is_over`."""
        step_s = self.settings.step_ms / 1000
        next_step = next_load = time.monotonic()
        while not self.is_over:
            now = time.monotonic()
            timeout = max(min(next_step if self._requests else next_load, next_load) - now, 0.0)
            if self._socket.poll(int(timeout * 1000) + (1 if timeout % 0.001 else 0)):
                self._receive()
            now = time.monotonic()
            for router in [each for each, heard_at in self._routers.items() if now - heard_at > ROUTER_SILENCE_S]:
                self._forget_router(router)
            if self._requests and now >= next_step:
                self._step(now)
                next_load = now + LOAD_INTERVAL_S
                next_step = max(next_step + step_s, now)
            elif not self._requests:
                next_step = now
            if now >= next_load:
                self._report()
                next_load = now + LOAD_INTERVAL_S
        self._socket.close()
        self._context.destroy(linger=0)

    def drain(self) -> None:
        """Hand everything back, as a worker does that is asked to end."""
        self.is_draining = True
        for request in list(self._requests.values()):
            self._fail(request, "draining", retryable=True)
        self._report()

    def _receive(self) -> None:
        for _ in range(1000):
            try:
                router, frame = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode_to_worker(frame)
            except BadMessage:
                continue
            self._routers[router] = time.monotonic()
            if isinstance(message, Hello):
                self._wants_blocks.setdefault(router, False)
                if message.wants_blocks and not self._wants_blocks[router]:
                    self._send(router, self._log.snapshot())
                self._wants_blocks[router] = message.wants_blocks
                self._send(router, Welcome(self.info, self._load()))
                if message.number:
                    self._answer_call(router, message)
            elif isinstance(message, Start):
                self._start(router, message)
            elif isinstance(message, Command):
                self._obey(router, message)
            elif isinstance(message, Cancel):
                self._cancel(message)

    def _obey(self, router: bytes, command: Command) -> None:
        """Do what an admin asks; a sleep does not wait for what runs."""
        error = ""
        if command.order == "reset_prefix_cache":
            evicted, self._cached = list(self._cached), set()
            self._send(router, self._log.entry([], evicted))
        elif command.order == "sleep" and command.level > self.settings.max_sleep:
            error = f"level={command.level} is not served"
        else:
            self._is_asleep = command.order == "sleep"
        self._send_outputs(router, [])
        self._send(router, Done(self.info.incarnation, command.number, error))

    def _answer_call(self, router: bytes, hello: Hello) -> None:
        """End what the router does not name, and name what it has."""
        named = {(leg.request_id, leg.epoch) for leg in hello.legs}
        ours = [request for request in self._requests.values() if request.router == router]
        for request in ours:
            if (request.start.request_id, request.start.epoch) not in named:
                del self._requests[request.start.request_id]
        self._send_outputs(router, [])
        legs = [
            OpenLeg(request.start.request_id, request.start.epoch, [running.choice for running in request.choices])
            for request in self._requests.values()
            if request.router == router
        ]
        self._send(router, Legs(self.info.incarnation, hello.number, legs))

    # -- requests -----------------------------------------------------------------------------------------

    def _start(self, router: bytes, start: Start) -> None:
        settings = self.settings
        self._num_starts += 1
        if self._num_starts <= settings.drop_starts:
            return
        if start.epoch <= self._cancelled.get(start.request_id, -1):
            return
        crc = prompt_crc(start.prompt.token_ids)
        hashes: list[bytes] = []
        root = cache_root(settings.cache_key.encode(), *self.info.model.cache_parts, start.salt)
        hash_blocks(root, hashes, start.prompt.token_ids, settings.block_size, start.prompt.spans)
        num_known = next((i for i, block in enumerate(hashes) if block not in self._cached), len(hashes))
        num_cached = min(num_known * settings.block_size, len(start.prompt) - 1)
        self._stored += [block for block in hashes if block not in self._cached]
        self._cached.update(hashes)
        compute_s = (len(start.prompt) - num_cached) / settings.prefill_rate if settings.prefill_rate else 0.0
        if start.ticket is not None and start.leg == "decode":
            compute_s += settings.transfer_ms / 1000
        request = _Request(start, router, time.monotonic() + compute_s, crc, num_cached)
        fetched = start.leg == "decode" and start.ticket is not None and not settings.compute_despite_ticket
        for choice in start.choices:
            if start.leg == "prefill" and choice.index != 0:
                continue
            num_emitted = len(choice.emitted)
            if fetched and choice.index == 0:
                num_emitted = max(num_emitted, 1)  # the first token came with the KV
            if choice.index == 0 and num_emitted == 1 and self._finish_reason(request, 1) and not choice.emitted:
                continue
            request.choices.append(_Running(request, choice.index, num_emitted))
        if self.is_draining or settings.fail_kind:
            self._requests[start.request_id] = request
            self._fail(request, settings.fail_kind or "draining", retryable=settings.fail_retryable)
            self._report()
            return
        if fetched and start.ticket is not None:
            transfer = Transfer(
                start.request_id,
                start.epoch,
                start.ticket.source_incarnation,
                len(start.prompt),
                1,
                0.01,
                settings.transfer_ms / 1000,
            )
            self._transfers.setdefault(router, []).append(transfer)
        if request.choices:
            self._requests[start.request_id] = request

    def _cancel(self, cancel: Cancel) -> None:
        if self.settings.drop_cancels:
            return
        request = self._requests.get(cancel.request_id)
        if cancel.choice is not None:
            if request is not None and request.start.epoch == cancel.epoch:
                request.choices = [choice for choice in request.choices if choice.choice != cancel.choice]
                self._drop_if_done(request)
            return
        self._cancelled[cancel.request_id] = max(cancel.epoch, self._cancelled.get(cancel.request_id, -1))
        if len(self._cancelled) > 100_000:
            del self._cancelled[next(iter(self._cancelled))]
        if request is not None and request.start.epoch <= cancel.epoch:
            del self._requests[cancel.request_id]

    def _fail(self, request: _Request, kind: str, *, retryable: bool) -> None:
        self._requests.pop(request.start.request_id, None)
        error = LegError(kind, f"this worker was told to fail: {kind}", retryable)
        ended = Ended(request.start.request_id, request.start.epoch, error)
        self._ended.setdefault(request.router, []).append(ended)

    def _drop_if_done(self, request: _Request) -> None:
        if not request.choices:
            self._requests.pop(request.start.request_id, None)

    # -- steps --------------------------------------------------------------------------------------------

    def _step(self, now: float) -> None:
        """Say one token of each choice whose prompt is there."""
        self._num_steps += 1
        tokens: dict[bytes, list[Token]] = {}
        places = self.settings.num_places or 1 << 30
        for request in list(self._requests.values()):
            if request.ready_at > now or len(request.choices) > places:
                continue
            places -= len(request.choices)
            out = tokens.setdefault(request.router, [])
            for running in list(request.choices):
                token = self._token(running)
                out.append(token)
                if token.finish_reason is not None or request.start.leg == "prefill":
                    request.choices.remove(running)
            self._drop_if_done(request)
        for router in tokens.keys() | self._ended.keys():
            self._send_outputs(router, tokens.get(router, []))
        self._send_blocks()
        dies = self.settings.die_after_tokens
        if dies and self._num_tokens >= dies:
            os.kill(os.getpid(), signal.SIGKILL)

    def _token(self, running: _Running) -> Token:
        settings, start = self.settings, running.request.start
        at = running.num_emitted
        running.num_emitted += 1
        self._num_tokens += 1
        finish = self._finish_reason(running.request, running.num_emitted)
        if settings.script_ids:
            token_id = settings.script_ids[at % len(settings.script_ids)]
        else:
            token_id = token_at(running.request.crc, running.choice, at, *settings.words)
        if finish == "stop":
            token_id = settings.eos_token_id
        if at == settings.wrong_token_at:
            low, high = settings.words
            token_id = low + (token_id + 1 - low) % (high - low)
        logprobs = prompt_logprobs = None
        if start.params.num_top is not None:
            logprobs = self._logprobs(token_id, start.params.num_top)
            for named in start.params.logprob_token_ids or ():
                logprobs.token_ids.append(named)
                logprobs.logprobs.append(-float(named))
                logprobs.ranks.append(0)
        if start.params.prompt_logprobs is not None and running.is_first and running.choice == 0:
            num = start.params.prompt_logprobs
            of_all = (self._logprobs(token_id, num) for token_id in start.prompt.token_ids[1:])
            prompt_logprobs = write_rows([None, *of_all])
        first, running.is_first = running.is_first, False
        if first and running.choice == start.choices[0].index:
            self._computed.setdefault(running.request.router, []).append(
                Computed(
                    start.request_id,
                    start.epoch,
                    len(start.prompt) - running.request.num_cached,
                    running.request.num_cached,
                    0.0,
                    time.monotonic() - running.request.began_at,
                )
            )
        return Token(
            start.request_id,
            start.epoch,
            running.choice,
            len(start.prompt) + at,
            token_id,
            "stop" if finish == "stop" else "length" if finish else None,
            None,
            running.request.num_cached if first else 0,
            0,
            logprobs,
            prompt_logprobs,
        )

    def _finish_reason(self, request: _Request, num_emitted: int) -> str | None:
        params = request.start.params
        if self.settings.answer_len and num_emitted >= self.settings.answer_len and not params.ignore_eos:
            return "stop"
        room = self.settings.max_model_len - len(request.start.prompt)
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        return "length" if num_emitted >= limit else None

    def _logprobs(self, token_id: int, num: int) -> TokenLogprobs:
        others = [(self.settings.first_word + i) % self.settings.vocab_size for i in range(num)]
        return TokenLogprobs([token_id, *others], [-0.5 - i for i in range(num + 1)], [1, *range(1, num + 1)])

    # -- what it says -------------------------------------------------------------------------------------

    def _load(self) -> Load:
        waiting = sum(
            len(request.start.prompt) for request in self._requests.values() if request.ready_at > time.monotonic()
        )
        num_blocks = self.settings.num_blocks
        num_choices = sum(len(request.choices) for request in self._requests.values())
        num_running = min(num_choices, self.settings.num_places or num_choices)
        return Load(
            num_running=num_running,
            num_waiting=num_choices - num_running,
            waiting_tokens=waiting,
            kv_free_blocks=num_blocks,
            kv_total_blocks=num_blocks,
            prefill_rate=self.settings.prefill_rate,
            decode_step_ms=self.settings.step_ms,
            num_steps=self._num_steps,
            draining=self.is_draining,
            asleep=self._is_asleep,
        )

    def load(self) -> Load:
        """Return the load, as announced."""
        return self._load()

    def _report(self) -> None:
        for router in list(self._routers):
            self._send_outputs(router, [])
        self._send_blocks()

    def _send_outputs(self, router: bytes, tokens: list[Token]) -> None:
        ended = self._ended.pop(router, [])
        transfers = self._transfers.pop(router, [])
        computed = self._computed.pop(router, [])
        info = self.info
        self._send(router, Outputs(info.worker_id, info.incarnation, tokens, self._load(), ended, transfers, computed))

    def _send_blocks(self) -> None:
        if not self._stored:
            return
        entry = self._log.entry(self._stored, [])
        self._stored = []
        for router, wants in list(self._wants_blocks.items()):
            if wants:
                self._send(router, entry)
        announcer = self.announcer
        if announcer is not None:
            announcer.append(entry)
            if entry.sequence % SNAPSHOT_EVERY == 0:
                announcer.append(self._log.snapshot())

    announcer: Announcer | None = None

    def _send(self, router: bytes, message: ToRouter) -> None:
        try:
            self._socket.send_multipart((router, encode(message)), zmq.NOBLOCK)
        except zmq.ZMQError:
            self._forget_router(router)

    def _forget_router(self, router: bytes) -> None:
        self._routers.pop(router, None)
        self._wants_blocks.pop(router, None)
        for request in [r for r in self._requests.values() if r.router == router]:
            del self._requests[request.start.request_id]


class Announcer:
    """Keeps the lease and writes the block log, in a thread of its own."""

    def __init__(self, worker: FakeWorker, url: str) -> None:
        self._worker = worker
        self._url = url
        self._entries: list[object] = []
        self._lock = threading.Lock()
        self.is_over = False

    def append(self, entry: object) -> None:
        """Queue an entry of the log."""
        with self._lock:
            self._entries.append(entry)

    def run(self) -> None:
        """Announce until `is_over`."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        registry = Registry(self._url, self._worker.settings.model_name)
        renew_at = 0.0
        while not self.is_over:
            with self._lock:
                entries, self._entries = self._entries, []
            with contextlib.suppress(RegistryDown):
                if time.monotonic() >= renew_at:
                    await registry.announce(self._worker.info, self._worker.load())
                    renew_at = time.monotonic() + RENEW_S
                for entry in entries:
                    if getattr(entry, "is_snapshot", False):
                        await registry.write_snapshot(entry)  # type: ignore[arg-type]
                    else:
                        await registry.append_blocks(entry)  # type: ignore[arg-type]
            await asyncio.sleep(0.02)
        with contextlib.suppress(RegistryDown):
            await registry.withdraw(self._worker.info)
        await registry.close()


def main() -> None:
    """Run one fake worker; its settings are JSON in the first argument. Prints its endpoint."""
    settings = msgspec.json.decode(sys.argv[1] if len(sys.argv) > 1 else "{}", type=FakeSettings)
    worker = FakeWorker(settings)
    announcing = None
    if settings.redis_url is not None:
        worker.announcer = Announcer(worker, settings.redis_url)
        announcing = threading.Thread(target=worker.announcer.run)
        announcing.start()

    def end(_number: int, _frame: object) -> None:
        worker.drain()
        worker.is_over = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    print(worker.info.control, flush=True)
    worker.run()
    if worker.announcer is not None and announcing is not None:
        worker.announcer.is_over = True
        announcing.join()


if __name__ == "__main__":
    main()
