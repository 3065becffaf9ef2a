"""`baton chaos` on a user's own stack: what it disturbs, and what it says of lost and changed streams."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from tests.processes import HANG_S, BatonProcess

from baton.chaos import ANSWER_LEN, Round, report
from baton.errors import ConfigError
from baton.recording import Answer, Question, connected
from baton.stack_processes import ROLES, StackProcesses

pytestmark = pytest.mark.xdist_group("cluster")
QUESTION = Question([1, 2], {"temperature": 0.0, "max_tokens": ANSWER_LEN})
RIGHT = list(range(ANSWER_LEN))


def chaos(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "baton.cli", "chaos", "--api-key", "the-key", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)


def test_a_killed_and_a_stopped_engine_cost_no_token(stack: BatonProcess) -> None:
    done = chaos("--url", stack.url, "--rounds", "2", "--streams", "8")
    assert done.returncode == 0, done.stdout + done.stderr + stack.log()
    assert done.stdout.splitlines()[-1] == "Nothing was lost, nothing changed."
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("decode engine")]
    assert [row[2] for row in rows] == ["kill", "stop"]
    assert all(row[-5:-2] == ["8", "0", "0"] for row in rows)
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_only_processes_of_the_stack_are_found(stack: BatonProcess) -> None:
    processes = StackProcesses(stack.port)
    found = {role: processes.of_role(role) for role in ROLES}
    assert {role: len(each) for role, each in found.items()} == dict.fromkeys(ROLES, 2)
    assert stack.process is not None
    for each in (process for processes in found.values() for process in processes):
        assert stack.process.pid in [parent.pid for parent in each.parents()]


def test_who_listens_without_a_baton_up_is_let_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ConfigError, match="no `baton up` of yours"):
        StackProcesses(other.getsockname()[1])


def test_a_stack_elsewhere_is_let_alone() -> None:
    done = chaos("--url", "http://192.0.2.1:8000")
    assert done.returncode == 2
    assert "only a `baton up` on this machine is disturbed" in done.stderr


def answer(token_ids: list[int], error: str | None = None) -> Answer:
    size = len(token_ids)
    return Answer(token_ids, [-1.0] * size, [1.0] * size, "length", error=error, longest_pause_s=2.5)


@pytest.mark.asyncio
async def test_lost_and_changed_streams_are_counted_and_told(
    stack: BatonProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = Round("decode face", "kill", "sent")
    judged.count(0, QUESTION, answer(RIGHT), answer(RIGHT), 0.01)
    judged.count(1, QUESTION, answer(RIGHT[:5], "503: gone"), answer(RIGHT), 0.01)
    judged.count(2, QUESTION, answer([*RIGHT[:9], 0, *RIGHT[10:]]), answer(RIGHT), 0.01)
    async with connected(stack.url, "the-key") as server:
        assert report(server, [judged]) == 1
    said = capsys.readouterr().out
    assert "decode face, kill, sent: stream 1 after 5 tokens: 503: gone" in said
    assert "decode face, kill, sent: stream 2: token 9 is 0, not 9" in said
