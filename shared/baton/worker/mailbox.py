"""The control socket: a thread that moves messages between routers and the loop, and keeps routers' hearts at ease.

The loop never touches the socket. It takes what arrived from a queue and leaves what it has to say in another; both are
bounded. Hello is answered here, so that a step which takes seconds does not look like a death. A step that takes longer
than it ever should is one: then routers and face are told from here that the loop is stuck. A router that does not read
is backed up here to a bound, then given up: its work is cancelled.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import zmq
from zmq.auth.thread import ThreadAuthenticator

from baton.curve import CurveKeys
from baton.errors import ConfigError
from baton.listener import bracketed
from baton.logs import get_logger
from baton.messages import (
    LOAD_INTERVAL_S,
    MAX_MESSAGE_NBYTES,
    PAUSE_S,
    ROUTER_SILENCE_S,
    Blocks,
    Cancel,
    Command,
    Done,
    Hello,
    Legs,
    Load,
    Outputs,
    Pool,
    Start,
    Welcome,
    WorkerInfo,
    decode_to_worker,
    encode,
)
from baton.step_pace import StepPace
from baton.wakeup import Wakeup
from baton.worker.beat import STUCK_S, Beat
from baton.worker.stats import Pulse

MAX_ARRIVED = 65_536
"""Messages that wait for the loop; beyond it the socket is not read, and routers feel it."""
MAX_BACKLOG = 4_096
"""Messages that wait for one router to read; beyond it the router is given up."""
_HWM = 1_024
_READ_AT_ONCE = 256
_RETRY_S = 0.01

log = get_logger("mailbox")


@dataclass(slots=True, eq=False)
class Peer:
    """A router, over its reconnections."""

    router_id: str
    identity: bytes
    """The routing id of its present connection."""
    heard_at: float
    told_at: float = 0.0
    wants_blocks: bool = False
    num_calls: int = 0
    """The last of its roll calls."""
    refusal: str = ""
    """Why it sends nothing, if so."""
    is_lost: bool = False
    backlog: deque[bytes] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A router that was silent too long, or does not read."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class WantsBlocks:
    """A router asks for the block log, beginning with a snapshot."""

    peer: Peer


Arrival = tuple[Peer, Start | Pool | Cancel | Hello | Command] | PeerLost | WantsBlocks
"""A Hello among them is a roll call."""


class Mailbox:
    """Owns the control socket. `bind`, `start`; the loop calls `take`, `post`, sets `load` and `pace`, and counts in `beat`."""

    def __init__(self, wakeup: Wakeup, tell_face: Callable[[Pulse], None] = lambda pulse: None) -> None:
        self._wakes_loop = wakeup
        self._wakeup = Wakeup()
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set_hwm(_HWM)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_NBYTES)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, 5_000)
        self._socket.setsockopt(zmq.LINGER, 1_000)
        self._info: WorkerInfo
        self.load = Load()
        self.pace: StepPace | None = None
        self.store = ""
        """The store that answers; kept by whoever has it."""
        self.beat = Beat(lambda: STUCK_S)
        self._tell_face = tell_face
        self._pulse_at = 0.0
        self.dropped: Counter[str] = Counter()
        """Messages that went no further, by reason."""
        self._arrived: deque[Arrival] = deque()
        self._outgoing: deque[tuple[Peer | None, Outputs | Blocks | Legs | Done]] = deque()
        self._by_identity: dict[bytes, Peer] = {}
        self._peers: list[Peer] = []
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._is_closing = False
        self._looked_at = 0.0
        self._guardian: ThreadAuthenticator | None = None

    # -- for the loop -------------------------------------------------------------------------------------

    def bind(self, endpoint: str, *, announce: str = "", keys: CurveKeys | None = None) -> str:
        """Bind the socket; return the endpoint that routers connect to.

        `announce` is the host in it, if others reach this one under another name than it binds. With keys, only their
        holders may connect.

        Raises:
            ConfigError: the endpoint cannot be bound.
        """
        if keys is not None:
            self._guardian = keys.guard(self._context)
            keys.serve(self._socket)
        host = endpoint.removeprefix("tcp://").rpartition(":")[0]
        self._socket.setsockopt(zmq.IPV6, ":" in host)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(f"the control socket cannot be bound to {endpoint}: {error}") from None
        bound = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        if announce and bound.startswith("tcp://"):
            return f"tcp://{bracketed(announce)}:{bound.rpartition(':')[2]}"
        return bound

    def start(self, info: WorkerInfo) -> None:
        """Begin to read and write, as this worker."""
        self._info = info
        self._thread.start()

    def take(self) -> list[Arrival]:
        """Take what arrived since the last call."""
        arrived = [self._arrived.popleft() for _ in range(len(self._arrived))]
        if len(arrived) >= MAX_ARRIVED:
            self._wakeup.set()  # the thread had stopped reading
        return arrived

    def post(self, peer: Peer | None, message: Outputs | Blocks | Legs | Done) -> None:
        """Leave a message for a router; for all that want the block log, if `peer` is None."""
        self._outgoing.append((peer, message))
        self._wakeup.set()

    def first_peer(self) -> Peer | None:
        """The router that is told what is counted for all: the one known longest."""
        return next((peer for peer in list(self._peers) if not peer.refusal), None)

    def refusal(self) -> str:
        """Why no router sends anything; empty: one does, or none is there."""
        refusals = [peer.refusal for peer in list(self._peers)]
        return refusals[0] if all(refusals) and refusals else ""

    def close(self) -> None:
        """Send what is left, for a bounded time, and close."""
        self._is_closing = True
        self._wakeup.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)
        if self._guardian is not None:
            self._guardian.stop()
        self._socket.close()
        self._context.term()

    # -- the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wakeup.fileno(), zmq.POLLIN)
        is_reading = False
        while not self._is_closing:
            if is_reading != (len(self._arrived) < MAX_ARRIVED):
                is_reading = not is_reading
                if is_reading:
                    poller.register(self._socket, zmq.POLLIN)
                else:
                    poller.unregister(self._socket)
            has_backlog = any(peer.backlog for peer in self._peers)
            poller.poll(int((_RETRY_S if has_backlog else LOAD_INTERVAL_S / 2) * 1000))
            self._wakeup.clear()
            try:
                if is_reading:
                    self._read()
                self._write()
                self._judge_loop()
                self._tell_idle()
                self._forget_silent()
            except Exception:  # the edge of this loop: one bad peer must not end all others' streams
                log.exception("control_failed")
        self._tell_face(Pulse(False, is_last=True))
        try:
            self._write()
        except zmq.ZMQError:
            log.warning("undelivered_at_end")

    def _read(self) -> None:
        for _ in range(_READ_AT_ONCE):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                identity, frame = frames
                message = decode_to_worker(frame)
            except ValueError as bad:  # more or fewer frames, or a BadMessage
                self.dropped["garbage"] += 1
                log.debug("bad_message", reason=str(bad))
                continue
            self._on_message(identity, message)

    def _on_message(self, identity: bytes, message: Hello | Start | Pool | Cancel | Command) -> None:
        now = time.monotonic()
        if isinstance(message, Hello):
            peer = self._on_hello(identity, message, now)
            self._send(peer, encode(Welcome(self._info, self.load, self.pace, self.store)))
            return
        known = self._by_identity.get(identity)
        if known is None:  # nobody we know, or a router that was connected anew: the next roll call says what it lacks
            self.dropped["stranger"] += 1
            return
        known.heard_at = now
        self._arrived.append((known, message))
        self._wakes_loop.set()

    def _on_hello(self, identity: bytes, hello: Hello, now: float) -> Peer:
        peer = next((each for each in self._peers if each.router_id == hello.router_id), None)
        if peer is None:
            peer = self._meet(hello.router_id, identity, now)
        elif 0 < hello.number <= peer.num_calls:  # it was left in an older connection
            return peer
        elif peer.identity != identity:
            self._by_identity.pop(peer.identity, None)
            peer.identity = identity
            self._by_identity[identity] = peer
        peer.heard_at = now
        if hello.number:
            peer.num_calls = hello.number
            self._arrived.append((peer, hello))
            self._wakes_loop.set()
        if hello.wants_blocks and not peer.wants_blocks:
            self._arrived.append(WantsBlocks(peer))
            self._wakes_loop.set()
        peer.wants_blocks = hello.wants_blocks
        if hello.refusal != peer.refusal:
            peer.refusal = hello.refusal
            if peer.refusal:
                log.error("refused_by_router", router_id=peer.router_id, reason=peer.refusal)
        return peer

    def _meet(self, router_id: str, identity: bytes, now: float) -> Peer:
        peer = self._by_identity[identity] = Peer(router_id, identity, now)
        self._peers.append(peer)
        log.debug("router_met", router_id=router_id)
        return peer

    def _write(self) -> None:
        for peer in list(self._peers):
            while peer.backlog and self._try_send(peer, peer.backlog[0]):
                peer.backlog.popleft()
        while self._outgoing:
            to, message = self._outgoing.popleft()
            frame = encode(message)
            for peer in [to] if to is not None else [each for each in self._peers if each.wants_blocks]:
                self._send(peer, frame)

    def _send(self, peer: Peer, frame: bytes) -> None:
        if peer.is_lost:
            self.dropped["router_lost"] += 1
        elif peer.backlog or not self._try_send(peer, frame):
            peer.backlog.append(frame)
            if len(peer.backlog) > MAX_BACKLOG:
                self._lose(peer, "it does not read")

    def _try_send(self, peer: Peer, frame: bytes) -> bool:
        """Hand a frame to the socket; False: full, or the router is connecting anew."""
        try:
            self._socket.send_multipart([peer.identity, frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        peer.told_at = time.monotonic()
        return True

    def _judge_loop(self) -> None:
        """Look whether the loop turns; say so in the load, at once if it does not, and to the face."""
        now, was_stuck = time.monotonic(), self.beat.is_stuck
        is_stuck = self.beat.look(now)
        if is_stuck:  # the loop itself says otherwise as soon as it turns
            self.load = msgspec.structs.replace(self.load, stuck=True)
            if not was_stuck:
                log.error("loop_stuck")
                for peer in self._peers:
                    peer.told_at = 0.0
        elif self.beat.stood_s >= STUCK_S:
            self.load = msgspec.structs.replace(self.load, in_long_step=True)
        elif was_stuck:
            log.info("loop_turns_again")
        if self.beat.turns and (now - self._pulse_at >= LOAD_INTERVAL_S or is_stuck != was_stuck):
            self._pulse_at = now
            self._tell_face(Pulse(is_stuck))

    def _tell_idle(self) -> None:
        """Let routers know the load when no step says it."""
        info, now = self._info, time.monotonic()
        frame = None
        for peer in list(self._peers):
            if now - peer.told_at >= LOAD_INTERVAL_S and not peer.backlog:
                frame = frame or encode(Outputs(info.worker_id, info.incarnation, [], self.load))
                self._try_send(peer, frame)
                peer.told_at = now

    def _forget_silent(self) -> None:
        now = time.monotonic()
        pause_s, self._looked_at = now - self._looked_at, now
        for peer in list(self._peers):
            if pause_s > PAUSE_S:  # we were stopped ourselves: what it said meanwhile is still unread
                peer.heard_at = min(peer.heard_at + pause_s, now)
            if now - peer.heard_at > ROUTER_SILENCE_S:
                self._lose(peer, "it is silent")

    def _lose(self, peer: Peer, reason: str) -> None:
        if peer.is_lost:
            return
        peer.is_lost = True
        peer.backlog.clear()
        self._by_identity.pop(peer.identity, None)
        self._peers.remove(peer)
        log.warning("router_lost", router_id=peer.router_id, reason=reason)
        self._arrived.append(PeerLost(peer))
        self._wakes_loop.set()
