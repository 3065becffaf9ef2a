"""Proxies that the environment names are for what lies elsewhere."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import httpx
import pytest

from baton.errors import ConfigError
from baton.own_http import client_of

SOCKS = "socks5://127.0.0.1:9"


@pytest.fixture
def server() -> Iterator[str]:
    """Serve an empty folder's listing; return its address."""
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield f"http://localhost:{made.server_port}"
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.mark.parametrize("proxy", [SOCKS, "http://127.0.0.1:9"])
def test_no_proxy_is_asked_for_the_loopback(server: str, proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALL_PROXY", "http_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy)
    with client_of(httpx.Client, server) as client:
        assert client.head(server).status_code == 200


def test_a_proxy_that_httpx_has_no_package_for_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", SOCKS)
    with pytest.raises(ConfigError, match="socksio"):
        client_of(httpx.AsyncClient, "http://203.0.113.7:8000")
    client_of(httpx.Client, "http://[::1]:8000").close()
