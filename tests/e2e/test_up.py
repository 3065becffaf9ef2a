"""`baton up`, as a new user runs it."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import httpx
import pytest
from tests.cluster import make_model
from tests.processes import HANG_S, BatonProcess, eventually, free_ports

from baton.config import EngineConfig
from baton.errors import ConfigError
from baton.up import make_plan
from baton.up_config import UpConfig

pytestmark = pytest.mark.xdist_group("cluster")


def up(folder: Path, *flags: str) -> BatonProcess:
    (port,) = free_ports(1)
    arguments = ["up", *flags, "--port", str(port), "--kv-cache-memory-bytes", str(64 * 2**20)]
    return BatonProcess(arguments, folder / "up.log", port).start()


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
    plan = make_plan(UpConfig(prefill=2, decode=3, port=free_ports(1)[0]), EngineConfig(), str(tmp_path))
    assert not plan.redis
    assert "none found" in plan.notice
    assert list(plan.router.command).count("--worker") == 5
    assert [child.name for child in plan.workers] == [*("prefill-0", "prefill-1", "decode-0", "decode-1", "decode-2")]


@pytest.mark.parametrize(
    ("gpus", "legs"), [([], ["prefill-0", "decode-0"]), (["0"], ["decode-0"]), (["0", "1"], ["prefill-0", "decode-0"])]
)
def test_the_default_is_a_pair_unless_decode_needs_all_gpus(
    gpus: list[str], legs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.up._gpus", lambda: gpus)
    plan = make_plan(UpConfig(port=free_ports(1)[0]), EngineConfig(), str(tmp_path))
    assert [worker.name for worker in plan.workers] == legs


def test_a_given_cache_key_is_that_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = UpConfig(port=free_ports(1)[0])
    monkeypatch.delenv("BATON_CACHE_KEY", raising=False)
    plans = [make_plan(config, EngineConfig(), str(tmp_path)) for _ in range(2)]
    assert len({plan.router.environment["BATON_CACHE_KEY"] for plan in plans}) == 2
    monkeypatch.setenv("BATON_CACHE_KEY", "ours")
    plan = make_plan(config, EngineConfig(), str(tmp_path))
    assert {child.environment["BATON_CACHE_KEY"] for child in (plan.router, *plan.workers)} == {"ours"}


def test_a_given_redis_is_named_in_no_command_and_no_line(tmp_path: Path) -> None:
    url = "redis://:hidden@localhost:6379"
    config = UpConfig(port=free_ports(1)[0], redis_url=url)
    plan = make_plan(config, EngineConfig(), str(tmp_path))
    for child in (plan.router, *plan.workers):
        assert "hidden" not in " ".join(child.command)
        assert child.environment["BATON_REDIS_URL"] == url
    assert "hidden" not in plan.notice


def test_a_plan_spreads_workers_over_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    plan = make_plan(UpConfig(prefill=1, decode=2, port=free_ports(1)[0]), EngineConfig(), str(tmp_path))
    assert [child.environment["CUDA_VISIBLE_DEVICES"] for child in plan.workers] == ["4", "6", "4"]
    assert all("0.45" in child.command for child in plan.workers)


def test_a_port_that_is_taken_is_said_before_anything_starts(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="Choose another --port"):
            make_plan(UpConfig(port=taken.getsockname()[1]), EngineConfig(), str(tmp_path))
