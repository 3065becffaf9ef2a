"""HTTP to servers of ours. Proxies that the environment names are for what lies elsewhere: none is asked for the loopback."""

from __future__ import annotations

import contextlib
import ssl
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from baton.errors import ConfigError
from baton.listener import is_loopback
from baton.router.http_config import HttpConfig

_Client = TypeVar("_Client", httpx.Client, httpx.AsyncClient)
UDS_URL = "http://baton"
"""Of a router that listens on a unix socket."""


def client_of(kind: type[_Client], url: str, **options: Any) -> _Client:
    """Make a client of a server that a user named; its `base_url` is the caller's to give.

    Raises:
        ConfigError: it lies behind a proxy of a kind that httpx needs a package for.
    """
    try:
        return kind(trust_env=not is_loopback(_host(url)), **options)
    except ImportError as error:
        raise ConfigError(f"the proxy that the environment names cannot be used: {error}") from None


def _host(url: str) -> str:
    with contextlib.suppress(ValueError):  # which asking will tell
        return urlsplit(url).hostname or ""
    return ""


def client_of_started(http: HttpConfig, **options: Any) -> httpx.AsyncClient:
    """Make a client of the router and workers that this process has started, however the router listens."""
    if http.uds is not None:
        options["mounts"] = {UDS_URL: httpx.AsyncHTTPTransport(uds=http.uds)}
    if http.ssl_certfile is not None:
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE  # it is our own child
        trusting.load_cert_chain(http.ssl_certfile, http.ssl_keyfile)  # where a certificate is asked of clients
        options["verify"] = trusting
    return httpx.AsyncClient(trust_env=False, **options)
