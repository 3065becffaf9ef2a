"""`docker compose up`: built, started, scaled, scraped, broken and taken down, as an operator does. Run by `make compose-test`."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from demo.words import FIRST_NAMES
from tests.compose.stack import (
    ROUTER_IMAGE,
    WORKER_IMAGE,
    Container,
    Stack,
    docker,
    run_to_its_end,
    running,
    workers_of,
)
from tests.processes import eventually

from baton.llm import LLM, SamplingParams
from baton.metrics import RouterMetrics
from baton.router.vllm_series import VllmSeries

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]
NUM_STREAMS = 50
NUM_TOKENS = 100
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SERIES = (
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "gpu_cache_usage_perc"),
    *("prefix_cache_queries_total", "prefix_cache_hits_total", "prompt_tokens_total", "generation_tokens_total"),
    *("request_success_total", "num_preemptions_total", "time_to_first_token_seconds_count"),
    *("inter_token_latency_seconds_count", "e2e_request_latency_seconds_count", "request_queue_time_seconds_count"),
    *("kv_transfer_bytes_total", "kv_transfer_seconds_count", "kv_transfer_exposed_seconds_count"),
    *("kv_integrity_failures_total", "kv_leases_held", "kv_stranded_bytes", "replays_total"),
    *("admission_refusals_total", "route_decisions_total", "phase_seconds_count"),
)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Build the images and run the stack; at the end nothing of it may be left."""
    stack = Stack(f"batontest{uuid.uuid4().hex[:6]}", BATON_PATH="remote")
    began = time.monotonic()
    stack.must("build", timeout_s=1800)
    say(f"images built in {time.monotonic() - began:.0f} s")
    try:
        began = time.monotonic()
        stack.must("up", "-d", *("redis", "router", "prefill", "decode"))
        eventually(lambda: stack.ready().get("status") == "ready", "it is ready", 90)
        answer = stack.client().chat.completions.create(model="baton-demo", messages=QUESTION, temperature=0)
        say(f"from up to the first answer: {time.monotonic() - began:.1f} s")
        assert "Paris" in (answer.choices[0].message.content or "")
        yield stack
    finally:
        stack.down()
    assert stack.remains() == []


def say(line: str) -> None:
    print(f"\n    {line}", flush=True)


# -- images ---------------------------------------------------------------------------------------------------


def shell(image: str, script: str) -> tuple[int, list[str]]:
    return run_to_its_end(image, "-c", script, options=("--entrypoint", "sh"))


@pytest.mark.parametrize("image", [ROUTER_IMAGE, WORKER_IMAGE])
def test_images_hold_what_is_needed_and_nothing_else(stack: Stack, image: str) -> None:
    _, lines = shell(image, "id -u; touch /opt/baton/x /x 2>&1; which gcc cc make ld hatchling")
    assert lines[0] == "10001"
    assert all("Read-only" in line for line in lines[1:])
    assert len(lines) == 3
    # pip of the base image checks what is installed
    assert shell(image, "PIP_PYTHON=/opt/baton/bin/python pip check --disable-pip-version-check")[0] == 0
    has_torch, _ = shell(image, "python -c 'import torch'")
    assert (has_torch == 0) == (image == WORKER_IMAGE)
    labels = docker("inspect", "--format", "{{json .Config.Labels}}", image)
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}" in labels
    assert "baton.ready" in docker("inspect", "--format", "{{.Config.Healthcheck.Test}}", image)


def test_sizes_of_the_images(stack: Stack) -> None:
    base = int(docker("inspect", "--format", "{{.Size}}", "python:3.11-slim-bookworm"))
    for image in (ROUTER_IMAGE, WORKER_IMAGE):
        size = int(docker("inspect", "--format", "{{.Size}}", image))
        say(f"{image}: {size / 1e6:.0f} MB, of which {(size - base) / 1e6:.0f} MB on top of its base image")
        assert size > base


# -- serving --------------------------------------------------------------------------------------------------


