"""The engine process of a worker: loads the model, joins legs, sockets and loop, serves until drained.

Started by the worker's face as `python -m baton.engine_process FD`, where FD is its end of a socket pair; the first
message on it is an `Assignment`. Only this module knows both kinds of legs.
"""

from __future__ import annotations

import faulthandler
import gc
import signal
import socket
import sys
import uuid
from collections.abc import Iterator

import msgspec
import torch
import zmq

from baton.curve import CurveKeys
from baton.decode.leg import DecodeLeg
from baton.engine.engine import Engine
from baton.engine.load import load_engine
from baton.engine.pinned_memory import PIECE_NBYTES, anonymous_memory
from baton.engine.slot_copies import slot_copies
from baton.errors import BatonError, ConfigError
from baton.kvtransfer.cuda_copies import CudaCopies
from baton.kvtransfer.device_memory import DeviceMemory
from baton.kvtransfer.exporter import Exporter
from baton.kvtransfer.importer import Importer
from baton.kvtransfer.loop import TransferThread
from baton.kvtransfer.memory import BlockMemory, HostMemory
from baton.kvtransfer.settings import TransferConfig, TransferStats
from baton.kvtransfer.side import Side
from baton.kvtransfer.store.link import StoreLink
from baton.kvtransfer.store.tier import StoreTier
from baton.kvtransfer.transports.cuda_ipc import CudaIpcTransport
from baton.kvtransfer.transports.ipc import IpcTransport
from baton.kvtransfer.transports.shm import ShmTransport
from baton.kvtransfer.transports.shm_ring import ShmRingTransport
from baton.kvtransfer.transports.tcp import TcpTransport
from baton.kvtransfer.transports.transport import Transport, only
from baton.kvtransfer.wire import layout_fingerprint
from baton.logs import get_logger, say_why_it_ends, setup_logs
from baton.messages import ModelFacts, WorkerInfo
from baton.prefill.leg import PrefillLeg
from baton.step_learning import StepLearner
from baton.wakeup import Wakeup
from baton.worker.engine_watch import STACK_SIGNAL
from baton.worker.link import FaceLink, receive_frame
from baton.worker.loop import WorkerLoop
from baton.worker.mailbox import Mailbox
from baton.worker.pacer import Pacer
from baton.worker.pooling_leg import PoolingLeg
from baton.worker.rehearsal import fill, rehearse, warm_up
from baton.worker.runs import Leg, Outbox, Runs
from baton.worker.settings import WorkerConfig
from baton.worker.stats import Assignment, Failed, Ready, Stats

log = get_logger("engine")


