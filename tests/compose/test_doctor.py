"""`baton doctor`: what it looks at, what it predicts, and what it advises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.processes import HANG_S, free_ports
from typer.testing import CliRunner

from baton.bench.goodput import Targets
from baton.checkout import ROOT
from baton.cli import app
from baton.doctor import host
from baton.doctor.advice import Site, advise
from baton.doctor.figures import DEVICES, planned
from baton.doctor.model_cost import ModelCost, read_model
from baton.doctor.prediction import fit, step_times
from baton.doctor.reasons import reasons, verdict
from baton.doctor.simulation import Chunks, Layout, gaps_of, simulate
from baton.doctor.software import check_version
from baton.doctor.traffic import drawn, recorded
from baton.errors import ConfigError
from baton.step_times import LLAMA_8B_ON_H100

LLAMA, H100 = read_model("llama-3.1-8b"), planned("h100")
LOAD = {"input_len": (512, 3584), "output_len": (64, 448)}
"""That of docs/results/h100."""


def site(num_devices: int = 2, link_gbps: float = 136.0, device: str = "h100") -> Site:
    return Site(model=LLAMA, figures=planned(device), num_devices=num_devices, link_gbps=link_gbps, link="the link")


# -- counting and predicting ----------------------------------------------------------------------------------


def test_a_model_is_counted_from_its_config() -> None:
    assert LLAMA.step_nbytes == 2 * 7_504_658_432
    assert LLAMA.kv_token_nbytes == 128 * 1024
    assert read_model("meta-llama/Llama-3.1-8B").step_nbytes == LLAMA.step_nbytes
    demo = read_model(None, width=4)
    assert demo.weights_nbytes == 4 * (demo.body_parameters + demo.head_parameters)  # its embedding is its head
    assert demo.kv_token_nbytes == 4 * 2 * 8 * 2 * 64


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({}, "lacks hidden_size"),
        ({"hidden_size": 8, "n_layer": 2}, "lacks num_attention_heads"),
        ({"hidden_size": 8, "num_local_experts": 8}, "mixture of 8 experts"),
    ],
)
def test_what_cannot_be_counted_is_refused(raw, says) -> None:
    with pytest.raises(ConfigError, match=says):
        ModelCost.of(raw, "m")


def test_predicted_step_times_are_those_that_were_measured_on_an_h100() -> None:
    times = step_times(LLAMA, H100)
    for rows in (1, 8, 32, 128, 256):
        measured = LLAMA_8B_ON_H100.seconds(rows, 1024 * rows)
        assert times.seconds(rows, 1024 * rows) == pytest.approx(measured, rel=0.03)
    for length in (512, 2048, 8192):
        assert times.prompt_seconds(length) == pytest.approx(LLAMA_8B_ON_H100.prompt_seconds(length), rel=0.03)


@given(st.sampled_from(sorted(DEVICES)), st.integers(1, 256), st.integers(0, 8192))
def test_no_prediction_beats_the_devices_figures(device, rows, tokens) -> None:
    figures = planned(device)
    seconds = step_times(LLAMA, figures).seconds(rows, rows * 1024, tokens, tokens * tokens)
    assert seconds > LLAMA.step_nbytes / figures.memory_gbps / 1e9
    assert seconds > 2 * LLAMA.body_parameters * (rows + tokens) / figures.product_tflops / 1e12


def test_blocks_fit_beside_the_weights_or_not_at_all() -> None:
    assert 20_000 < fit(LLAMA, H100).num_blocks < 30_000
    assert fit(LLAMA, planned("nvidia-h200")).num_blocks > 2 * fit(LLAMA, H100).num_blocks
    assert fit(ModelCost.of({**LARGE}, "large"), H100).num_blocks == 0
    with pytest.raises(ConfigError, match=r"plan='tpu' is not in the table\. It has h100, h200"):
        planned("tpu")


LARGE = {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
}


# -- simulating -----------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    num_prefill=st.integers(0, 2),
    num_decode=st.integers(1, 2),
    chunk=st.sampled_from([64, 512, 8192]),
    target_ms=st.sampled_from([0.0, 8.0, 15.0]),
    auto=st.booleans(),
    kv_tokens=st.sampled_from([3000, 20_000, 1 << 40]),
    rate=st.floats(0.5, 60),
)
def test_every_request_gets_all_of_its_tokens_in_time_order(
    num_prefill, num_decode, chunk, target_ms, auto, kv_tokens, rate
) -> None:
    layout = Layout(
        times=LLAMA_8B_ON_H100,
        num_decode=num_decode,
        num_prefill=num_prefill,
        auto=auto and num_prefill > 0,
        chunks=Chunks.within(target_ms / 1e3, LLAMA_8B_ON_H100) if target_ms else Chunks(chunk),
        link_bytes_s=5e9,
        kv_token_nbytes=131072,
        kv_tokens=kv_tokens,
        hold_s=0.3,
    )
    traffic = drawn(rate, (1, 1000), (1, 300)).at_rate(rate)
    for request, outcome in zip(traffic.requests, simulate(layout, traffic), strict=True):
        assert outcome.first_s > 0
        assert len(outcome.gaps_s) == request.output_len - 1
        assert all(gap >= 0 for gap in outcome.gaps_s)


def test_steps_that_are_sized_for_a_target_keep_it() -> None:
    layout = site().layout(0, Chunks.within(0.015, step_times(LLAMA, H100)))
    assert gaps_of(simulate(layout, drawn(16, **LOAD).at_rate(16, 20.0)))[-1] <= 0.015


@pytest.mark.parametrize("file", ["baton_agg2x512", "baton_pdremote"])
def test_the_simulation_gives_the_shares_that_two_h100_gave(file) -> None:
    runs = json.loads((ROOT / "docs" / "results" / "h100" / f"{file}.json").read_text())["runs"]
    # that `remote` had ipc sockets, 2 to 4 GB/s, and no first token waited
    layout = site().layout(0, Chunks(512)) if "agg" in file else site(link_gbps=3.0).layout(1, Chunks())
    loads = [drawn(run["rate"], **LOAD).at_rate(run["rate"], 20.0) for run in runs]
    shares = [Targets(500, 30).share(simulate(layout, load)) for load in loads]
    assert shares == pytest.approx([run["good_share"] for run in runs], abs=0.06)


# -- advising -------------------------------------------------------------------------------------------------


def test_two_devices_with_a_loose_target_are_better_together() -> None:
    advice = advise(site(), drawn(16, **LOAD), Targets(500, 30), least_s=8.0)
    assert not advice.pays
    assert advice.together.share > 0.95
    assert verdict(advice).startswith("Prefill and decode apart do not pay: ")
    assert "--prefill 0 --decode 2 --itl-target-ms 30`" in verdict(advice)
    assert any(reason.startswith("The gap target is loose: ") for reason in reasons(advice))


def test_a_link_that_is_slower_than_the_kv_loses_and_is_named() -> None:
    advice = advise(site(link_gbps=1.0), drawn(16, **LOAD), Targets(500, 30), least_s=8.0)
    assert not advice.pays
    assert any("it cannot keep up" in reason for reason in reasons(advice))


def test_nobody_is_sent_to_a_link_that_cannot_keep_up_by_what_is_good_of_the_first_minute() -> None:
    advice = advise(site(link_gbps=3.0), drawn(24, **LOAD), Targets(500, 30))
    assert advice.apart is not None
    assert advice.apart.stalls
    assert not advice.pays
    assert verdict(advice).startswith("No layout keeps these targets")


def test_long_prompts_under_a_tight_target_pay_apart() -> None:
    # beside a few long answers a chunk leaves too little of 8 ms
    traffic = drawn(2.0, (6000, 8000), (64, 96))
    advice = advise(site(device="h200", num_devices=2), traffic, Targets(600, 6.5), least_s=8.0)
    assert advice.pays, verdict(advice)
    assert "--prefill 1 --decode 1" in verdict(advice)


def test_one_device_for_both_loses() -> None:
    advice = advise(site(num_devices=1), drawn(4, **LOAD), Targets(500, 30), least_s=8.0)
    assert advice.apart is None
    assert verdict(advice).startswith("One device: prefill and decode apart lose here.")
    assert next(iter(reasons(advice))).startswith("Both roles would share one device")


def test_short_prompts_are_named() -> None:
    advice = advise(site(), drawn(10, (100, 200), (64, 128)), Targets(500, 30), least_s=8.0)
    assert any(reason.startswith("Prompts are short: ") for reason in reasons(advice))


def test_targets_that_nothing_keeps_are_named() -> None:
    advice = advise(site(device="l4"), drawn(4, **LOAD), Targets(500, 20), least_s=8.0)
    assert verdict(advice).startswith("No layout keeps these targets")
    assert any(reason.startswith("The gap target is out of reach") for reason in reasons(advice))


def test_a_trace_is_planned_at_its_own_rate_or_another(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 500 * i, "input_length": 100 + i, "output_length": 9} for i in range(21)]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert recorded(file, 4096).rate == pytest.approx(2.1)
    faster = recorded(file, 112, rate=5.0)
    assert faster.rate == pytest.approx(5.0, rel=0.2)
    assert {request.input_len for request in faster.requests} == {100, 101, 102, 103}
    with pytest.raises(ConfigError, match="has no two requests"):
        recorded(file, 50)


# -- looking --------------------------------------------------------------------------------------------------


def test_what_a_cgroup_allows_is_told(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text(str(3 << 30))
    (tmp_path / "memory.current").write_text(str(2 << 30))
    (tmp_path / "pids.max").write_text("200")
    (tmp_path / "pids.current").write_text("10")
    processors, memory = host.check_processors(tmp_path), host.check_memory(tmp_path)
    assert (processors.level, memory.level) == ("note", "note"), (processors, memory)
    assert processors.text.startswith("1.5 processors (of ")
    assert memory.text == "1.0 of 3.0 GiB free (by the cgroup)"
    assert "--pids-limit" in host.check_processes(tmp_path).way_out


def test_a_process_that_may_open_few_files_is_told_the_way_out() -> None:
    assert host.check_files(1024, 524288).line() == (
        "! files      1,024 open files a process (at most 524,288). Each stream takes one: `ulimit -n 524288` before a router."
    )
    assert host.check_files(-1, -1).level == "ok"


def test_a_redis_that_does_not_answer_is_broken_and_no_password_is_shown() -> None:
    (port,) = free_ports(1)
    finding = host.check_redis(f"redis://:secret@127.0.0.1:{port}/0")
    assert finding.level == "broken"
    assert "secret" not in finding.line()
    assert f"redis://127.0.0.1:{port}/0 does not answer" in finding.text


def test_versions_are_compared_as_numbers() -> None:
    assert check_version("torch", "2.9.1+cu130", (2, 11)).level == "broken"
    assert check_version("torch", "2.13.0a0+git", (2, 11)).level == "ok"
    assert check_version("triton", None, (3, 6)).level == "note"


def test_a_plan_needs_no_gpu_and_no_torch() -> None:
    code = (
        "import sys, baton.doctor.examination as e; e.examine(e.Questions(plan='l4')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_this_machine_is_looked_at_measured_and_advised() -> None:
    words = ("--json", "--rate", "1", "--input-len", "200", "--output-len", "20", "50")
    command = [sys.executable, "-m", "baton", "doctor", *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert result.returncode == 0, result.stderr
    whole = json.loads(result.stdout)
    assert {finding["subject"] for finding in whole["findings"]} >= {"baton", "torch", "memory", "redis", "link"}
    assert {"tcp", "ipc"} <= {name for name, gbps in whole["links_gb_per_s"].items() if gbps > 0}
    assert whole["model"]["blocks"] > 0
    assert whole["device"]["memory_gb_per_s"] > 0
    assert whole["traffic"]["disaggregation_pays"] is False


def test_what_is_broken_ends_the_command_with_1() -> None:
    (port,) = free_ports(1)
    result = CliRunner().invoke(app, ["doctor", "--no-measure", "--redis-url", f"redis://127.0.0.1:{port}"])
    assert result.exit_code == 1, result.output
    assert result.stdout.splitlines()[-1] == "1 broken, marked X"
    assert "\nX redis " in result.stdout


def test_what_cannot_be_planned_is_refused_with_the_way_out() -> None:
    for words, says in (
        (("--rate", "1", "--no-measure"), "a traffic needs a device: leave out --no-measure"),
        (
            ("--plan", "h100", "--rate", "1", "--input-len", "500", "100"),
            "input_len=500,100 is not valid: give the shortest",
        ),
        (("--plan", "h100", "--rate", "1", "--input-len", "5000"), "exceed the model's context of 4096. Lower"),
    ):
        assert says in str(CliRunner().invoke(app, ["doctor", *words]).exception)
