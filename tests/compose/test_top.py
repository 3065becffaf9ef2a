"""`baton top` shows what router and workers tell, and says in one line why it cannot."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.cluster import Cluster, prompt_of, stream_all
from tests.processes import HANG_S, free_ports
from tests.router.cluster import cluster as router_cluster

from baton.histograms import quantile
from baton.top import Readings

KEY = "the_key_of_these_tests"


def top(url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it for one frame, on a wide terminal."""
    return subprocess.run(
        [sys.executable, "-m", "baton.cli", "top", "--once", "--interval", "0.1", "--url", url],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env={**os.environ, "COLUMNS": "140", **environment},
    )


def row(text: str, first: str) -> list[str]:
    """Return the words of the line that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(first)]
    return line.removeprefix(first).split()


def test_a_frame_shows_every_worker_and_what_requests_waited(cluster: Cluster) -> None:
    stream_all(cluster, "2p2d", [prompt_of(900 + i, 64) for i in range(6)], max_tokens=8)
    done = top(cluster.routers["2p2d"].url)
    assert done.returncode == 0, done.stderr
    for name, leg in (("p0", "prefill"), ("p1", "prefill"), ("d0", "prefill+decode"), ("d1", "prefill+decode")):
        assert row(done.stdout, name)[0] == leg
        assert "–" not in row(done.stdout, name)[4:6]  # its own /metrics were read
    count, p50, _ms, *_ = row(done.stdout, "time to first token")
    assert int(count) >= 6
    assert float(p50) > 0
    assert "Redis answers" in done.stdout


def test_on_a_terminal_it_goes_on_until_interrupted_whatever_the_router_does(tmp_path: Path) -> None:
    with terminal() as (screen, side):
        with router_cluster(tmp_path, [{"worker_id": "d0", "legs": ["decode"]}]) as made:
            process = subprocess.Popen(
                [sys.executable, "-m", "baton.cli", "top", "--interval", "0.1", "--url", made.url],
                stdin=side,
                stdout=side,
                stderr=side,
                env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "30"},
                # as from a terminal: what a shell starts in the background ignores the interrupt, and so do its children
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            try:
                assert_shown(screen, "d0 ")
                assert_shown(screen, "last 1 s")
                made.workers["d0"].kill()
                assert_shown(screen, "No worker is live")
            except BaseException:
                process.kill()
                raise
        assert_shown(screen, "does not answer")
        process.send_signal(signal.SIGINT)
        assert status_of(process, screen) == 0


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Return both sides of a pseudo-terminal: what is shown, and where to write."""
    screen, side = pty.openpty()
    try:
        yield screen, side
    finally:
        os.close(screen)
        os.close(side)


def status_of(process: subprocess.Popen[bytes], screen: int) -> int:
    """Wait for a process's end and read on: one that writes to a terminal which nobody reads waits when it is full."""
    deadline = time.monotonic() + HANG_S
    while process.poll() is None:
        assert time.monotonic() < deadline, "it does not end"
        if select.select([screen], [], [], 0.1)[0]:
            os.read(screen, 65536)
    return process.returncode


def assert_shown(screen: int, wanted: str, timeout_s: float = HANG_S) -> None:
    """Read what is shown until the text comes."""
    shown, deadline = "", time.monotonic() + timeout_s
    while wanted not in shown:
        left = deadline - time.monotonic()
        assert left > 0, f"{wanted!r} is not in {shown[-3000:]!r}"
        if select.select([screen], [], [], left)[0]:
            shown += os.read(screen, 65536).decode(errors="replace")


def test_workers_that_died_and_requests_that_were_refused_are_told_within_80_columns(tmp_path: Path) -> None:
    workers = [{"worker_id": "d0", "die_after_tokens": 5}, {"worker_id": "d1"}]
    with router_cluster(tmp_path, workers, policy="round-robin") as made:
        body = {"prompt": [20, 21, 22], "max_tokens": 40}
        for more, status in (({}, 200), ({"max_tokens": 10**6}, 400), ({"model": "another"}, 404)):
            assert httpx.post(f"{made.url}/v1/completions", json=body | more, timeout=HANG_S).status_code == status
        shown = top(made.url, COLUMNS="80", NO_COLOR="1", FORCE_COLOR="1").stdout
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    (lost,) = [line for line in plain.splitlines() if "died" in line]
    assert re.fullmatch(r"d0 decode died \d\d:\d\d:\d\d, \d+ s ago: .+, 1 in flight went on elsewhere", lost.strip())
    assert "replays 1  refused 2  errors 0" in plain
    assert max(map(len, plain.splitlines())) <= 80
    assert not re.search(r"\x1b\[(?:[0-9]+;)*(?:3[0-9]|4[0-9]|9[0-7])m", shown)  # no colour


def test_workers_that_cannot_be_reached_are_shown_as_the_router_sees_them(tmp_path: Path) -> None:
    workers = [{"worker_id": "p0", "legs": ["prefill"]}, {"worker_id": "d0", "legs": ["decode"]}]
    with router_cluster(tmp_path, workers, api_key=(KEY,)) as made:
        refused = top(made.url)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "wants a key" in refused.stderr
        assert "--api-key" in refused.stderr
        unknown = top(made.url, BATON_API_KEY="another_key")
        assert unknown.returncode == 2
        assert "knows no such key" in unknown.stderr
        shown = top(made.url, BATON_API_KEY=KEY)
    assert shown.returncode == 0, shown.stderr
    assert row(shown.stdout, "d0")[0] == "decode"
    assert row(shown.stdout, "d0")[-6:] == ["–"] * 6


def test_without_a_router_one_line_says_what_to_do() -> None:
    (port,) = free_ports(1)
    done = top(f"http://127.0.0.1:{port}")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"url='http://127.0.0.1:{port}' does not answer" in done.stderr
    assert "baton up" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_another_server_is_told_from_a_router(cluster: Cluster) -> None:
    done = top(cluster.workers["d0"].url)
    assert done.returncode == 2
    assert "no Baton router" in done.stderr


@pytest.mark.parametrize(("q", "wanted"), [(0.0, 0.0), (0.25, 0.05), (0.5, 0.1), (0.7, 0.55), (0.9, 1.0), (0.99, 1.0)])
def test_quantiles_are_what_prometheus_estimates(q: float, wanted: float) -> None:
    buckets = [(0.1, 10.0), (1.0, 18.0), (float("inf"), 20.0)]  # beyond the last edge, that edge is all there is
    assert quantile(buckets, q) == pytest.approx(wanted)


def test_no_value_has_no_quantile() -> None:
    assert quantile([], 0.5) is None
    assert quantile([(1.0, 0.0), (float("inf"), 0.0)], 0.5) is None


def test_readings_add_up_what_is_not_asked_apart() -> None:
    told = Readings(
        '# TYPE baton:replays counter\nbaton:replays_total{reason="gap",model_name="m"} 2\n'
        'baton:replays_total{reason="draining",model_name="m"} 3\nother_total 9\n'
    )
    assert told.total("replays_total") == 5
    assert told.total("replays_total", reason="gap") == 2
    assert told.total("nothing") == 0