class EngineProcess:
    """All parts of an engine process, built in the order in which they need one another."""

    def __init__(self, assignment: Assignment, link: socket.socket) -> None:
        self._assignment = assignment
        self._config = assignment.worker
        self._wakeup = Wakeup()
        self._runs, self._outbox = Runs(), Outbox()
        self._loop: WorkerLoop | None = None
        self._mailbox: Mailbox | None = None
        self._drain_asked = False
        self._link = FaceLink(link.detach(), on_drain=self.drain)
        self._exporter: Exporter | None = None
        self._importer: Importer | None = None
        self._store: StoreTier | None = None
        self._kv_stats = TransferStats()

    def drain(self) -> None:
        """Ask the loop to end; one that does not run yet ends as soon as it does."""
        self._drain_asked = True
        if self._loop is not None:
            self._loop.drain()

    def run(self) -> int:
        """Serve; return the exit status."""
        config = self._config
        try:
            engine = load_engine(self._assignment.engine, cache_key=config.cache_key.encode())
            engine.scheduler.max_prefill_chunk = config.max_prefill_chunk
            pacer = _pacer(engine, config)
            warm_up(engine)
            if engine.grammars is not None and engine.pooling is None:
                engine.grammars.prepare()
            if engine.runner.device.type == "cuda" and engine.pooling is None:
                fill(engine)
                engine.scheduler.pace = pacer
                rehearse(engine, pacer.learner)
            self._store = _share_blocks(engine, config, self._wakeup)
            mailbox = self._mailbox = Mailbox(self._wakeup, self._link.post)
            control = _bind(mailbox, config)
            legs, info = self._join(engine, control)
        except ConfigError as error:
            self._link.post(Failed(str(error)))
            self._link.close()
            return 2
        ends = [part for part in (self._exporter, self._importer) if part is not None]
        transfers = TransferThread(*ends).start() if ends else None  # a worker that pools moves no KV
        self._loop = WorkerLoop(
            engine,
            legs,
            mailbox,
            self._runs,
            self._outbox,
            self._wakeup,
            info,
            drain_s=config.drain_s,
            pacer=pacer,
            tell_face=self._link.post,
            add_stats=self._add_stats,
        )
        if self._drain_asked:
            self._loop.drain()
        mailbox.start(info)
        self._link.post(Ready(info))
        log.info("ready", worker_id=info.worker_id, legs=",".join(info.legs), control=info.control)
        # What was loaded stays: 200,000 objects, mostly torch's. Each full collection that walks them stops the loop, and so
        # all streams, for 50 ms or more, some times a minute.
        gc.collect()
        gc.freeze()
        try:
            self._loop.run()
        finally:
            mailbox.close()
            if transfers is not None:
                transfers.stop()
            if self._store is not None:
                self._store.close()
            self._link.close()
        return 0

    def _join(self, engine: Engine, control: str) -> tuple[list[Leg], WorkerInfo]:
        """Make the legs: those that were asked for, or of a model that pools its one."""
        config, names, incarnation = self._config, self._assignment.legs, uuid.uuid4().hex
        legs: list[Leg] = []
        if engine.pooling is not None:
            names = ["pool"]
            legs.append(PoolingLeg(engine, self._runs, self._outbox))
        layout = layout_fingerprint(engine.memory.block_nbytes, *engine.cache_parts)
        transfers = TransferConfig(lease_s=config.lease_s, renew_s=min(2.0, config.lease_s / 4))
        memory = _memory(engine, transfers, is_read="prefill" in names)
        tcp = TcpTransport(config.host, port=config.kv_port, announce=config.announce_host)
        side = Side(
            memory=memory,
            layout=layout,
            incarnation=incarnation,
            transports=only((*_host_transports(memory, listens="prefill" in names), tcp), config.kv_transports),
            keys=_keys(config) if config.encrypt_kv else None,
            config=transfers,
            stats=self._kv_stats,
            on_event=self._wakeup.set,
        )
        if "prefill" in names:
            self._exporter = Exporter(side)
            leg = PrefillLeg(engine, self._exporter, self._runs, self._outbox, layout=layout, incarnation=incarnation)
            legs.append(leg)
        if "decode" in names:
            self._importer = Importer(side)
            legs.append(DecodeLeg(engine, self._importer, self._runs, self._outbox))
        info = WorkerInfo(
            worker_id=self._assignment.worker_id,
            incarnation=incarnation,
            legs=tuple(names),
            control=control,
            kv="" if self._exporter is None else self._exporter.endpoint,
            layout=layout,
            http=self._assignment.http,
            num_places=engine.scheduler.config.max_num_seqs,
            model=ModelFacts(
                name=self._assignment.model_name,
                max_model_len=engine.max_model_len,
                vocab_size=engine.model.spec.vocab_size,
                block_size=engine.config.block_size,
                eos_token_ids=tuple(engine.model.spec.eos_token_ids),
                cache_parts=engine.cache_parts,
                pooling=engine.pooling,
            ),
        )
        return legs, info

    def _add_stats(self, stats: Stats) -> None:
        if self._mailbox is not None and self._store is not None:
            self._store.hear()
            self._mailbox.store = self._store.store_id
        kv = self._kv_stats
        stats.kv_transfer_sent_bytes, stats.kv_transfer_bytes = kv.bytes_sent, kv.bytes_received
        stats.kv_fetches_queued, stats.kv_fetch_queued_seconds = kv.fetches_queued, kv.longest_queued_s
        # copies: the transfer's thread adds reasons meanwhile
        stats.kv_fetches, stats.kv_releases = dict(kv.fetches), dict(kv.releases)
        stats.kv_integrity_failures = sum(dict(kv.integrity_failures).values())
        stats.stale_messages += sum(dict(kv.dropped).values())
        stats.kv_leases_held = 0 if self._exporter is None else self._exporter.num_open


def _bind(mailbox: Mailbox, config: WorkerConfig) -> str:
    if config.control_uds is not None:  # its folder says who may connect
        return mailbox.bind(f"ipc://{config.control_uds}")
    endpoint = f"tcp://{config.host}:{config.control_port or '*'}"
    return mailbox.bind(endpoint, announce=config.reached_at, keys=_keys(config))


