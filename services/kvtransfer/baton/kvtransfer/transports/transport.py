"""What a transport is, how an exporter names its addresses, and how a pair picks one.

An exporter listens on all of its transports at once and announces one text, its *endpoint*: every address of every
stripe, and the host it runs on, as `host:4f0a...;ipc:///run/kv-1b-0;tcp://10.0.0.7:41001;...`. The importer takes the
first of its own transports that says it can use it, and the next where that fails.
"""

from __future__ import annotations

import itertools
import socket as system_socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import zmq

from baton.errors import ConfigError
from baton.kvtransfer.memory import PeerMemory

MAX_ENDPOINT_LEN = 4096
MAX_STRIPES = 16

Socket = zmq.Socket[Any]


class Transport(ABC):
    """One way to reach a worker. Who makes a socket sets its other options."""

    scheme: ClassVar[str]

    @abstractmethod
    def bind(self, socket: Socket, stripe: int) -> str:
        """Listen on the socket; return the address to announce.

        Raises:
            ConfigError: that cannot be.
        """

    @abstractmethod
    def reaches(self, addresses: Sequence[str], *, same_host: bool) -> bool:
        """Whether this process can connect to these addresses."""

    def connect(self, socket: Socket, address: str) -> None:
        """Connect the socket to an exporter's address."""
        socket.connect(address)

    def map(self, address: str) -> PeerMemory | None:
        """Map the exporter's blocks, to read them where they lie; None: their bytes come over the socket.

        Raises:
            ConfigError: they are gone, or cannot be mapped.
        """
        return None

    def close(self) -> None:  # noqa: B027
        """Remove what listening left behind."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An exporter's addresses: for each scheme one a stripe."""

    host: str
    addresses: dict[str, tuple[str, ...]]

    def __str__(self) -> str:
        return ";".join((f"host:{self.host}", *(a for group in self.addresses.values() for a in group)))

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read what an exporter announced.

        Raises:
            ConfigError: it is no endpoint.
        """
        host, *addresses = text.split(";")
        groups: dict[str, list[str]] = {}
        for address in addresses:
            groups.setdefault(address.partition("://")[0], []).append(address)
        well_formed = host.startswith("host:") and all("://" in address for address in addresses)
        if not (well_formed and groups and len(text) <= MAX_ENDPOINT_LEN):
            raise ConfigError(f"{text[:80]!r} is not the KV endpoint of a worker")
        if any(len(group) > MAX_STRIPES for group in groups.values()):
            raise ConfigError(f"a KV endpoint has more than {MAX_STRIPES} addresses of one kind")
        return cls(host.removeprefix("host:"), {scheme: tuple(group) for scheme, group in groups.items()})


def choose(transports: Sequence[Transport], endpoint: Endpoint) -> Iterator[Transport]:
    """Choose the transports that reach the endpoint, the best first; those after it are looked at when they are asked for.

    Raises:
        ConfigError: none does.
    """
    same_host = endpoint.host == host_id()
    found = (
        transport
        for transport in transports
        if (addresses := endpoint.addresses.get(transport.scheme)) and transport.reaches(addresses, same_host=same_host)
    )
    best = next(found, None)
    if best is None:
        raise ConfigError(f"no transport of {[t.scheme for t in transports]} reaches {endpoint}")
    return itertools.chain((best,), found)


def only(transports: Sequence[Transport], names: Sequence[str]) -> Sequence[Transport]:
    """Return those with these names, all if there are none.

    Raises:
        ConfigError: one is not there.
    """
    possible = [transport.scheme for transport in transports]
    for name in names:
        if name not in possible:
            raise ConfigError(f"kv_transports={name!r} is not valid: this worker can use {', '.join(possible)}.")
    return [transport for transport in transports if not names or transport.scheme in names]


@cache
def host_id() -> str:
    """Name the running system, the same in all of its processes and containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        boot = system_socket.gethostname()
    return blake2b(boot.encode(), digest_size=8).hexdigest()
