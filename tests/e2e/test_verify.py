"""`baton verify` on a running stack: every way gives the same tokens, and what does not is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.cluster import make_model
from tests.processes import HANG_S, BatonProcess

from baton.recording import Answer, Question
from baton.verify import ANSWER_LEN, Row


def verify(stack: BatonProcess, *flags: str, key: str = "the-key") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "baton.cli", "verify", "--url", stack.url, "--api-key", key, *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)


def test_all_ways_of_a_healthy_stack_agree(stack: BatonProcess) -> None:
    folder = Path(stack.arguments[1])
    done = verify(stack, "--model", str(folder), "--prompts", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "Every answer is the same."
    rows = [line.split() for line in done.stdout.splitlines()]
    decodes, prefills = ("decode-0", "decode-1"), ("prefill-0", "prefill-1")
    equal = [words[: words.index("equal,") - 2] for words in rows if "equal," in words]
    wanted = [[path, decode] for path in ("local", "cached", "replayed") for decode in decodes]
    pairs = [(prefill, decode) for prefill in (*prefills, *decodes) for decode in decodes if prefill != decode]
    wanted += [["remote", prefill, ">", decode] for prefill, decode in pairs]
    assert sorted(equal) == sorted(wanted)
    assert "offline" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_another_model_beside_the_server_is_found_out(stack: BatonProcess, tmp_path: Path) -> None:
    done = verify(stack, "--model", str(make_model(tmp_path / "other", seed=8)), "--prompts", "1")
    assert done.returncode == 1
    assert "DIFFER" in done.stdout
    assert "token 0 is" in done.stdout


def test_without_the_offline_llm_the_paths_are_compared_among_themselves(stack: BatonProcess) -> None:
    done = verify(stack, "--no-offline", "--prompts", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "offline" not in done.stdout


def test_who_may_not_ask_is_told_so_in_one_line(stack: BatonProcess) -> None:
    done = verify(stack, key="wrong")
    assert done.returncode == 2
    assert "401: The API key is not known here." in done.stderr
    assert len(done.stderr.splitlines()) == 1


QUESTION = Question([1, 2], {"temperature": 0.0, "max_tokens": ANSWER_LEN})


def answer(token_ids: list[int], logprob: float = -1.0, leads: float = 1.0) -> Answer:
    return Answer(token_ids, [logprob] * len(token_ids), [leads] * len(token_ids), "length")


def found(given: Answer, wanted: Answer) -> Row:
    row = Row("local", "d0")
    row.compare(4, QUESTION, given, wanted, 0.01)
    return row


def test_the_first_difference_is_told_with_its_place() -> None:
    right = list(range(ANSWER_LEN))
    assert not found(answer(right), answer(right)).differences
    wrong = [*right[:7], 99, *right[8:]]
    where = "prompt 4 (2 tokens, greedy): "
    assert found(answer(wrong), answer(right)).differences == [f"{where}token 7 is 99, not 7"]
    assert found(answer(right[:-1]), answer(right)).differences == [f"{where}{ANSWER_LEN - 1} tokens, not {ANSWER_LEN}"]
    off = found(answer(right, logprob=-1.1), answer(right))
    assert off.differences == [f"{where}log-probability of token 0 is off by 0.1"]


def test_an_answer_is_compared_up_to_a_tie() -> None:
    right = list(range(ANSWER_LEN))
    wanted = answer(right)
    wanted.leads[5] = 0.001
    row = found(answer([*right[:5], *[0] * (ANSWER_LEN - 5)]), wanted)
    assert not row.differences
    assert (row.num_cut, row.num_tokens) == (1, 5)
