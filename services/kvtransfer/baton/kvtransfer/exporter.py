"""The exporter: lets other workers fetch the KV that this one computes.

The engine's thread tells it of requests and blocks and takes events; none of its methods but `service` and `close`
waits for anything. The thread that owns it (a `TransferThread`) sends and receives. What may be sent when is decided
in `exports.py`; here are the sockets.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Container, Sequence
from functools import partial

import zmq

from baton.curve import CurveKeys
from baton.kvtransfer import wire
from baton.kvtransfer.exchange import Exchange
from baton.kvtransfer.exports import Batch, Exports, Released
from baton.kvtransfer.memory import BlockMemory, check_block_ids
from baton.kvtransfer.settings import TransferConfig, TransferStats
from baton.kvtransfer.sockets import make_router, receive_frames, send_frame
from baton.kvtransfer.transports.transport import Endpoint, Socket, Transport, host_id
from baton.kvtransfer.wire import Ticket

MESSAGES_A_TURN = 256
BATCHES_A_TURN = 32
BUSY_S = 0.002
"""Until a peer that was full, or a staging copy, is asked again; most sends that end ring by themselves."""
CLOSE_S = 5.0


class Exporter(Exchange[Released]):
    """Serve the fetches of a worker's KV. `endpoint` is the text to announce."""

    _ends = (Released,)

    def __init__(
        self,
        memory: BlockMemory,
        layout: str,
        *,
        incarnation: str,
        config: TransferConfig | None = None,
        transports: Sequence[Transport] | None = None,
        keys: CurveKeys | None = None,
        stats: TransferStats | None = None,
        on_event: Callable[[], None] | None = None,
    ) -> None:
        """Listen.

        `on_event` is called, in the owning thread, when there are events to take.

        Raises:
            ConfigError: an address cannot be bound, or is a wildcard and there are no keys.
        """
        super().__init__(memory, config, transports, stats, on_event)
        self._exports = Exports(memory, layout, incarnation, self._config, self.stats, time.monotonic)
        self._events = self._exports.events
        self._guardian = keys.guard(self._context) if keys is not None else None
        self._routers = [make_router(self._context, self._config, keys) for _ in range(self._config.num_stripes)]
        self._next_stripe = 0
        self._num_payloads = 0
        try:
            addresses = {
                transport.scheme: tuple(transport.bind(router, i) for i, router in enumerate(self._routers))
                for transport in self._transports
            }
        except BaseException:
            self._close_sockets()
            self.wakeup.close()
            raise
        self.endpoint = str(Endpoint(host_id(), addresses))

    # For the engine's thread

    def offer(self, ticket: Ticket) -> None:
        """Begin to serve a ticket. Say it as soon as the request is known, before its prompt is computed.

        Raises:
            BadTicket: its fields are of the wrong size.
            ValueError: the ticket is already offered.
        """
        key = wire.check_ticket(ticket)
        self._begin(key)
        self._tell(self._exports.offer, key, ticket.secret)

    def publish(self, request_id: bytes, epoch: int, block_ids: Sequence[int], hashes: Sequence[bytes]) -> None:
        """Add the next blocks of a prompt and their hashes: computed, and not to change until released."""
        if len(block_ids) != len(hashes):
            raise ValueError(f"{len(block_ids)} blocks, but {len(hashes)} hashes")
        check_block_ids(self._memory, block_ids)
        self._tell(self._exports.publish, (request_id, epoch), list(block_ids), wire.join_hashes(hashes))

    def finish(self, request_id: bytes, epoch: int, meta: bytes = b"") -> None:
        """The prompt's last block is published; `meta` goes to the other leg with the last message."""
        if len(meta) > wire.MAX_META_NBYTES:
            raise ValueError(f"meta has {len(meta)} bytes, more than {wire.MAX_META_NBYTES}")
        self._tell(self._exports.finish, (request_id, epoch), meta)

    def withdraw(self, request_id: bytes, epoch: int) -> None:
        """Close an epoch of a request and all before it: cancelled, or preempted. Safe to repeat, and too late."""
        self._tell(self._exports.withdraw, request_id, epoch)

    # For the owning thread

    def sockets(self) -> Sequence[Socket]:
        """Sockets on which importers ask."""
        return self._routers

    def service(self, stirred: Container[Socket | int]) -> float:
        """Do all that can be done now; return the seconds until there may be more."""
        self._obey(stirred)
        more = self._receive(stirred)
        self._exports.sweep()
        self._send_replies()
        more |= self._send_batches()
        self._announce()
        if more:
            return 0.0
        return BUSY_S if self._exports.is_busy else self._exports.seconds_to_sweep()

    def close(self) -> None:
        """Stop serving; every open ticket is released, once nothing reads its blocks."""
        self._obey()
        self._exports.close()
        self._send_replies()
        self._close_sockets()
        deadline = time.monotonic() + CLOSE_S
        while self._exports.num_open and time.monotonic() < deadline:
            self._exports.sweep()
            time.sleep(0.001)
        self._announce()
        self.wakeup.close()

    def _ring(self, _: object) -> None:
        """Wake the owner, in ZeroMQ's collecting thread: blocks were sent, so there is room for more.

        After every second message: a queue says that it has room when half of it is free.
        """
        self.wakeup.set()

    def _receive(self, stirred: Container[Socket | int]) -> bool:
        """Act on what peers say; True: there may be more."""
        more = False
        for router in self._routers:
            if router not in stirred:
                continue
            for _ in range(MESSAGES_A_TURN):
                frames = receive_frames(router)
                if frames is None:
                    break
                self._exports.receive(bytes(frames[0]), frames[1:])
            else:
                more = True
        return more

    def _send_replies(self) -> None:
        while self._exports.replies:
            peer, header = self._exports.replies.popleft()
            send_frame(self._routers[0], peer, header)

    def _send_batches(self) -> bool:
        """Send in turn what credits and sockets allow; True: there may be more."""
        blocked: set[bytes] = set()
        for _ in range(BATCHES_A_TURN):
            progress = False
            for batch in self._exports.ready_batches():
                if batch.peer in blocked or not self._send(batch):
                    blocked.add(batch.peer)
                    self._exports.refused(batch)
                else:
                    progress = True
            if not progress:
                return False
        return True

    def _send(self, batch: Batch) -> bool:
        """Hand a batch to the first stripe that takes it; False: none does."""
        num_stripes = len(self._routers)
        for offset in range(num_stripes):
            stripe = (self._next_stripe + offset) % num_stripes
            router = self._routers[stripe]
            try:
                router.send(batch.peer, zmq.SNDMORE | zmq.DONTWAIT)
            except zmq.ZMQError as error:
                if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                    raise
                continue
            self._next_stripe = stripe + 1
            # Once its first part is taken the rest of a message never waits. Only now are the blocks summed, so that
            # the socket finds them in the processor's cache.
            header, payload = self._exports.seal(batch)
            router.send(header, zmq.SNDMORE if payload else 0)
            reads = []
            self._num_payloads += bool(payload)
            ring = self._ring if self._num_payloads % 2 else None
            for left, view in enumerate(payload, start=1 - len(payload)):
                part = memoryview(view)
                reads.append(weakref.ref(part, ring))
                router.send(part, zmq.SNDMORE if left else 0, copy=False)
                del part
            self._exports.sent(batch, partial(_all_gone, reads))
            return True
        return False

    def _close_sockets(self) -> None:
        if self._guardian is not None:
            self._guardian.stop()
        for router in self._routers:
            router.close(linger=0)
        for transport in self._transports:
            transport.close()
        self._context.term()


def _all_gone(reads: Sequence[weakref.ref[memoryview]]) -> bool:
    """Whether ZeroMQ has let go of what was given to it without copying."""
    return all(read() is None for read in reads)
