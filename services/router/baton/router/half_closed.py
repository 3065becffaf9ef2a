"""A client that has shut its sending half: it waits for the answer, or it has left.

Both look the same: the end of what it sends. Only who has left answers what is sent to it with a reset. So it is sent an interim
response, `100 Continue`, which every client of HTTP/1.1 takes as nothing; a stream that has begun is sent its events anyway.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

PROBE_S = 5.0
"""Between interim responses."""
_FIRST_LOOK_S, _MOST_S = 0.02, 0.5
_PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
_RESET = 7  # TCP_CLOSE


def may_wait(cycle: RequestResponseCycle | None, *, is_whole: bool) -> bool:
    """Whether a client may still wait for the answer to its last request, which came as a whole."""
    if cycle is None or not is_whole or cycle.response_complete:
        return False
    return bool(cycle.scope["http_version"] == "1.1" and cycle.scope["scheme"] == "http")  # TLS has no halves


class HalfClosed:
    """Looks after one connection whose client sends no more; ends it when the client has left."""

    def __init__(self, transport: Any, cycle: RequestResponseCycle) -> None:
        """`cycle` is that of the last request."""
        self._transport = transport
        self._cycle = cycle
        self._loop = asyncio.get_running_loop()
        self._probed_at = float("-inf")
        self._look_s = _FIRST_LOOK_S
        self._timer: asyncio.TimerHandle | None = None
        self._look()

    def stop(self) -> None:
        """The connection is closed."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        if self._transport.is_closing():
            return
        if self._is_reset():
            self._transport.abort()
            return
        now = self._loop.time()
        if not self._cycle.response_started and now - self._probed_at >= PROBE_S:
            self._probed_at = now
            self._transport.write(_PROBE)
        self._timer = self._loop.call_later(self._look_s, self._look)
        self._look_s = min(2 * self._look_s, _MOST_S)

    def _is_reset(self) -> bool:
        """Ask the system: nobody reads from this connection any more, so nobody else would be told."""
        try:
            state: bytes = self._transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        except (AttributeError, OSError):  # no TCP: a unix socket, whose writes fail at once; or not Linux
            return False
        return state[0] == _RESET
