"""Run a router: uvicorn with uvloop and httptools, one process, one event loop."""

from __future__ import annotations

import sys

import msgspec
import uvicorn

from baton.errors import ConfigError
from baton.listener import bind_tcp
from baton.logs import get_logger, setup_logs
from baton.registry import Registry
from baton.router.app import create_app
from baton.router.config import RouterConfig
from baton.router.http_head import bounded_protocol

_log = get_logger("server")


def make_server(config: RouterConfig, registry: Registry | None = None) -> uvicorn.Server:
    """Build the HTTP server of a router.

    SIGTERM closes the listening socket, lets open streams go on for `drain_s`, then cancels what is left.
    """
    return uvicorn.Server(
        uvicorn.Config(
            create_app(config, registry),
            host=config.host,
            port=config.port,
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
            timeout_graceful_shutdown=int(config.drain_s),
        )
    )


def serve(config: RouterConfig) -> None:
    """Serve until a signal ends it.

    Raises:
        ConfigError: nothing names workers, the address cannot be had, or the model cannot be loaded.
    """
    setup_logs("router")
    named_by = [*config.worker, *(["Redis"] if config.redis_url else [])]
    if not named_by:
        raise ConfigError("nothing names workers: give --redis-url, or --worker for each of them.")
    with bind_tcp(config.host, config.port) as listener:
        server = make_server(config)
        _log.info("waiting_for_workers", named_by=named_by)
        server.run([listener])


def main() -> None:
    """Serve with the settings that stand, as JSON, in the first argument."""
    serve(msgspec.convert(msgspec.json.decode(sys.argv[1]), RouterConfig))


if __name__ == "__main__":
    main()