def test_the_sdk_is_served_through_the_published_port(stack: Stack) -> None:
    client = stack.client()
    assert [model.id for model in client.models.list()] == ["baton-demo"]
    chunks: Any = client.chat.completions.create(model="baton-demo", messages=QUESTION, temperature=0, stream=True)
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong-key").models.list()


def test_every_container_becomes_healthy(stack: Stack) -> None:
    for service in ("redis", "router", "prefill", "decode"):
        (container,) = stack.containers(service)
        eventually(lambda container=container: container.health == "healthy", f"{service} is healthy", 60)  # type: ignore[misc]


def test_scaled_workers_register_themselves_and_take_traffic(stack: Stack) -> None:
    before = {container.id for leg in ("prefill", "decode") for container in stack.containers(leg)}
    stack.scale(prefill=2, decode=3)
    seen: dict[str, float] = {}

    async def ask(client: openai.AsyncOpenAI, i: int) -> None:
        answer = await client.chat.completions.with_raw_response.create(
            model="baton-demo",
            messages=conversation(i % NUM_STREAMS),
            max_tokens=32,
            stream=True,
            extra_headers={"x-baton-explain": "1"},
        )
        for worker in workers_of(answer.headers["x-baton-route"]):
            seen.setdefault(worker, time.time())
        events: Any = answer.parse()
        async for _ in events:
            pass

    async def ask_many() -> None:
        async with stack.async_client() as client:
            await asyncio.gather(*(ask(client, i) for i in range(NUM_STREAMS)))

    eventually(lambda: asyncio.run(ask_many()) or len(seen) == 5, "each worker has served a request", 60)
    for leg in ("prefill", "decode"):
        for container in stack.containers(leg):
            (name,) = (name for name in seen if name.startswith(f"{leg}-{container.id[:12]}"))
            if container.id not in before:
                say(f"{name}: first traffic {seen[name] - container.ready_at():.1f} s after it was ready")


def test_prometheus_finds_every_container_and_every_series(stack: Stack) -> None:
    stack.must("--profile", "monitoring", "up", "-d", "--no-deps", "prometheus")

    def targets() -> list[tuple[str, str]]:
        with contextlib.suppress(httpx.HTTPError):  # it starts: refused at first, then 503
            found = stack.prometheus("targets")["activeTargets"]
            return sorted((target["labels"]["job"], target["health"]) for target in found)
        return []

    wanted = [*[("decode", "up")] * 3, *[("prefill", "up")] * 2, ("router", "up")]
    eventually(lambda: targets() == wanted, "all six targets are up", 60)
    names = set(stack.prometheus("label/__name__/values"))
    assert [name for name in SERIES if f"baton:{name}" not in names] == []
    metrics = RouterMetrics("m")
    VllmSeries(metrics)
    shared = metrics.render().decode()
    aliases = {line.split()[2] for line in shared.splitlines() if line.startswith("# TYPE vllm:")}
    found = {name.removesuffix("_count") for name in names}
    assert [alias for alias in aliases if alias not in found] == []

    def health_of_rules() -> set[str]:
        groups = stack.prometheus("rules")["groups"]
        return {rule["health"] for group in groups for rule in group["rules"]}

    eventually(lambda: health_of_rules() == {"ok"}, "every rule was evaluated", 60)


# -- faults ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wanted() -> list[str]:
    """Return what the offline LLM answers to every stream's question."""
    llm = LLM(use_tqdm=False)
    outputs = llm.chat(
        [conversation(i) for i in range(NUM_STREAMS)],
        [SamplingParams(max_tokens=NUM_TOKENS, **drawn(i)) for i in range(NUM_STREAMS)],
        use_tqdm=False,
    )
    return [output.outputs[0].text for output in outputs]


