"""Run a router: uvicorn with uvloop and httptools, one process, one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
import sys
from pathlib import Path

import msgspec
import uvicorn

from baton.errors import ConfigError, Unavailable
from baton.listener import bind_tcp
from baton.logs import LogConfig, get_logger, setup_logs
from baton.registry import Registry
from baton.router.app import create_app
from baton.router.config import RouterConfig
from baton.router.http_config import HttpConfig
from baton.router.http_head import bounded_protocol
from baton.router.router_state import RouterState
from baton.signals import end_signals

_LAST_WORDS_S = 5
"""For clients to read how their requests ended."""
_SHORT_KEY = 16
_log = get_logger("server")


class RouterServer(uvicorn.Server):
    """uvicorn, which at its end lets open requests go on for `drain_s`, and then ends each with an error of its own."""

    def __init__(self, config: uvicorn.Config, router: RouterState) -> None:
        super().__init__(config)
        self.router = router

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.get_running_loop().call_later(
            self.router.config.drain_s, self.router.dispatcher.end_all, ShuttingDown()
        )
        await super().shutdown(sockets)
        ending.cancel()


class ShuttingDown(Unavailable):
    """The router has drained for as long as it may."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down and could not wait for the end of the answer. Send it again.")


def make_server(config: RouterConfig, registry: Registry | None = None, http: HttpConfig | None = None) -> RouterServer:
    """Build the HTTP server of a router; `registry` replaces the one that the config names."""
    http = http or HttpConfig()
    router = RouterState(config, registry, logs_load=not http.disable_log_stats)
    settings = uvicorn.Config(
        create_app(router, http),
        host=config.host,
        port=config.port,
        uds=http.uds,
        ssl_keyfile=http.ssl_keyfile,
        ssl_certfile=http.ssl_certfile,
        ssl_ca_certs=http.ssl_ca_certs,
        ssl_cert_reqs=http.ssl_cert_reqs,
        loop="uvloop",
        http=bounded_protocol(config.max_header_nbytes, config.head_timeout_s),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        backlog=4096,
        timeout_keep_alive=75,  # above what load balancers keep idle connections for
        timeout_graceful_shutdown=math.ceil(config.drain_s) + _LAST_WORDS_S,
    )
    return RouterServer(settings, router)


def serve(config: RouterConfig, http: HttpConfig | None = None, logs: LogConfig | None = None) -> None:
    """Serve until a signal ends it.

    Raises:
        ConfigError: nothing names workers, everybody might ask, the address cannot be had, or the model cannot be loaded.
    """
    setup_logs("router", logs or LogConfig())
    http = http or HttpConfig()
    http.check(config.host, config.api_key)
    if any(len(key) < _SHORT_KEY for key in config.api_key):
        _log.warning(
            "api_key_short", effect=f"it may be guessed: `baton secrets` makes one; use {_SHORT_KEY} characters"
        )
    named_by = [*config.worker, *(["Redis"] if config.redis_url else [])]
    if not named_by:
        raise ConfigError("nothing names workers: give --redis-url, or --worker for each of them.")
    with contextlib.nullcontext() if http.uds else bind_tcp(config.host, config.port) as listener:
        server = make_server(config, http=http)
        for number in end_signals():
            signal.signal(number, server.handle_exit)
        _log.info("waiting_for_workers", named_by=named_by)
        try:
            server.run(None if listener is None else [listener])
        finally:
            if http.uds is not None:
                Path(http.uds).unlink(missing_ok=True)


def main() -> None:
    """Serve with the settings that stand, as JSON, in the first argument."""
    serve(msgspec.convert(msgspec.json.decode(sys.argv[1]), RouterConfig))


if __name__ == "__main__":
    main()
