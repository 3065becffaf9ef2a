"""`baton up`, as a new user runs it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from tests.cluster import make_model
from tests.processes import HANG_S, BatonProcess, eventually, free_ports

from baton.config import EngineConfig
from baton.errors import ConfigError
from baton.kvtransfer.store.settings import StoreSize
from baton.logs import LogConfig
from baton.router.http_config import HttpConfig
from baton.up import make_plan, run_up
from baton.up_config import UpConfig


def up(folder: Path, *flags: str, environment: dict[str, str] | None = None) -> BatonProcess:
    (port,) = free_ports(1)
    arguments = ["up", *flags, "--port", str(port), "--kv-cache-memory-bytes", str(64 * 2**20)]
    return BatonProcess(arguments, folder / "up.log", port, environment or {}).start()


def children(process: BatonProcess) -> dict[str, int]:
    """Return the process ids of what `baton up` started, by sub-command."""
    assert process.process is not None
    pid = process.process.pid
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, IndexError):  # it has ended meanwhile
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            found[(words[3] if b"baton.cli" in words else b"redis").decode()] = int(child)
    return found


def test_up_once_answers_one_question_over_both_workers_and_ends(tmp_path: Path) -> None:
    process = up(tmp_path, "--once", "--path", "remote")
    try:
        assert process.process is not None
        assert process.process.wait(HANG_S) == 0, process.log()
    finally:
        process.kill()
    log = process.log()
    assert "starting redis, prefill-0, decode-0, router" in log.splitlines()[0]
    assert "Loading weights: 100 %" in log
    assert "longest context" in log
    assert "path=remote; decode=decode-0; prefill=prefill-0" in log
    assert "first token after" in log
    assert f"curl {process.url}/v1/chat/completions" in log


def test_up_restarts_what_dies_and_ends_everything_on_ctrl_c(tmp_path: Path) -> None:
    model = make_model(tmp_path / "tiny")
    process = up(tmp_path, str(model), "--prefill", "1", "--decode", "1", "--drain-s", "1")
    try:
        process.wait_ready()
        body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 3}
        eventually(lambda: "Try:" in process.log(), "all workers are there")
        before = children(process)
        assert set(before) == {"redis", "router", "prefill", "decode"}
        check_that_strangers_are_kept_out(process)
        os.kill(before["decode"], signal.SIGKILL)
        eventually(lambda: children(process).get("decode", before["decode"]) != before["decode"], "a new one")
        eventually(
            lambda: httpx.post(f"{process.url}/v1/completions", json=body, timeout=HANG_S).status_code == 200,
            "it serves again",
        )
        after = children(process)
        process.signal(signal.SIGINT)
        assert process.process is not None
        assert process.process.wait(HANG_S) == 0
        assert not [pid for pid in after.values() if Path(f"/proc/{pid}").exists()]
    finally:
        process.kill()


def check_that_strangers_are_kept_out(process: BatonProcess) -> None:
    """Nobody registers without the password, or reaches a worker but through a folder that is ours alone."""
    (port,) = re.findall(r"Redis: redis://127.0.0.1:(\d+)", process.log())
    with socket.create_connection(("127.0.0.1", int(port))) as stranger:
        stranger.sendall(b"SADD baton:tiny:workers me\r\n")
        assert stranger.recv(100).startswith(b"-NOAUTH")
    workers = httpx.get(f"{process.url}/debug/workers").json()["workers"]
    assert len(workers) == 2
    for worker in workers:
        assert worker["control"].startswith("ipc:///")
        folder = Path(worker["control"].removeprefix("ipc://")).parent
        assert folder.stat().st_mode & 0o077 == 0


def descendants(pid: int) -> set[int]:
    """Return the process ids of a process's children, theirs, and so on."""
    found = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | descendants(child)
    return found


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_up_takes_its_children_with_it_when_it_is_killed_and_asks_no_proxy(tmp_path: Path) -> None:
    nowhere = {f"{name}_proxy": "http://127.0.0.1:9" for name in ("http", "https")} | {
        "ALL_PROXY": "socks5://127.0.0.1:9"
    }
    process = up(tmp_path, str(make_model(tmp_path / "tiny")), "--prefill", "1", environment=nowhere)
    try:
        eventually(lambda: "Try:" in process.log() or not process.is_running, "all are ready")
        assert process.process is not None
        started = descendants(process.process.pid)
        assert len(started) >= 6, (
            process.log()
        )  # Redis, the router, what renders for it, two faces, two engine processes
        process.signal(signal.SIGKILL)
        eventually(lambda: not any(map(is_alive, started)), "all of them have ended")
    finally:
        process.kill()


