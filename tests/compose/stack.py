"""The compose stack for tests: a project of its own on free ports, driven by whichever compose is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import openai
from tests.processes import eventually, free_ports

ROOT = Path(__file__).parents[2]
SERVICES = ("redis", "router", "prefill", "decode")
ROUTER_IMAGE, WORKER_IMAGE = "baton-router:local", "baton-worker:local"


def docker(*arguments: str, timeout_s: float = 120.0) -> str:
    """Run `docker ...`; return what it prints.

    Raises:
        AssertionError: it fails.
    """
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
    return done.stdout.strip()


def compose_command() -> list[str]:
    """Return compose v2 where it is, else docker-compose."""
    assert shutil.which("docker"), "these tests need Docker"
    has_v2 = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    return ["docker", "compose"] if has_v2 else ["docker-compose"]


@dataclass(frozen=True)
class Container:
    """One container of the stack."""

    id: str

    def inspect(self, format: str) -> str:
        return docker("inspect", "--format", format, self.id)

    @property
    def address(self) -> str:
        return self.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")

    @property
    def is_running(self) -> bool:
        return self.inspect("{{.State.Running}}") == "true"

    @property
    def health(self) -> str:
        return self.inspect("{{.State.Health.Status}}")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log's events of one name."""
        done = subprocess.run(["docker", "logs", self.id], capture_output=True, text=True, timeout=60)
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def ready_at(self) -> float:
        """Return the time of the day at which a worker said that it serves."""
        return datetime.fromisoformat(self.events("ready")[-1]["timestamp"]).timestamp()


class Stack:
    """One project; `settings` are what compose.yaml takes from the environment."""

    def __init__(self, project: str, **settings: str) -> None:
        self._compose = compose_command()
        self.project = project
        self.port, self.prometheus_port = free_ports(2)
        self.environment = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": project,
            "BATON_PUBLISH": f"127.0.0.1:{self.port}",
            "PROMETHEUS_PUBLISH": f"127.0.0.1:{self.prometheus_port}",
            "PROMETHEUS_TAG": "latest",
            **settings,
        }

    def compose(self, *arguments: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Run compose in the repository's root, as users do."""
        return subprocess.run(
            [*self._compose, *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def must(self, *arguments: str, timeout_s: float = 300.0) -> str:
        """Run compose; return what it prints.

        Raises:
            AssertionError: it fails.
        """
        done = self.compose(*arguments, timeout_s=timeout_s)
        assert done.returncode == 0, f"compose {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def scale(self, *, prefill: int, decode: int) -> None:
        """Bring the workers to these numbers, and those that ended back; wait until the router sees them."""
        self.must("up", "-d", "--scale", f"prefill={prefill}", "--scale", f"decode={decode}", *SERVICES)
        wanted = {"prefill": prefill, "decode": decode}
        eventually(lambda: self.ready().get("workers") == wanted, f"the router sees {wanted}", 90)

    def down(self) -> None:
        self.must("--profile", "monitoring", "down", "--volumes", "--remove-orphans", "--timeout", "5")

    def remains(self) -> list[str]:
        """Return the containers, volumes and networks of the project."""
        mine = f"label=com.docker.compose.project={self.project}"
        kinds: Sequence[tuple[str, ...]] = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
        return [line for kind in kinds for line in docker(*kind, "--quiet", "--filter", mine).splitlines()]

    def containers(self, service: str) -> list[Container]:
        """Return the running containers of a service."""
        found = docker(
            *("ps", "--quiet", "--no-trunc"),
            *("--filter", f"label=com.docker.compose.project={self.project}"),
            *("--filter", f"label=com.docker.compose.service={service}"),
        )
        return [Container(line) for line in found.splitlines()]

    # -- asking -------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def api_key(self) -> str:
        return self.must("exec", "-T", "router", "cat", "/run/secrets/api_key").strip()

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.api_key(), max_retries=0, timeout=60)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.api_key(), max_retries=0, timeout=120)

    def ready(self) -> dict[str, Any]:
        """Return what the router says at /ready; nothing if it does not answer."""
        try:
            answer: dict[str, Any] = httpx.get(f"{self.url}/ready", timeout=5).json()
        except httpx.HTTPError:
            return {}
        return answer

    def prometheus(self, path: str, **query: str) -> Any:
        answer = httpx.get(f"http://127.0.0.1:{self.prometheus_port}/api/v1/{path}", params=query, timeout=10)
        answer.raise_for_status()
        return answer.json()["data"]


@contextmanager
def running(image: str, *command: str, options: Sequence[str] = (), **environment: str) -> Iterator[Container]:
    """Run one image as compose.yaml would, alone; remove it at the end."""
    started = docker("run", "--detach", *_confined(options, environment), image, *command)
    try:
        yield Container(started)
    finally:
        docker("rm", "--force", "--volumes", started)


def run_to_its_end(image: str, *command: str, options: Sequence[str] = (), **environment: str) -> tuple[int, list[str]]:
    """Run one image; return its status and the lines that it printed."""
    name = f"baton-test-{uuid.uuid4().hex[:12]}"
    try:
        done = subprocess.run(
            ["docker", "run", "--name", name, *_confined(options, environment), image, *command],
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        docker("rm", "--force", "--volumes", name)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def workers_of(route: str) -> set[str]:
    """Return the workers that an x-baton-route header names."""
    return set(re.findall(r"(?:decode|prefill)=((?:decode|prefill)-[^;\s]+)", route))


def _confined(options: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    variables = [part for name, value in environment.items() for part in ("--env", f"{name}={value}")]
    return ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", *options, *variables]
