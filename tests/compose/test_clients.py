"""The commands that talk to a running server: `baton chat`, `baton complete`, `baton bench serve`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.processes import HANG_S, BatonProcess, eventually, free_ports

KEY = "a-key-of-these-tests and-another-one"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatonProcess]:
    """`baton serve` with the demo model on one worker."""
    (port,) = free_ports(1)
    arguments = ["serve", "--prefill", "0", "--port", str(port), "--kv-cache-memory-bytes", "64M"]
    log = tmp_path_factory.mktemp("server") / "log"
    process = BatonProcess(arguments, log, port, {"BATON_API_KEY": KEY}).start()
    try:
        eventually(lambda: "Try:" in process.log() or not process.is_running, "the server is ready")
        yield process
    finally:
        process.kill()


def call(server: BatonProcess, *words: str, text: str = "", key: str = KEY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "baton", *words],
        input=text,
        text=True,
        capture_output=True,
        check=False,
        timeout=HANG_S,
        env={"BATON_API_KEY": key, "BATON_URL": f"{server.url}/v1", "COLUMNS": "80", "PATH": ""},
    )


def test_chat_remembers_what_was_said(server: BatonProcess) -> None:
    result = call(server, "chat", "--temperature", "0", text="My name is Vera.\nWhat is my name?\n\nnever sent\n")
    assert result.returncode == 0, result.stderr
    answers = result.stdout.splitlines()
    assert len(answers) == 2
    assert "Vera" in answers[1]
    assert "baton-demo at http://127.0.0.1" in result.stderr


def test_one_question_may_stand_on_the_command_line(server: BatonProcess) -> None:
    words = ("--temperature", "0", "-q", "What is 12 + 30?", "--model-name", "baton-demo")
    result = call(server, "chat", *words, "--system-prompt", "You are a helpful assistant.")
    assert "42" in result.stdout
    assert result.stderr == ""


def test_complete_goes_on_with_each_line(server: BatonProcess) -> None:
    result = call(server, "complete", "--temperature", "0", "--max-tokens", "1", text="2+2=\n17+25=\n")
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2
    assert result.stdout.startswith("4")


def test_what_the_server_refuses_is_one_line(server: BatonProcess) -> None:
    result = call(server, "chat", "-q", "hello", "--model-name", "another")
    assert result.returncode == 2
    assert re.fullmatch(r"baton: 404: [^\n]*another[^\n]*\n", result.stderr), result.stderr
    result = call(server, "complete", "-q", "hello", key="a-wrong-key-of-nobody")
    assert re.fullmatch(r"baton: 401: [^\n]+\n", result.stderr), result.stderr


def test_without_a_server_a_client_says_how_to_start_one() -> None:
    (port,) = free_ports(1)
    nobody = BatonProcess([], Path("/dev/null"), port)
    for words in (("chat", "-q", "hello"), ("complete", "-q", "hello"), ("bench", "serve"), ("top", "--once")):
        result = call(nobody, *words)
        assert result.returncode == 2
        assert "no server answers there" in result.stderr or "baton up" in result.stderr
        assert result.stderr.count("\n") == 1


BENCH = ("bench", "serve", "--num-prompts", "6", "--random-input-len", "64", "--output-len", "3", "5")


def test_bench_serve_prints_a_block_a_rate_that_80_columns_hold(server: BatonProcess) -> None:
    result = call(server, *BENCH, "--request-rate", "50", "inf", "--seed", "one")
    assert result.returncode == 0, result.stdout + result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    blocks = result.stdout.split("\n\n")
    assert [block.splitlines()[0][:12] for block in blocks[1:3]] == ["50 requests/", "all at once:"]
    assert [line.split()[1] for line in blocks[3].splitlines()[2:]] == ["50", "inf"]
    for block in blocks[1:3]:
        assert "6 answered, 0 failed" in block
        assert "384 tokens; 0 of them (0.0%) from the prefix cache" in block
        assert "first token (TTFT)" in block


def test_bench_serve_draws_new_prompts_unless_told_and_says_what_was_cached(server: BatonProcess) -> None:
    for _ in range(2):
        assert "0 of them (0.0%) from the prefix cache" in call(server, *BENCH).stdout
    for _ in range(2):
        cached = call(server, *BENCH, "--seed", "the same").stdout
    assert re.search(r"288 of them \(75\.0%\) from the prefix cache", cached), cached


def test_bench_serve_writes_what_vllms_scripts_read(server: BatonProcess, tmp_path: Path) -> None:
    words = ("--backend", "vllm", "--dataset-name", "random", "--save-result", "--result-dir", str(tmp_path / "new"))
    result = call(server, *BENCH, *words, "--max-concurrency", "2", "--save-detailed", "--result-filename", "a.json")
    assert result.returncode == 0, result.stderr
    whole = json.loads((tmp_path / "new" / "a.json").read_text())
    wanted = {"completed": 6, "failed": 0, "total_input_tokens": 384, "request_rate": "inf", "max_concurrency": 2}
    assert {name: whole[name] for name in wanted} == wanted
    assert {"mean_ttft_ms", "median_tpot_ms", "std_itl_ms", "p99_e2el_ms", "output_throughput", "duration"} <= set(
        whole
    )
    assert whole["model_id"] == "baton-demo"
    assert len(whole["ttfts"]) == len(whole["itls"]) == 6


def test_bench_serve_talks_on_with_the_answers_and_judges_two_servers_at_several_targets(
    server: BatonProcess, tmp_path: Path
) -> None:
    words = ("--turns", "2", "--turn-len", "4", "--think-s", "0", "--rate", "40,60", "--itl-target-ms", "1e6,1e-6")
    file = tmp_path / "out.json"
    result = call(server, *BENCH, *words, "--beside", server.url, "--label", "a", "b", "--out", str(file))
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"turn 2 .* prompt 7\d, \d\d\.\d% cached", result.stdout)  # 64 + 4 and an answer of 3 to 5
    whole = json.loads(file.read_text())
    assert [[run["rate"] for run in each["runs"]] for each in whole["servers"].values()] == [[40.0, 60.0]] * 2
    for run in (run for each in whole["servers"].values() for run in each["runs"]):
        assert [goodput["share"] for goodput in run["goodput"]][1:] == [0.0]
        assert [turn["requests"] for turn in run["turns"]] == [6, 6]
        assert run["server_counts"]["local"] == 12


def test_bench_serve_searches_the_highest_rate_that_holds(server: BatonProcess) -> None:
    words = ("--sweep", "--rate", "40,80", "--ttft-target-ms", "1e6", "--itl-target-ms", "1e6")
    result = call(server, *BENCH, *words)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "server: 90% good at 80 requests/s, the most that was tried (TTFT <= 1e+06 ms" in result.stdout


def test_the_one_port_that_users_know_tells_how_full_the_caches_are(server: BatonProcess) -> None:
    headers = {"authorization": f"Bearer {KEY.split()[0]}"}
    text = httpx.get(f"{server.url}/metrics", headers=headers).text
    for series in ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"):
        (usage,) = re.findall(rf"^{series}{{[^}}]*}} (\S+)$", text, re.MULTILINE)
        assert 0.0 <= float(usage) <= 1.0


def test_run_batch_answers_a_file_and_goes_on_with_one_that_was_cut(server: BatonProcess, tmp_path: Path) -> None:
    def line(number: int, **body: Any) -> str:
        body = {"prompt": f"{number} and", "max_tokens": 4, "temperature": 0} | body
        return json.dumps({"custom_id": f"c{number}", "method": "POST", "url": "/v1/completions", "body": body}) + "\n"

    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    words = ("run-batch", "-i", str(source), "-o", str(target), "--url", server.url)
    source.write_text(line(0) + "no JSON\n" + line(1, temperature=-1) + line(2))
    result = call(server, *words)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "4 lines: 2 answered, 2 failed, 0 were answered before." in result.stdout
    before = target.read_bytes()
    target.write_bytes(before + b'{"id": "batch_req_torn')
    source.write_text(line(0) + line(1) + line(2))
    result = call(server, *words)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 lines: 1 answered, 0 failed, 2 were answered before." in result.stdout
    answers = [json.loads(each) for each in target.read_text().splitlines()]
    assert sorted(each["custom_id"] for each in answers) == ["c0", "c1", "c2"]
    assert all(each["response"]["body"]["usage"]["completion_tokens"] == 4 for each in answers)
    kept = [each for each in before.splitlines() if json.loads(each)["custom_id"] in ("c0", "c2")]
    assert target.read_bytes().splitlines()[:2] == kept
    source.write_text("")
    assert "it has no lines" in call(server, *words).stderr


def test_a_route_of_vllms_that_is_not_here_says_what_to_do(server: BatonProcess) -> None:
    headers = {"authorization": f"Bearer {KEY.split()[0]}"}
    answer = httpx.post(f"{server.url}/v2/embed", json={}, headers=headers)
    assert answer.status_code == 404
    message = answer.json()["error"]["message"]
    assert message == "There is no /v2/embed here. Send /v1/embeddings."


def test_bench_serve_needs_no_torch() -> None:
    code = "import sys, baton.bench.serve, baton.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
