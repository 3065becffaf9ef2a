"""Who may ask a server that asks for no key since only its own machine reaches it: not web pages of elsewhere.

A browser on this machine reaches it too, for whatever page is open. Two things give such a page away: its `Origin`, and,
where its name was made to lead here (DNS rebinding), the `Host` that it asked for. Programs send neither of another.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

from starlette.types import Receive, Scope, Send

from baton.router.http_config import HttpConfig
from baton.router.json_answers import send_json
from baton.router.openai.refusals import error_object

_PRIVATE_ENDINGS = (".localhost", ".local", ".internal")
"""Of names that nobody can have in the public DNS, where no name is without a dot either."""
_WAY_OUT = "Give --api-key, or say --allow-anonymous"


class LocalGuard:
    """Refuses what a page of elsewhere sends, before anything reads it."""

    def __init__(self, app: Any, host: str, config: HttpConfig) -> None:
        self._app = app
        self._origins = frozenset(config.allowed_origins)
        named = (urlsplit(origin).hostname for origin in config.allowed_origins)
        self._hosts = frozenset({host.lower(), socket.gethostname().lower(), *filter(None, named)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reason = self._refusal(scope) if scope["type"] == "http" else ""
        if reason:
            await send_json(send, 403, error_object(reason, 403))
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> str:
        for name, value in scope["headers"]:
            if name == b"host" and not self._is_ours(_host_of(b"http://" + value)):
                said = value[:80].decode("latin-1")
                return f"host={said!r} is not a name of this machine, and no key is asked for. {_WAY_OUT}."
            if name == b"origin" and not self._may_ask(value.decode("latin-1")):
                said = value[:80].decode("latin-1")
                return (
                    f"origin={said!r} may not ask, as no key is asked for. {_WAY_OUT}, or name it in --allowed-origins."
                )
            if name == b"content-type" and value.lower().startswith(b"text/plain"):
                return "content-type='text/plain' is what any page may send. Send application/json."
        return ""

    def _may_ask(self, origin: str) -> bool:
        """Whether an origin was named, is a page of this machine, or no page: programs have schemes of their own."""
        is_page = origin == "null" or origin.startswith(("http:", "https:"))
        return origin in self._origins or not is_page or self._is_ours(_host_of(origin.encode("latin-1")))

    def _is_ours(self, host: str) -> bool:
        """Whether no other machine's page can have been asked for by this name; an address is no name."""
        if host in self._hosts or host.endswith(_PRIVATE_ENDINGS) or (host and not set(host) & set(".:")):
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True


def _host_of(url: bytes) -> str:
    try:
        return urlsplit(url.decode("latin-1")).hostname or ""
    except ValueError:
        return ""
