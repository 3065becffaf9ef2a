"""A router in a hundred lines: speaks the control protocol to workers, to test them without the real one."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import zmq
from tests.processes import HANG_S

from baton.messages import (
    Blocks,
    Cancel,
    ChoiceStart,
    Ended,
    Hello,
    Load,
    Outputs,
    Start,
    Ticket,
    Token,
    ToWorker,
    Transfer,
    Welcome,
    WorkerInfo,
    decode_to_router,
    encode,
)
from baton.prompt import Prompt, Span
from baton.protocol import SamplingParams


@dataclass
class Answer:
    """What came for one epoch of a request from one worker."""

    tokens: dict[int, list[Token]] = field(default_factory=dict)
    ended: list[Ended] = field(default_factory=list)

    def ids(self, choice: int = 0) -> list[int]:
        return [token.token_id for token in self.tokens.get(choice, [])]

    def is_finished(self, choice: int = 0) -> bool:
        tokens = self.tokens.get(choice)
        return bool(tokens and tokens[-1].finish_reason)


class Link:
    """The connection to one worker."""

    def __init__(self, endpoint: str, router_id: str, wants_blocks: bool = False) -> None:
        self.hello = Hello(router_id, wants_blocks)
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        self.said_at = 0.0
        self.info: WorkerInfo | None = None
        self.load = Load()
        self.answers: dict[tuple[str, int], Answer] = {}
        self.transfers: list[Transfer] = []
        self.blocks: list[Blocks] = []
        self.num_outputs = 0

    def send(self, message: ToWorker) -> None:
        """Send it behind a hello, if none was said lately: a worker forgets who is silent, and drops what strangers send."""
        self._keep_in_touch()
        self.socket.send(encode(message))

    def _keep_in_touch(self) -> None:
        if time.monotonic() - self.said_at > 1.0:
            self.said_at = time.monotonic()
            self.socket.send(encode(self.hello))

    def pump(self, timeout_ms: int = 10) -> None:
        """Read what came, and keep in touch."""
        self._keep_in_touch()
        if not self.socket.poll(timeout_ms):
            return
        while True:
            try:
                message = decode_to_router(self.socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            match message:
                case Welcome():
                    self.info, self.load = message.info, message.load
                case Outputs():
                    self._take(message)
                case Blocks():
                    self.blocks.append(message)

    def _take(self, outputs: Outputs) -> None:
        self.load = outputs.load
        self.num_outputs += 1
        self.transfers += outputs.transfers
        for token in outputs.tokens:
            answer = self.answers.setdefault((token.request_id, token.epoch), Answer())
            answer.tokens.setdefault(token.choice, []).append(token)
        for ended in outputs.ended:
            self.answers.setdefault((ended.request_id, ended.epoch), Answer()).ended.append(ended)

    def answer(self, request_id: str, epoch: int = 0) -> Answer:
        return self.answers.setdefault((request_id, epoch), Answer())


class SmallRouter:
    """Links to some workers, and requests over them."""

    def __init__(self, *endpoints: str, wants_blocks: bool = False) -> None:
        self.router_id = uuid.uuid4().hex
        self.links = [Link(endpoint, self.router_id, wants_blocks) for endpoint in endpoints]
        self.until(lambda: all(link.info for link in self.links), "all workers said welcome")

    def until(self, probe: Callable[[], Any], what: str, timeout_s: float = HANG_S) -> None:
        """Pump until the probe is true."""
        deadline = time.monotonic() + timeout_s
        while not probe():
            assert time.monotonic() < deadline, f"after {timeout_s:.0f} s still not: {what}"
            for link in self.links:
                link.pump()

    def pump_for(self, seconds: float) -> None:
        """Read for a while: for what must NOT come."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for link in self.links:
                link.pump()

    def start(
        self,
        link: Link,
        token_ids: list[int],
        params: SamplingParams,
        *,
        leg: Any = "decode",
        request_id: str | None = None,
        epoch: int = 0,
        choices: dict[int, list[int]] | None = None,
        ticket: Ticket | None = None,
        seed: int = 0,
        seconds_left: float | None = None,
        spans: tuple[Span, ...] = (),
    ) -> str:
        request_id = request_id or uuid.uuid4().hex
        choices = choices if choices is not None else {i: [] for i in range(params.n)}
        link.send(
            Start(
                request_id,
                epoch,
                leg,
                Prompt(token_ids, spans),
                [ChoiceStart(index, emitted) for index, emitted in choices.items()],
                params,
                seed,
                seconds_left=seconds_left,
                ticket=ticket,
            )
        )
        return request_id

    def ticket(self, prefill: Link, request_id: str, token_ids: list[int], epoch: int = 0) -> Ticket:
        info = prefill.info
        assert info is not None
        secret = secrets.token_bytes(16)
        return Ticket(bytes.fromhex(request_id), epoch, secret, info.layout, info.kv, info.incarnation, len(token_ids))

    def start_pair(
        self,
        prefill: Link,
        decode: Link,
        token_ids: list[int],
        params: SamplingParams,
        *,
        epoch: int = 0,
        request_id: str | None = None,
        seed: int = 0,
        choices: dict[int, list[int]] | None = None,
    ) -> str:
        """Send both legs at once, as the router does."""
        request_id = request_id or uuid.uuid4().hex
        ticket = self.ticket(prefill, request_id, token_ids, epoch)
        for link, leg in ((decode, "decode"), (prefill, "prefill")):
            self.start(
                link,
                token_ids,
                params,
                leg=leg,
                request_id=request_id,
                epoch=epoch,
                ticket=ticket,
                seed=seed,
                choices=choices,
            )
        return request_id

    def cancel(self, request_id: str, epoch: int = 0, choice: int | None = None) -> None:
        for link in self.links:
            link.send(Cancel(request_id, epoch, choice))

    def close(self) -> None:
        for link in self.links:
            link.socket.close()
