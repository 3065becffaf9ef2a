"""`baton chaos` on a user's own stack: what it disturbs, and what it says of lost and changed streams."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys

import pytest
from tests.processes import HANG_S, BatonProcess
from tests.schemas_under_faults import disturbed_answers

from baton.chaos import ANSWER_LEN, seconds_of
from baton.chaos_report import report
from baton.chaos_round import Round
from baton.errors import ConfigError
from baton.llm import LLM
from baton.recording import Answer, Question, connected
from baton.stack_processes import ROLES, StackProcesses
from baton.stack_resources import Series

QUESTION = Question([1, 2], {"temperature": 0.0, "max_tokens": ANSWER_LEN})
RIGHT = list(range(ANSWER_LEN))


def chaos(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "baton.cli", "chaos", "--api-key", "the-key", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)


def test_a_killed_and_a_stopped_engine_cost_no_token(stack: BatonProcess) -> None:
    done = chaos("--url", stack.url, "--rounds", "2", "--streams", "8", "--role", "decode engine")
    assert done.returncode == 0, done.stdout + done.stderr + stack.log()
    assert done.stdout.splitlines()[-1] == "Nothing was lost, nothing changed."
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("decode engine")]
    assert [row[2] for row in rows] == ["kill", "stop"]
    assert all(row[-6:-2] == ["8", "0", "0", "0"] for row in rows)
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_killed_redis_costs_nothing_and_a_killed_router_cuts_its_own_streams_alone(stack: BatonProcess) -> None:
    done = chaos("--url", stack.url, "--rounds", "2", "--streams", "8", "--role", "redis", "--role", "router")
    assert done.returncode == 0, done.stdout + done.stderr + stack.log()
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines()}
    assert rows["redis"][-6:-2] == ["8", "0", "0", "0"]
    assert rows["router"][-6:-3] == ["8", "0", "0"]
    assert int(rows["router"][-3]) > 0


def test_answers_of_random_schemas_are_right_though_workers_are_killed(stack: BatonProcess) -> None:
    """`python -m tests.schemas_under_faults 500` is the long form."""
    llm = LLM(stack.arguments[1], use_tqdm=False, kv_cache_memory_bytes=2**26, max_num_seqs=16)
    outcome = asyncio.run(disturbed_answers(stack.url, "the-key", llm, range(8000, 8008), num_parts=2))
    assert outcome.wrong == []
    assert outcome.num_answers == 16
    assert len(outcome.num_going_on) == 2


def test_a_role_that_is_none_is_refused(stack: BatonProcess) -> None:
    done = chaos("--url", stack.url, "--role", "cook")
    assert done.returncode == 2
    assert "--role 'cook' is not valid" in done.stderr


def test_only_processes_of_the_stack_are_found(stack: BatonProcess) -> None:
    processes = StackProcesses(stack.port)
    found = {role: processes.of_role(role) for role in ROLES}
    assert {role: len(each) for role, each in found.items()} == dict.fromkeys(ROLES, 2) | {"router": 1, "redis": 1}
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


def test_a_stream_of_a_killed_router_is_cut_and_right_so_far() -> None:
    cut = answer(RIGHT[:9], "ReadError")
    cut.is_cut = True
    changed = answer([*RIGHT[:8], 0], "ReadError")
    changed.is_cut = True
    judged, of_worker = Round("router", "kill", "sent"), Round("decode face", "kill", "sent")
    for each in (cut, changed):
        judged.count(0, QUESTION, each, answer(RIGHT), 0.01)
    of_worker.count(0, QUESTION, cut, answer(RIGHT), 0.01)
    assert (judged.num_cut, judged.lost, judged.changed) == (2, [], ["stream 0: token 8 is 0, not 8"])
    assert len(of_worker.lost) == 1


@pytest.mark.parametrize(
    ("kind", "values", "grows"),
    [
        ("memory MiB", [200, 400, 480, 500, 500, 505, 500, 510, 506], False),
        ("memory MiB", [200, 300, 400, 500, 600, 700, 800, 900, 1000], True),
        ("descriptors", [20, 24, 26, 24, 25, 26, 24, 26, 25], False),
        ("descriptors", [20, 24, 28, 32, 36, 40, 52, 60, 64], True),
        ("held blocks", [0] * 9, False),
        ("held blocks", [0, 0, 0, 0, 0, 0, 1, 1, 1], True),
        ("held blocks", [0, 1, 1], False),
    ],
)
def test_what_grows_is_told_from_what_fills(kind: str, values: list[float], grows: bool) -> None:
    assert Series("router", kind, values).grows == grows


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("8h", 28_800)])
def test_a_length_of_time_has_a_unit(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
    for wrong in ("", text[:-1], "-" + text, "x" + text):
        with pytest.raises(ConfigError, match="as 90s, 30m or 8h"):
            seconds_of(wrong)
