"""Workers without sockets to routers or processes: real engine, legs and KV transfer, turned by hand."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tests.processes import HANG_S

from baton.config import EngineConfig
from baton.decode.leg import DecodeLeg
from baton.engine.load import load_engine
from baton.kvtransfer.exporter import Exporter
from baton.kvtransfer.importer import Importer
from baton.kvtransfer.loop import TransferThread
from baton.kvtransfer.memory import HostMemory
from baton.kvtransfer.settings import TransferConfig
from baton.kvtransfer.side import Side
from baton.kvtransfer.transports.ipc import IpcTransport
from baton.kvtransfer.wire import layout_fingerprint
from baton.messages import Blocks, ChoiceStart, Load, ModelFacts, Outputs, Start, Ticket, WorkerInfo
from baton.prefill.leg import PrefillLeg
from baton.prompt import Prompt
from baton.protocol import SamplingParams
from baton.wakeup import Wakeup
from baton.worker.beat import Beat
from baton.worker.loop import WorkerLoop
from baton.worker.mailbox import Arrival, Peer
from baton.worker.runs import Leg, Outbox, Runs
from baton.worker.stats import Stats


class PaperMailbox:
    """What the loop needs of a mailbox, without a socket."""

    def __init__(self) -> None:
        self.arrived: list[Arrival] = []
        self.posted: list[tuple[Peer | None, Outputs | Blocks]] = []
        self.load = Load()
        self.beat = Beat(lambda: 0.0)
        self.dropped: Counter[str] = Counter()

    def take(self) -> list[Arrival]:
        arrived, self.arrived = self.arrived, []
        return arrived

    def first_peer(self) -> Peer | None:
        return None

    def refusal(self) -> str:
        return ""

    def post(self, peer: Peer | None, message: Outputs | Blocks) -> None:
        self.posted.append((peer, message))


class TableTop:
    """One worker with both legs, whose loop a test turns."""

    def __init__(self, model: Path, num_blocks: int, **engine_settings: Any) -> None:
        settings: dict[str, Any] = {"max_num_seqs": 16, "max_num_batched_tokens": 64, **engine_settings}
        config = EngineConfig(model=str(model), num_gpu_blocks_override=num_blocks, **settings)
        self.engine = load_engine(config, progress=False)
        incarnation = uuid.uuid4().hex
        self.layout = layout_fingerprint(self.engine.memory.block_nbytes, *self.engine.cache_parts)
        self.wakeup, self.runs, self.outbox = Wakeup(), Runs(), Outbox()
        kv = self.engine.runner.kv
        memory = HostMemory(kv.view(torch.uint8).numpy(), len(kv))
        transfer = TransferConfig(lease_s=3.0, renew_s=0.5, num_sockets=1)
        side = Side(
            memory=memory,
            layout=self.layout,
            incarnation=incarnation,
            transports=(IpcTransport(),),
            config=transfer,
            on_event=self.wakeup.set,
        )
        self.exporter, self.importer = Exporter(side), Importer(side)
        self.thread = TransferThread(self.exporter, self.importer).start()
        legs: list[Leg] = [
            PrefillLeg(self.engine, self.exporter, self.runs, self.outbox, layout=self.layout, incarnation=incarnation),
            DecodeLeg(self.engine, self.importer, self.runs, self.outbox),
        ]
        facts = ModelFacts(
            name="tiny",
            max_model_len=self.engine.max_model_len,
            vocab_size=self.engine.model.spec.vocab_size,
            block_size=16,
        )
        self.info = WorkerInfo(
            worker_id="w",
            incarnation=incarnation,
            legs=("prefill", "decode"),
            control="",
            kv=self.exporter.endpoint,
            layout=self.layout,
            model=facts,
        )
        self.mailbox = PaperMailbox()
        self.peer = Peer("r", b"r", 0.0)
        self.stats = Stats()
        self.loop = WorkerLoop(
            self.engine,
            legs,
            self.mailbox,  # type: ignore[arg-type]
            self.runs,
            self.outbox,
            self.wakeup,
            self.info,
            drain_s=0.0,
            tell_face=self._tell_face,
        )

    def _tell_face(self, message: object) -> None:
        if isinstance(message, Stats):
            self.stats = message

    def start(
        self,
        prompt: list[int],
        params: SamplingParams,
        *,
        leg: Any = "decode",
        request_id: str | None = None,
        ticket: Ticket | None = None,
        priority: int = 0,
        peer: Peer | None = None,
        emitted: Sequence[int] = (),
        epoch: int = 0,
        seconds_left: float | None = None,
    ) -> str:
        request_id = request_id or uuid.uuid4().hex
        choices = [ChoiceStart(0, list(emitted)), *(ChoiceStart(i) for i in range(1, params.n))]
        kept = {"priority": priority, "seconds_left": seconds_left, "ticket": ticket}
        start = Start(request_id, epoch, leg, Prompt(prompt), choices, params, 0, **kept)  # type: ignore[arg-type]
        self.mailbox.arrived.append((peer or self.peer, start))
        return request_id

    def ticket(self, request_id: str, prompt: list[int], epoch: int = 0) -> Ticket:
        """Make a ticket for KV that this worker will have."""
        return Ticket(
            bytes.fromhex(request_id), epoch, b"s" * 16, self.layout, self.info.kv, self.info.incarnation, len(prompt)
        )

    def ids(self, request_id: str, choice: int = 0) -> list[int]:
        return [
            token.token_id
            for _, message in self.mailbox.posted
            if isinstance(message, Outputs)
            for token in message.tokens
            if token.request_id == request_id and token.choice == choice
        ]

    def errors(self, request_id: str) -> list[str]:
        return [
            f"{ended.error.kind}{' retryable' if ended.error.retryable else ''}"
            for _, message in self.mailbox.posted
            if isinstance(message, Outputs)
            for ended in message.ended
            if ended.request_id == request_id
        ]

    @property
    def num_held(self) -> int:
        return self.engine.pool.num_held

    def close(self) -> None:
        self.thread.stop()


def turn_until(tables: list[TableTop], probe: Callable[[], object], what: str, timeout_s: float = HANG_S) -> None:
    """Turn the loops of workers until the probe is true."""
    deadline = time.monotonic() + timeout_s
    while not probe():
        assert time.monotonic() < deadline, f"after {timeout_s:.0f} s still not: {what}"
        before = [table.engine.num_steps for table in tables]
        for table in tables:
            table.loop.turn()
            table.engine.pool.verify()
        if before == [table.engine.num_steps for table in tables]:
            tables[0].wakeup.wait(0.005)
