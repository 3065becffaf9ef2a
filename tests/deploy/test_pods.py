"""The chart's pods, started as processes on loopback addresses of their own, serve, answer their probes and drain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import zmq
from tests.cluster import RedisServer
from tests.deploy.manifests import Manifests, environment, render
from tests.processes import eventually

from baton.try_chat import MESSAGES

ADDRESSES = {"router": "127.0.77.1", "prefill": "127.0.77.2", "decode": "127.0.77.3"}
PASSWORD = "a-password"


class Pod:
    """One container's command, as the kubelet would run it."""

    def __init__(self, release: Manifests, role: str, secrets: dict[str, dict[str, str]], folder: Path) -> None:
        self.role = role
        folder = folder / role
        folder.mkdir()
        template = release.pods()[f"baton-{role}"]
        self.container: dict[str, Any] = template["spec"]["containers"][0]
        self.grace_s: int = template["spec"]["terminationGracePeriodSeconds"]
        self.ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        config = release.of_kind("ConfigMap")
        file = folder / f"{role}.yaml"
        file.write_text(config[f"baton-{role}"]["data"]["settings.yaml"])
        program, *arguments = self.container["command"]
        assert program == "baton"
        arguments = [str(file) if each == "/etc/baton/settings.yaml" else each for each in arguments]
        given = environment(template, folder, pod_ip=ADDRESSES[role], secrets=secrets, config=config)
        if role == "router":  # its wildcard would take the port on all addresses of this machine
            given["BATON_HOST"] = ADDRESSES[role]
        self.log = folder / f"{role}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "baton.cli", *arguments],
                env={**os.environ, "OMP_NUM_THREADS": "1", **given},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def probe(self, name: str) -> bool:
        """Ask as the kubelet does."""
        assert self.process.poll() is None, self.log.read_text()
        get = self.container[name]["httpGet"]
        try:
            url = f"http://{ADDRESSES[self.role]}:{self.ports[get['port']]}{get['path']}"
            return httpx.get(url, timeout=60).status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[dict[str, Pod]]:
    redis = RedisServer(tmp_path / "redis")
    redis.start()
    redis.ask(f"CONFIG SET requirepass {PASSWORD}")
    public, secret = (key.decode() for key in zmq.curve_keypair())
    keys = {"cache_key": "c" * 32, "redis_password": PASSWORD, "curve_public_key": public, "curve_secret_key": secret}
    secrets = {"baton-secrets": {**keys, "api_key": "baton-key"}}
    worker = {"settings": {"kv-cache-memory-bytes": 48 * 2**20, "drain-s": 1, "lease-s": 3}}
    values = {
        "prefill": worker,
        "decode": worker,
        "router": {"settings": {"path": "remote", "drain-s": 1}},
        "redis": {"enabled": False, "url": redis.url},
    }
    release = render(values)
    started = {role: Pod(release, role, secrets, tmp_path) for role in ADDRESSES}
    try:
        yield started
    finally:
        for pod in started.values():
            pod.process.kill()
            pod.process.wait()
        redis.kill()


def has_fetched(decode: Pod) -> bool:
    """Whether a prompt's KV came from the prefill pod."""
    metrics = httpx.get(f"http://{ADDRESSES['decode']}:{decode.ports['http']}/metrics").text
    (moved,) = (line for line in metrics.splitlines() if line.startswith("baton:kv_transfer_bytes_total{"))
    return float(moved.rsplit(" ", 1)[1]) > 0


def test_the_chart_s_pods_serve_and_drain(pods: dict[str, Pod]) -> None:
    for pod in pods.values():
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            eventually(partial(pod.probe, probe), f"{probe} of {pod.role}")
    client = openai.OpenAI(base_url=f"http://{ADDRESSES['router']}:8000/v1", api_key="baton-key", max_retries=0)
    messages: Any = [{"role": role, "content": content} for role, content in MESSAGES]
    answer = client.chat.completions.create(model="baton-demo", messages=messages, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")
    eventually(partial(has_fetched, pods["decode"]), "the decode worker has counted what it fetched")
    for pod in pods.values():
        pod.process.terminate()
        # The router's server passes the signal on to itself once it has shut down.
        assert pod.process.wait(pod.grace_s) in (0, -signal.SIGTERM), pod.log.read_text()
