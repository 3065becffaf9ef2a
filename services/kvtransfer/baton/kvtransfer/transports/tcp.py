"""TCP between hosts, and between containers of one host."""

from __future__ import annotations

from collections.abc import Sequence

import zmq

from baton.errors import ConfigError
from baton.kvtransfer.transports.transport import Socket, Transport
from baton.listener import bracketed

WILDCARDS = frozenset({"*", "", "0.0.0.0", "::", "[::]"})


class TcpTransport(Transport):
    """Listen on one address of this host, a port a stripe."""

    scheme = "tcp"

    def __init__(self, host: str = "127.0.0.1", *, port: int = 0, announce: str = "") -> None:
        """Take the first stripe's `port` (0: any free ones) and the host to `announce`, if it is another."""
        self._host = host
        self._port = port
        self._announce = announce or host
        if self._announce in WILDCARDS:
            raise ConfigError(f"host={host!r} says where to listen, not where peers connect to: set announce.")

    def bind(self, socket: Socket, stripe: int) -> str:
        """Listen; on every network only if the socket has keys."""
        is_wildcard = self._host in WILDCARDS
        if is_wildcard and socket.getsockopt(zmq.MECHANISM) != zmq.CURVE:
            raise ConfigError(
                f"host={self._host!r} would let every network send KV: name one address, or encrypt with --encrypt-kv."
            )
        socket.setsockopt(zmq.IPV6, ":" in self._host)
        host = "*" if is_wildcard else bracketed(self._host)
        address = f"tcp://{host}:{self._port + stripe if self._port else '*'}"
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            raise ConfigError(f"cannot listen on {address}: {error}") from None
        port = socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]
        return f"tcp://{bracketed(self._announce)}:{port}"

    def reaches(self, addresses: Sequence[str], *, same_host: bool) -> bool:
        """Assume that what was announced is routed, unless it is the loopback of another host."""
        return same_host or not addresses[0].startswith(("tcp://127.", "tcp://localhost:", "tcp://[::1]"))

    def connect(self, socket: Socket, address: str) -> None:
        """Connect to an exporter's address."""
        socket.setsockopt(zmq.IPV6, "[" in address)
        socket.connect(address)
