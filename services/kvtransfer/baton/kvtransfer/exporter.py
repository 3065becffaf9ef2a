"""The exporter: lets other workers fetch the KV that this one computes. `exports.py` decides; here are the sockets."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from functools import partial

import zmq

from baton.kvtransfer import wire
from baton.kvtransfer.exchange import Exchange
from baton.kvtransfer.exports import Batch, Exports, Released
from baton.kvtransfer.memory import check_block_ids
from baton.kvtransfer.side import Side
from baton.kvtransfer.sockets import Act, make_router, send
from baton.kvtransfer.transports.transport import Endpoint, Socket, host_id
from baton.kvtransfer.wire import Buffer, Ticket

BATCHES_A_TURN = 32
CLOSE_S = 5.0


class Exporter(Exchange[Released]):
    """Serve the fetches of a worker's KV. `endpoint` is the text to announce."""

    _messages_a_turn = 256

    def __init__(self, side: Side) -> None:
        """Listen on all transports.

        Raises:
            ConfigError: an address cannot be bound, or is a wildcard and there are no keys.
        """
        self._exports = Exports(side)
        super().__init__(side, self._exports, self._exports.events)
        self._guardian = side.keys.guard(self._context) if side.keys is not None else None
        self._routers = [make_router(self._context, side) for _ in range(side.config.num_stripes)]
        self._looked_at = self._turned_at = side.clock()
        self._next_stripe = 0
        self._num_payloads = 0
        try:
            addresses = {
                transport.scheme: tuple(transport.bind(router, i) for i, router in enumerate(self._routers))
                for transport in side.transports
            }
        except BaseException:
            self._close_sockets()
            self.wakeup.close()
            raise
        self.endpoint = str(Endpoint(host_id(), addresses))

    # For the engine's thread

    def events(self) -> list[Released]:
        """Take what has happened since; call it once a turn, after the tickets of what came by then are offered."""
        self._looked_at, self._turned_at = self._turned_at, self._side.clock()
        return super().events()

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
        check_block_ids(self._side.memory, block_ids)
        self._tell(self._exports.publish, (request_id, epoch), list(block_ids), wire.join_hashes(hashes))

    def foretell(self, request_id: bytes, epoch: int, num_ahead: int, seconds: float) -> None:
        """Say how many tokens are computed until the prompt is whole, and how long that takes; its fetch is told."""
        self._tell(self._exports.foretell, (request_id, epoch), num_ahead, seconds)

    def finish(self, request_id: bytes, epoch: int, meta: bytes = b"") -> None:
        """The prompt's last block is published; `meta` goes to the other leg with the last message."""
        if len(meta) > wire.MAX_META_NBYTES:
            raise ValueError(f"meta has {len(meta)} bytes, more than {wire.MAX_META_NBYTES}")
        self._tell(self._exports.finish, (request_id, epoch), meta, self._side.clock())

    def withdraw(self, request_id: bytes, epoch: int) -> None:
        """Close an epoch of a request and all before it: cancelled, or preempted. Safe to repeat, and too late."""
        self._tell(self._exports.withdraw, request_id, epoch)

    # For the thread that transfers

    def sockets(self) -> Mapping[Socket, Act]:
        """Sockets on which importers ask."""
        return dict.fromkeys(self._routers, self._on_message)

    def _obey(self) -> None:
        looked_at = self._looked_at  # read first: what was offered before is among the commands
        super()._obey()
        self._exports.looked_at = looked_at

    def _on_message(self, frames: Sequence[Buffer]) -> None:
        self._exports.receive(bytes(frames[0]), frames[1:])

    def _send(self) -> bool:
        self._send_replies()
        blocked: set[bytes] = set()
        for _ in range(BATCHES_A_TURN):
            progress = False
            for batch in self._exports.ready_batches():
                if batch.peer not in blocked and self._send_batch(batch):
                    progress = True
                else:
                    blocked.add(batch.peer)
            if not progress:
                return False
        return True

    def _send_replies(self) -> None:
        while self._exports.replies:
            send(self._routers[0], *self._exports.replies.popleft())

    def _send_batch(self, batch: Batch) -> bool:
        """Hand a batch to the first stripe that takes it; False: none does."""
        num_stripes = len(self._routers)
        for stripe in range(self._next_stripe, self._next_stripe + num_stripes):
            router = self._routers[stripe % num_stripes]
            if not send(router, batch.peer, flags=zmq.SNDMORE):
                continue
            self._next_stripe = (stripe + 1) % num_stripes
            # Once its first part is taken the rest of a message never waits. Only now are the blocks summed, so that
            # the socket finds them in the processor's cache.
            reads: list[weakref.ref[memoryview]] = []
            header, payload = self._exports.take(batch, partial(_all_gone, reads))
            router.send(header, zmq.SNDMORE if payload else 0)
            self._num_payloads += bool(payload)
            ring = self._ring if self._num_payloads % 2 else None
            for left, view in enumerate(payload, start=1 - len(payload)):
                part = memoryview(view)
                reads.append(weakref.ref(part, ring))
                router.send(part, zmq.SNDMORE if left else 0, copy=False)
                del part
            return True
        return False

    def _ring(self, _: object) -> None:
        """Wake the owner, in ZeroMQ's collecting thread: blocks were sent, so there is room for more.

        After every second message: a queue says that it has room when half of it is free.
        """
        self.wakeup.set()

    def _disconnect(self) -> None:
        self._send_replies()
        self._close_sockets()
        self._settle(CLOSE_S)

    def _close_sockets(self) -> None:
        if self._guardian is not None:
            self._guardian.stop()
        for router in self._routers:
            router.close(linger=0)
        for transport in self._side.transports:
            transport.close()
        self._context.term()


def _all_gone(reads: Sequence[weakref.ref[memoryview]]) -> bool:
    """Whether ZeroMQ has let go of what was given to it without copying."""
    return all(read() is None for read in reads)