def _keys(config: WorkerConfig) -> CurveKeys | None:
    if config.curve_public_key is None or config.curve_secret_key is None:
        if config.encrypt_kv:
            raise ConfigError("encrypt_kv needs --curve-public-key and --curve-secret-key.")
        return None
    try:
        zmq.curve_public(config.curve_secret_key.encode())
    except (zmq.ZMQError, ValueError):
        raise ConfigError("curve_secret_key is not valid: it must be 40 characters of Z85.") from None
    return CurveKeys(config.curve_public_key.encode(), config.curve_secret_key.encode())


def _pacer(engine: Engine, config: WorkerConfig) -> Pacer:
    """Return who sizes chunks; on a CPU, whose steps take as long as they take, to a target only if there is one."""
    target_ms, runner = config.itl_target_ms, engine.runner
    if (target_ms is None and runner.device.type == "cpu") or engine.pooling is not None:
        target_ms = 0.0
    return Pacer(StepLearner(), target_ms, runner.most_mixed)


def _memory(engine: Engine, config: TransferConfig, *, is_read: bool) -> BlockMemory:
    """Return the KV cache as transfers see it; on a CPU one that is read by others moves to where they can map it."""
    runner = engine.runner
    if runner.kv.is_cuda:
        copies = CudaCopies(runner.kv)
        return DeviceMemory(copies, frame_nbytes=config.message_nbytes, num_threads=config.num_stripes)
    fd = None
    if is_read:
        kv, fd = runner.kv_spec.allocate_shared(len(runner.kv))
        runner.use_kv(kv)
    return HostMemory(runner.kv.view(torch.uint8).numpy(), len(runner.kv), fd=fd, num_threads=config.num_stripes)


def _share_blocks(engine: Engine, config: WorkerConfig, wakeup: Wakeup) -> StoreTier | None:
    """Put the store of the host behind the engine's blocks, if there is to be one.

    Raises:
        ConfigError: the worker has host memory of its own there already.
    """
    if config.kv_store is None:
        return None
    if engine.config.swap_space:
        raise ConfigError(
            f"swap_space={engine.config.swap_space:g} and kv_store={config.kv_store!r} exclude each other: the store keeps what "
            "the swap space would. Leave out --swap-space or --kv-store."
        )
    if not engine.config.enable_prefix_caching:
        log.warning("kvstore_unused", reason="without prefix caching, by which blocks are found again")
        return None
    runner, block_nbytes = engine.runner, engine.memory.block_nbytes
    # sums of a CPU and of a GPU differ, so their blocks are not one another's
    layout = layout_fingerprint(block_nbytes, *engine.cache_parts, runner.device.type)
    if runner.device.type == "cuda":  # the kernel that sums is compiled now, not in a step once the store is found
        slot_copies(lambda: runner.kv, anonymous_memory(max(PIECE_NBYTES, block_nbytes))).close()
    link = StoreLink(config.kv_store, layout, block_nbytes, config.cache_key, wakeup.set)
    tier = StoreTier(
        link,
        lambda memory, _num_slots: slot_copies(lambda: runner.kv, memory),
        lambda num_blocks: 0.0 if engine.scheduler.host is None else engine.scheduler.host.cost.compute_s(num_blocks),
    )
    engine.use_tier(tier)
    return tier


def _host_transports(memory: BlockMemory, *, listens: bool) -> tuple[Transport, ...]:
    """Return the ways between processes of one host, the fastest first."""
    if isinstance(memory, DeviceMemory) and isinstance(memory.copies, CudaCopies):
        return *_device_transports(memory.copies, memory.ring_fd), IpcTransport()
    fd = memory.fd if isinstance(memory, HostMemory) else None
    return (IpcTransport(),) if listens and fd is None else (ShmTransport(fd), IpcTransport())


def _device_transports(copies: CudaCopies, ring_fd: int | None) -> Iterator[Transport]:
    if copies.is_shared:
        yield CudaIpcTransport(copies)
    if ring_fd is not None:
        yield ShmRingTransport(copies, ring_fd)


def main() -> None:
    """Run the engine process of the face that started us."""
    link = socket.socket(fileno=int(sys.argv[1]))
    frame = receive_frame(link)
    if frame is None:  # the face is gone
        sys.exit(3)
    assignment = msgspec.msgpack.decode(frame, type=Assignment)
    setup_logs(assignment.worker_id, assignment.logs)
    process = EngineProcess(assignment, link)
    faulthandler.register(STACK_SIGNAL, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the face's to act on
    signal.signal(signal.SIGTERM, lambda *_: process.drain())
    try:
        sys.exit(process.run())
    except BatonError as error:
        say_why_it_ends(error)
        sys.exit(2)


if __name__ == "__main__":
    main()