def conversation(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Tell me a story about {FIRST_NAMES[i]}."}]


def drawn(i: int) -> dict[str, float | int]:
    """Return how a stream's tokens are chosen: one half the likeliest, the other drawn from a seed."""
    return {"temperature": 1.0, "seed": i} if i % 2 else {"temperature": 0.0}


def run_under(stack: Stack, wanted: list[str], disturb: Callable[[], None]) -> None:
    """Run 50 streams; disturb once half of them have tokens; each must end with what it would say undisturbed."""

    async def run() -> tuple[list[str], int]:
        begun, disturbed = set[int](), asyncio.Event()

        async def one(client: openai.AsyncOpenAI, i: int) -> str:
            text = ""
            create: Any = client.chat.completions.create
            chunks = await create(
                model="baton-demo", messages=conversation(i), max_tokens=NUM_TOKENS, stream=True, **drawn(i)
            )
            async for chunk in chunks:
                text += chunk.choices[0].delta.content or ""
                begun.add(i)
                if len(begun) >= NUM_STREAMS // 2:
                    disturbed.set()
            return text

        async with stack.async_client() as client:
            streams = [asyncio.create_task(one(client, i)) for i in range(NUM_STREAMS)]
            await disturbed.wait()
            await asyncio.get_running_loop().run_in_executor(None, disturb)
            num_open = sum(not stream.done() for stream in streams)
            return list(await asyncio.gather(*streams)), num_open

    texts, num_open = asyncio.run(run())
    assert texts == wanted
    say(f"{NUM_STREAMS} streams, {num_open} of them open when the disturbance was over: none lost, none changed")


def busiest(stack: Stack, service: str) -> Container:
    """Return the container of a service with the most requests in flight."""
    headers = {"authorization": f"Bearer {stack.api_key()}"}
    workers = httpx.get(f"{stack.url}/debug/workers", headers=headers, timeout=10).json()["workers"]
    loads = {worker["http"]: worker["in_flight"] for worker in workers}
    return max(stack.containers(service), key=lambda container: loads.get(f"http://{container.address}:8001", -1))


def test_a_decode_container_is_killed_under_streams(stack: Stack, wanted: list[str]) -> None:
    stack.scale(prefill=2, decode=3)
    run_under(stack, wanted, lambda: docker("kill", busiest(stack, "decode").id) and None)
    eventually(lambda: total(stack, "sum(baton:replays_total)") > 0, "Prometheus has seen that streams were replayed")


@pytest.mark.parametrize("service", ["decode", "prefill"])
def test_a_worker_is_stopped_under_streams(stack: Stack, wanted: list[str], service: str) -> None:
    stack.scale(prefill=2, decode=3)
    stopped: list[Container] = []

    def stop() -> None:
        stopped.append(busiest(stack, service))
        began = time.monotonic()
        docker("stop", stopped[0].id)
        say(f"docker stop of a {service} container took {time.monotonic() - began:.1f} s")

    run_under(stack, wanted, stop)
    assert stopped[0].inspect("{{.State.ExitCode}}") == "0"


def test_redis_is_restarted_under_streams(stack: Stack, wanted: list[str]) -> None:
    stack.scale(prefill=2, decode=3)
    run_under(stack, wanted, lambda: stack.must("restart", "redis") and None)
    members = "REDISCLI_AUTH=$(cat /run/secrets/redis_password) redis-cli smembers baton:baton-demo:workers"
    eventually(
        lambda: len(stack.must("exec", "-T", "redis", "sh", "-c", members).split()) == 5,
        "all workers have announced themselves again",
    )
    run_under(stack, wanted, lambda: None)


def test_after_all_of_that_nothing_is_held(stack: Stack) -> None:
    stack.scale(prefill=2, decode=3)
    eventually(
        lambda: (
            total(stack, "sum(baton:kv_stranded_bytes + baton:kv_leases_held)") == 0
            and total(stack, 'sum(baton:kv_blocks{state="held"})') == 0
            and total(stack, "count(up == 1)") == 6
        ),
        "every block and lease is back",
        60,
    )
    assert total(stack, "sum(baton:kv_integrity_failures_total)") == 0


def total(stack: Stack, query: str) -> float:
    result = stack.prometheus("query", query=query)["result"]
    return float(result[0]["value"][1]) if result else -1.0


# -- bad input ------------------------------------------------------------------------------------------------

ALONE = {"BATON_HOST": "127.0.0.1", "BATON_REDIS_URL": "redis://127.0.0.1:1"}
"""A worker that others need not reach."""


@pytest.mark.parametrize(
    ("image", "command", "environment", "said"),
    [
        pytest.param(
            *(WORKER_IMAGE, "decode", {"BATON_CURVE_SECRET_KEY_FILE": "/run/secrets/curve_secret_key"}),
            "BATON_CURVE_SECRET_KEY_FILE=/run/secrets/curve_secret_key cannot be read: No such file",
            id="a secret that is missing",
        ),
        pytest.param(*(WORKER_IMAGE, "prefill", {}), "host='auto' would let every network", id="no keys at all"),
        pytest.param(
            *(WORKER_IMAGE, "decode", {**ALONE, "BATON_MODEL": "no/such-model"}),
            "model='no/such-model' is neither a folder here nor",
            id="a wrong model",
        ),
        pytest.param(
            *(ROUTER_IMAGE, "router", {**ALONE, "BATON_MODEL": "no/such-model"}),
            "'no/such-model'",
            id="a wrong model for the router",
        ),
        pytest.param(
            *(WORKER_IMAGE, "decode", {**ALONE, "BATON_DEVICE": "cuda"}),
            "device='cuda' is not valid",
            id="a GPU that is not there",
        ),
        pytest.param(
            *(WORKER_IMAGE, "decode", {"BATON_HOST": "127.0.0.1", "BATON_REDIS_URL": "redis:6379"}),
            "redis_url is not valid",
            id="no URL of a Redis",
        ),
        pytest.param(*(ROUTER_IMAGE, "router", {}), "say --allow-anonymous", id="a router open to everybody"),
        pytest.param(
            *(ROUTER_IMAGE, "router", {"BATON_ALLOW_ANONYMOUS": "1"}),
            "nothing names workers",
            id="a router that waits for nobody",
        ),
    ],
)
def test_what_cannot_run_says_why_in_one_line_and_ends(
    stack: Stack, image: str, command: str, environment: dict[str, str], said: str
) -> None:
    status, lines = run_to_its_end(image, command, **environment)
    assert status == 2
    assert len(lines) == 1, lines
    assert said in lines[0]  # as JSON, once the service has set up its log


def test_a_port_in_use_is_said_by_router_and_worker(stack: Stack) -> None:
    for image, service in ((ROUTER_IMAGE, "router"), (WORKER_IMAGE, "decode")):
        container = stack.containers(service)[0]
        address = "0.0.0.0" if service == "router" else container.address
        status, lines = run_to_its_end(
            image,
            service,
            options=("--network", f"container:{container.id}"),
            BATON_REDIS_URL="redis://redis:6379",
            BATON_HOST=address,
            BATON_ALLOW_ANONYMOUS="1",
        )
        assert (status, len(lines)) == (2, 1), lines
        assert f"cannot listen on {address}:800" in lines[0]


def test_a_published_port_in_use_is_said_by_compose(stack: Stack) -> None:
    other = Stack(f"{stack.project}b", BATON_PUBLISH=f"127.0.0.1:{stack.port}")
    try:
        done = other.compose("up", "-d", "router")
        assert done.returncode != 0
        assert f"127.0.0.1:{stack.port}" in done.stderr
    finally:
        other.down()
    assert other.remains() == []


@pytest.mark.parametrize(("image", "command"), [(ROUTER_IMAGE, "router"), (WORKER_IMAGE, "decode")])
def test_without_redis_a_service_waits_and_says_for_what(stack: Stack, image: str, command: str) -> None:
    with running(image, command, **ALONE) as container:
        (event,) = eventually(lambda: container.events("registry_down"), "it says that Redis is away")
        assert "Redis does not answer" in event["reason"]
        assert container.is_running


def test_a_router_without_workers_waits_and_its_health_says_for_what(stack: Stack) -> None:
    with running(ROUTER_IMAGE, "router", options=("--health-interval", "1s"), **ALONE) as container:
        (event,) = eventually(lambda: container.events("waiting_for_workers"), "it says that it waits")
        assert event["named_by"] == ["Redis"]
        output = "{{range .State.Health.Log}}{{.Output}}{{end}}"
        eventually(lambda: "no decode worker is alive" in container.inspect(output), "its health says why")