def test_ctrl_c_does_not_wait_for_an_engine_that_is_stopped(tmp_path: Path) -> None:
    process = up(tmp_path, str(make_model(tmp_path / "tiny")), "--prefill", "0")
    try:
        eventually(lambda: "Try:" in process.log(), "all are ready")
        assert process.process is not None
        started = descendants(process.process.pid)
        engines = [pid for pid in started if b"baton.engine_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        for pid in engines:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        process.signal(signal.SIGINT)
        assert process.process.wait(HANG_S) == 0
        assert time.monotonic() - began < 30, "the time that a worker has to drain was waited for"
        assert not any(map(is_alive, started))
    finally:
        process.kill()


def test_up_ends_in_order_when_its_terminal_hangs_up(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "baton.cli", "up", str(make_model(tmp_path / "tiny")), "--prefill", "0"]
    command += ["--port", str(free_ports(1)[0]), "--kv-cache-memory-bytes", str(64 * 2**20), "--drain-s", "1"]
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown = b""
    try:
        while b"Try:" not in shown:
            shown += os.read(ours, 65536)
        started = descendants(process.pid)
        os.close(ours)
        assert process.wait(HANG_S) == 0
        assert not any(map(is_alive, started))
    finally:
        process.kill()


def test_up_says_what_is_wrong_and_ends(tmp_path: Path) -> None:
    process = up(tmp_path, "--max-model-len", "1000000")
    try:
        assert process.process is not None
        assert process.process.wait(HANG_S) == 2
    finally:
        process.kill()
    assert "cannot run as it is configured" in process.log()


def test_a_plan_without_redis_tells_the_router_of_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.up.find_redis_server", lambda: None)
    plan = make_plan(
        UpConfig(prefill=2, decode=3, port=free_ports(1)[0]), EngineConfig(), HttpConfig(), LogConfig(), str(tmp_path)
    )
    assert not plan.redis
    assert "none found" in plan.notice
    assert list(plan.router.command).count("--worker") == 5
    assert [child.name for child in plan.workers] == [*("prefill-0", "prefill-1", "decode-0", "decode-1", "decode-2")]


def test_models_are_fetched_to_where_download_dir_says(tmp_path: Path) -> None:
    config = UpConfig(port=free_ports(1)[0], download_dir=str(tmp_path / "models"))
    plan = make_plan(config, EngineConfig(), HttpConfig(), LogConfig(), str(tmp_path))
    for child in (*plan.workers, plan.router):
        assert child.environment["HF_HUB_CACHE"] == str(tmp_path / "models")


@pytest.mark.parametrize(
    ("gpus", "legs"), [([], ["prefill-0", "decode-0"]), (["0"], ["decode-0"]), (["0", "1"], ["prefill-0", "decode-0"])]
)
def test_the_default_is_a_pair_unless_decode_needs_all_gpus(
    gpus: list[str], legs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.up._gpus", lambda: gpus)
    plan = make_plan(UpConfig(port=free_ports(1)[0]), EngineConfig(), HttpConfig(), LogConfig(), str(tmp_path))
    assert [worker.name for worker in plan.workers] == legs


def test_a_given_cache_key_is_that_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = UpConfig(port=free_ports(1)[0])
    monkeypatch.delenv("BATON_CACHE_KEY", raising=False)
    plans = [make_plan(config, EngineConfig(), HttpConfig(), LogConfig(), str(tmp_path)) for _ in range(2)]
    assert len({plan.router.environment["BATON_CACHE_KEY"] for plan in plans}) == 2
    monkeypatch.setenv("BATON_CACHE_KEY", "ours")
    plan = make_plan(config, EngineConfig(), HttpConfig(), LogConfig(), str(tmp_path))
    assert {child.environment["BATON_CACHE_KEY"] for child in (plan.router, *plan.workers)} == {"ours"}


def test_a_store_is_started_before_the_workers_that_meet_it_in_its_folder(tmp_path: Path) -> None:
    config, size = UpConfig(port=free_ports(1)[0]), StoreSize(kv_store_size=2, kv_store_dir="/blocks")
    plan = make_plan(config, EngineConfig(), HttpConfig(), LogConfig(), str(tmp_path), size, "/dev/shm/mine")
    (store,) = plan.store
    words = " ".join(store.command)
    assert "kvstore" in words
    assert "--kv-store-size 2 --kv-store-dir /blocks --kv-store /dev/shm/mine" in words
    assert all("--kv-store /dev/shm/mine" in " ".join(worker.command) for worker in plan.workers)
    plan = make_plan(config, EngineConfig(), HttpConfig(), LogConfig(), str(tmp_path))
    assert (plan.store, [w for w in plan.workers if "--kv-store" in w.command]) == ([], [])


def test_the_password_of_redis_stands_in_its_file_and_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BATON_REDIS_PASSWORD", raising=False)
    config = UpConfig(port=free_ports(1)[0])
    plan = make_plan(config, EngineConfig(), HttpConfig(), LogConfig(), str(tmp_path))
    password = plan.router.environment["BATON_REDIS_PASSWORD"]
    assert len(password) >= 32
    for child in (*plan.redis, plan.router, *plan.workers):
        assert password not in " ".join(child.command)
    assert password not in plan.notice
    assert (tmp_path / "redis.conf").stat().st_mode & 0o077 == 0
    monkeypatch.setenv("BATON_REDIS_PASSWORD", "ours")
    plan = make_plan(config, EngineConfig(), HttpConfig(), LogConfig(), str(tmp_path))
    assert {child.environment["BATON_REDIS_PASSWORD"] for child in (plan.router, *plan.workers)} == {"ours"}


def test_a_given_redis_is_named_in_no_command_and_no_line(tmp_path: Path) -> None:
    url = "redis://:hidden@localhost:6379"
    config = UpConfig(port=free_ports(1)[0], redis_url=url)
    plan = make_plan(config, EngineConfig(), HttpConfig(), LogConfig(), str(tmp_path))
    for child in (plan.router, *plan.workers):
        assert "hidden" not in " ".join(child.command)
        assert child.environment["BATON_REDIS_URL"] == url
    assert "hidden" not in plan.notice


def test_a_plan_spreads_workers_over_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    plan = make_plan(
        UpConfig(prefill=1, decode=2, port=free_ports(1)[0]), EngineConfig(), HttpConfig(), LogConfig(), str(tmp_path)
    )
    assert [child.environment["CUDA_VISIBLE_DEVICES"] for child in plan.workers] == ["4", "6", "4"]
    assert all("0.45" in child.command for child in plan.workers)


@pytest.mark.parametrize(("num_decode", "told", "is_soft"), [(1, True, False), (2, True, True), (2, False, False)])
def test_several_decode_workers_prefill_for_one_another_unless_told_otherwise(
    tmp_path: Path, num_decode: int, told: bool, is_soft: bool
) -> None:
    config = UpConfig(prefill=1, decode=num_decode, also_prefill=told, port=free_ports(1)[0])
    plan = make_plan(config, EngineConfig(device="cpu"), HttpConfig(), LogConfig(), str(tmp_path))
    assert ["--also-prefill" in child.command for child in plan.workers] == [False, *[is_soft] * num_decode]
    assert plan.num_legs == 1 + num_decode * (1 + is_soft)


@pytest.mark.parametrize("name", ["ttft_target_ms", "max_queue_s", "itl_target_ms"])
@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_what_is_no_time_is_refused(name, value) -> None:
    with pytest.raises(ConfigError, match=f"{name}={value} is not valid"):
        UpConfig(**{name: value})


def test_a_store_and_swap_space_exclude_each_other_before_anything_starts() -> None:
    config, engine, size = UpConfig(), EngineConfig(swap_space=1), StoreSize(kv_store_size=2)
    with pytest.raises(ConfigError, match="swap_space=1 and kv_store_size=2 exclude each other"):
        asyncio.run(run_up(config, engine, HttpConfig(), LogConfig(), size))


def test_a_port_that_is_taken_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="Choose another --port"):
            make_plan(UpConfig(port=taken.getsockname()[1]), EngineConfig(), HttpConfig(), LogConfig(), str(tmp_path))


def test_nobody_is_let_in_without_a_key_by_a_host_beyond_this_machine(tmp_path: Path) -> None:
    config = UpConfig(host="0.0.0.0", port=free_ports(1)[0])
    with pytest.raises(ConfigError, match="--allow-anonymous"):
        make_plan(config, EngineConfig(), HttpConfig(), LogConfig(), str(tmp_path))
    plan = make_plan(config, EngineConfig(), HttpConfig(allow_anonymous=True), LogConfig(), str(tmp_path))
    assert "--allow-anonymous" in plan.router.command
    assert plan.router_url == f"http://127.0.0.1:{config.port}"


def test_settings_of_a_worker_in_the_environment_are_not_those_of_all_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_the_image = {"BATON_HOST": "auto", "BATON_PORT": "8001", "BATON_CONTROL_PORT": "5701", "BATON_KV_PORT": "5711"}
    for name, value in of_the_image.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BATON_LEASE_S", "5")
    monkeypatch.setattr("baton.up.own_address", lambda: "127.0.0.1")
    config = UpConfig(host="auto", port=free_ports(1)[0])
    plan = make_plan(config, EngineConfig(), HttpConfig(), LogConfig(), str(tmp_path))
    for child in (*plan.workers, plan.router):
        assert not child.environment.keys() & of_the_image.keys()
        assert child.environment["BATON_LEASE_S"] == "5"
    assert plan.router_url == f"http://127.0.0.1:{config.port}"


def test_how_the_router_listens_is_handed_on(tmp_path: Path) -> None:
    http = HttpConfig(uds=str(tmp_path / "socket"), root_path="/llm", allowed_origins=("[]",))
    plan = make_plan(UpConfig(port=free_ports(1)[0]), EngineConfig(), http, LogConfig(), str(tmp_path))
    handed = " ".join(plan.router.command)
    assert f"--uds {tmp_path}/socket" in handed
    assert "--root-path /llm" in handed
    assert "--allowed-origins []" in handed
    with pytest.raises(ConfigError, match="folder is not there"):
        make_plan(UpConfig(), EngineConfig(), HttpConfig(uds="/nowhere/socket"), LogConfig(), str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be used"):
        make_plan(UpConfig(), EngineConfig(), HttpConfig(ssl_certfile="/nowhere/cert.pem"), LogConfig(), str(tmp_path))
