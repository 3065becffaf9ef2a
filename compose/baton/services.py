"""How each service is put together as a process: what `baton router`, `baton prefill`, `baton decode` and
`baton kvstore` run."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from baton.config import EngineConfig, demo_model_path
from baton.errors import ConfigError
from baton.kvtransfer.store.settings import StoreConfig, StoreSize
from baton.logs import LogConfig, setup_logs
from baton.messages import Leg
from baton.registry import Registry
from baton.router.config import RouterConfig
from baton.router.http_config import HttpConfig
from baton.worker.settings import WorkerConfig

DEMO_NAME = "baton-demo"


def model_name(model: str | None, served: Sequence[str]) -> str:
    """Return the name by which clients call a model: as told, or the folder's, or the hub id."""
    if served:
        return served[0]
    if model is None:
        return DEMO_NAME
    return Path(model).resolve().name if Path(model).is_dir() else model


def own_address() -> str:
    """Return the address of this machine's name: in a container, the one by which others on its network reach it.

    Raises:
        ConfigError: the name has none, or only that of the loopback.
    """
    name = socket.gethostname()
    try:
        address = str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ConfigError(f"host='auto': {name} has no address: {error.strerror}. Name one.") from None
    if ipaddress.ip_address(address).is_loopback:
        raise ConfigError(f"host='auto': {name} is {address}, which others do not reach. Name an address.")
    return address


def run_router(config: RouterConfig, http: HttpConfig, logs: LogConfig) -> None:
    """Run a router until a signal ends it."""
    from baton.router.server import serve

    if not config.model:
        served = config.served_model_name or (DEMO_NAME,)
        config = dataclasses.replace(config, model=str(demo_model_path()), served_model_name=served)
    if config.host == "auto":
        config = dataclasses.replace(config, host=own_address())
    serve(config, http, logs)


def run_worker(engine: EngineConfig, worker: WorkerConfig, logs: LogConfig, legs: Sequence[Leg]) -> int:
    """Run a worker's face, which starts its engine process; return the exit status."""
    from baton.worker.face import Face
    from baton.worker.stats import Assignment

    if worker.host == "auto":
        worker = dataclasses.replace(worker, host=own_address())
    name = model_name(engine.model, worker.served_model_name)
    if engine.model is None:
        engine = dataclasses.replace(engine, model=str(demo_model_path()))
    worker_id = worker.worker_id or f"{legs[0]}-{socket.gethostname()}-{secrets.token_hex(3)}"
    setup_logs(worker_id, logs)
    assignment = Assignment(
        worker_id=worker_id, legs=list(legs), model_name=name, engine=engine, worker=worker, logs=logs
    )
    registry = None if worker.redis_url is None else Registry(worker.redis_url, name, worker.redis_password)
    face = Face(assignment, [sys.executable, "-m", "baton.engine_process"], registry)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return asyncio.run(face.serve())


def run_kvstore(config: StoreConfig, size: StoreSize, logs: LogConfig) -> int:
    """Run the store of a host until a signal ends it; return the exit status."""
    from baton.kvtransfer.store.service import StoreService

    if config.host == "auto":
        config = dataclasses.replace(config, host=own_address())
    name = model_name(config.model, config.served_model_name)
    store_id = config.worker_id or f"kvstore-{socket.gethostname()}"
    setup_logs(store_id, logs)
    return asyncio.run(StoreService(config, size, name, store_id).serve())
