"""HostName: where a worker's name leads, looked up beside everything else.

ZeroMQ looks names up in the one thread that moves the messages of all connections: a name that DNS does not answer stops
every worker there. So it is given addresses only.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import threading
from collections.abc import Callable

from baton.errors import ConfigError
from baton.listener import bracketed
from baton.logs import get_logger

_NAME = re.compile(r"tcp://([\w.-]+):(\d{1,5})", re.ASCII)
_log = get_logger("host_name")


class HostName:
    """The host of an endpoint. Each lookup has a thread of its own, one at a time; the last answer is kept."""

    def __init__(self, host: str, port: int, on_change: Callable[[], None]) -> None:
        """`on_change` is called on the event loop when `endpoint` has become another one."""
        self.endpoint = ""
        """Where to connect, with an address for the name; empty: not known yet."""
        self._host, self._port = host, port
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._is_asking = False
        self._reason = ""

    @classmethod
    def of(cls, endpoint: str, on_change: Callable[[], None]) -> HostName | None:
        """Return the name that an endpoint has; None: it has an address, or is no name's.

        Raises:
            ConfigError: what should be a name cannot be one.
        """
        if not endpoint.startswith("tcp://"):
            return None
        host = endpoint.removeprefix("tcp://").rpartition(":")[0]
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(host.strip("[]"))
            return None
        named = _NAME.fullmatch(endpoint)
        if named is None or not 0 < int(named[2]) < 65536:
            raise ConfigError(f"worker={endpoint!r} is not valid: it must be as tcp://HOST:PORT.")
        return cls(named[1], int(named[2]), on_change)

    def look_up(self, *, after: str = "") -> None:
        """Begin to ask for the addresses; if `after` is still one of the endpoints, take the one that follows."""
        if not self._is_asking:
            self._is_asking = True
            threading.Thread(target=self._ask, args=(after,), name=f"name {self._host}", daemon=True).start()

    def _ask(self, after: str) -> None:
        found, reason = [], ""
        try:
            answers = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            # IPv4 first, as ZeroMQ has it: localhost is ::1 too, where a worker seldom listens
            for answer in sorted(answers, key=lambda answer: answer[0] != socket.AF_INET):
                found.append(f"tcp://{bracketed(str(answer[4][0]))}:{self._port}")
        except (OSError, UnicodeError) as error:
            reason = str(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            self._loop.call_soon_threadsafe(self._take, found, reason, after)

    def _take(self, found: list[str], reason: str, after: str) -> None:
        self._is_asking = False
        if reason and reason != self._reason:
            _log.warning("name_not_found", name=self._host, reason=reason)
        self._reason = reason
        if not found:  # what was known may still be right
            return
        is_known = self.endpoint in found
        chosen = found[(found.index(self.endpoint) + (self.endpoint == after)) % len(found)] if is_known else found[0]
        if chosen != self.endpoint:
            self.endpoint = chosen
            self._on_change()
