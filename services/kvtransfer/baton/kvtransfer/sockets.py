"""ZeroMQ sockets as both sides want them: bounded, never lingering, never blocking."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from baton.kvtransfer import wire
from baton.kvtransfer.settings import LARGEST_NBYTES, MIB
from baton.kvtransfer.side import Side
from baton.kvtransfer.transports.transport import Socket

Context = zmq.Context[Any]
Act = Callable[[Sequence[memoryview]], None]
"""Takes the frames of one message."""
# Short queues on purpose: at 2 MiB a message both sides' queues stay in the last-level cache, and the allocator
# reuses a few hot pages. With 4 sockets of 8 and 4 messages of 4 MiB a 2-core host moved half as much.
SEND_QUEUE = 4
"""Messages that wait in one socket for one peer."""
RECEIVE_QUEUE = 2
"""Messages that wait in one socket to be read."""
HEARTBEATS_A_LEASE = 8
HANDSHAKE_MS = 5000
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
MAX_FRAMES = wire.MAX_BATCH_BLOCKS + 2
"""Routing id, header and payload. What a message has beyond is read and dropped."""


def keep_message_memory() -> None:
    """Have this process's allocator keep what received messages leave free, where it is glibc's.

    It gives large pieces back to the kernel at once otherwise, and faulting the pages of the next message in takes
    longer than filling them: 0.52 CPU seconds a GB of blocks over tcp, and 0.38 so.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 * MIB)  # the most that it takes
        mallopt(_M_TRIM_THRESHOLD, 64 * MIB)


def make_router(context: Context, side: Side) -> Socket:
    """Make an exporter's socket: what cannot be sent says so, and is not dropped."""
    router = _make(context, zmq.ROUTER, side)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.ROUTER_HANDOVER, 1)  # an importer that reconnects takes its id, 16 random bytes, along
    router.setsockopt(zmq.SNDHWM, SEND_QUEUE)
    router.setsockopt(zmq.RCVHWM, 1024)
    router.setsockopt(zmq.MAXMSGSIZE, wire.MAX_HEADER_NBYTES)
    if side.keys is not None:
        side.keys.serve(router)
    return router


def make_dealer(context: Context, side: Side, routing_id: bytes) -> Socket:
    """Make an importer's socket, known to the exporter by `routing_id`."""
    dealer = _make(context, zmq.DEALER, side)
    dealer.setsockopt(zmq.ROUTING_ID, routing_id)
    dealer.setsockopt(zmq.SNDHWM, 4096)
    dealer.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE)
    largest = max(wire.MAX_HEADER_NBYTES, LARGEST_NBYTES, side.config.message_nbytes, side.memory.block_nbytes)
    dealer.setsockopt(zmq.MAXMSGSIZE, largest)
    dealer.setsockopt(zmq.RECONNECT_IVL, 50)
    dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
    if side.keys is not None:
        side.keys.connect(dealer)
    return dealer


def receive(socket: Socket, most: int, act: Act) -> bool:
    """Act on at most so many messages, without copying them; True: there may be more."""
    for _ in range(most):
        try:
            frame = socket.recv(zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return False
        frames = [frame.buffer]
        while frame.more:
            frame = socket.recv(copy=False)
            if len(frames) <= MAX_FRAMES:
                frames.append(frame.buffer)
        act(frames)
    return True


def send(socket: Socket, *parts: bytes, flags: int = 0) -> bool:
    """Send a small message, or its beginning; False: the socket cannot take it now, or the peer is gone."""
    try:
        socket.send_multipart(parts, flags | zmq.DONTWAIT)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            return False
        raise
    return True


def _make(context: Context, kind: int, side: Side) -> Socket:
    socket: Socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    # Blocks stay queued for an importer that is stopped, or lives and does not read, as long as its connection does.
    # The exporter cuts one whose pings stay out for the time it named; one that never reads gets no answer to its own
    # pings, and cuts itself. That time is the lease: what is not renewed is not read any more either.
    lease_ms = int(side.config.lease_s * 1000)
    socket.setsockopt(zmq.HEARTBEAT_IVL, max(1, lease_ms // HEARTBEATS_A_LEASE))
    socket.setsockopt(zmq.HEARTBEAT_TTL, lease_ms)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, lease_ms)
    return socket
