"""What containers need of the services, without containers: their own address, a health check, requirements that agree."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.processes import HANG_S, BatonProcess, free_ports

from baton.errors import ConfigError
from baton.services import own_address

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "compose" / "requirements"
NOWHERE = ("--redis-url", "redis://127.0.0.1:1")
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s+]+)", re.MULTILINE)


def named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: name)


def test_the_address_of_a_name_is_taken_unless_others_do_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, "192.0.2.7")
    assert own_address() == "192.0.2.7"
    named(monkeypatch, "127.0.0.1")
    with pytest.raises(ConfigError, match="others do not reach"):
        own_address()
    named(monkeypatch, "no.such.name.invalid")
    with pytest.raises(ConfigError, match="has no address"):
        own_address()


def ask_ready(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "baton.ready"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )


def test_the_health_check_says_why_a_service_is_not_ready(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    nobody = ask_ready(BATON_PORT=str(port))
    assert (nobody.returncode, nobody.stderr) == (1, "")
    assert "ConnectionRefusedError" in nobody.stdout
    router = BatonProcess(
        ["router", "--host", "0.0.0.0", "--api-key", "x", "--port", str(port), *NOWHERE], tmp_path / "log", port
    ).start()
    try:
        router.wait_ready("/health")
        alone = ask_ready(BATON_PORT=str(port), BATON_HOST="0.0.0.0")
        assert alone.returncode == 1
        assert "no decode worker is alive" in alone.stdout
    finally:
        router.kill()


def test_a_router_whose_port_is_taken_says_so_and_ends(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        router = BatonProcess(["router", "--port", str(port), *NOWHERE], tmp_path / "log", port).start()
        assert router.process is not None
        assert router.process.wait(HANG_S) == 2
    (line,) = router.log().splitlines()
    reason = f"cannot listen on 127.0.0.1:{port}: Address already in use. Choose another --port."
    assert json.loads(line).items() >= {"event": reason, "level": "critical"}.items()


def test_a_router_that_could_find_no_worker_says_so_and_ends(tmp_path: Path) -> None:
    router = BatonProcess(["router"], tmp_path / "log").start()
    assert router.process is not None
    assert router.process.wait(HANG_S) == 2
    reason = "nothing names workers: give --redis-url, or --worker for each of them."
    assert json.loads(router.log())["event"] == reason
    wrong = BatonProcess(
        ["router", "--policy", "cost", "--curve-public-key", "x", "--log-format", "json"], tmp_path / "2"
    )
    wrong.start()
    assert wrong.process is not None
    assert wrong.process.wait(HANG_S) == 2
    assert "go together" in json.loads(wrong.log())["event"]


def pins(file: Path) -> dict[str, str]:
    return {name.lower().replace("_", "-"): version for name, version in PIN.findall(file.read_text())}


@pytest.mark.parametrize("name", ["build", "router", "worker-cpu", "worker-cuda", "torch-cpu"])
def test_images_hold_the_versions_that_are_tested(name: str) -> None:
    tested, locked = pins(ROOT / "constraints.txt"), pins(REQUIREMENTS / f"{name}.txt")
    assert locked
    assert {package: tested[package] for package in locked if package in tested} == {
        package: version for package, version in locked.items() if package in tested
    }
    text = (REQUIREMENTS / f"{name}.txt").read_text()
    for package in PIN.split(text)[0::3][1:]:
        assert "--hash=sha256:" in package


def test_the_router_image_holds_no_torch() -> None:
    assert not {"torch", "triton"} & pins(REQUIREMENTS / "router.txt").keys()
