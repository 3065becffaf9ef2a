"""Floors: what the device that the peer ran on could have done at best, by the arithmetic of the design."""

from __future__ import annotations

import pytest

from baton.bench.floors import Model, decode_s, prefill_s, run_s
from baton.bench.gpu_figures import PEER_DEVICE
from baton.bench.kernels.measure import Ceilings
from baton.bench.known_models import LLAMA_8B, QWEN_06B
from baton.bench.workloads import Workload, mixed, throughput

LLAMA, QWEN = Model.of(LLAMA_8B), Model.of(QWEN_06B)


def test_a_model_is_counted_from_its_config() -> None:
    assert LLAMA.layer_parameters + LLAMA.head_parameters == 7_504_658_432  # 8.03e9 less the embedding and the norms
    assert LLAMA.kv_token_nbytes == 128 * 1024


@pytest.mark.parametrize(("batch", "ms"), [(1, 3.52), (8, 3.74), (32, 4.49), (128, 7.49), (256, 12.85)])
def test_a_decode_step_reads_weights_and_kv_once(batch: int, ms: float) -> None:
    assert 1e3 * decode_s(LLAMA, PEER_DEVICE, batch, 1024) == pytest.approx(ms, rel=0.01)


@pytest.mark.parametrize(("length", "ms"), [(512, 9.1), (2048, 37.6), (8192, 167.0), (32000, 912.0)])
def test_a_prompt_takes_the_operations_of_products_and_attention(length: int, ms: float) -> None:
    assert 1e3 * prefill_s(LLAMA, PEER_DEVICE, [length]) == pytest.approx(ms, rel=0.01)


def test_runs_are_prompts_and_then_steps() -> None:
    for model, workload, rate in ((LLAMA, throughput(), 7_800), (LLAMA, mixed(), 13_300), (QWEN, mixed(), 36_200)):
        assert workload.num_output_tokens / run_s(model, PEER_DEVICE, workload) == pytest.approx(rate, rel=0.03)


def test_requests_beyond_the_seats_wait_for_them() -> None:
    workload = Workload("two", [[1] * 10, [2] * 10], [3, 3])
    together, in_turn = (run_s(LLAMA, PEER_DEVICE, workload, seats) for seats in (2, 1))
    weights = 2 * (LLAMA.layer_parameters + LLAMA.head_parameters) / PEER_DEVICE.copy_gbps / 1e9
    assert in_turn - together == pytest.approx(2 * weights, rel=0.01)


def test_a_slower_memory_costs_decodes_alone() -> None:
    slower = Ceilings(PEER_DEVICE.copy_gbps / 2, PEER_DEVICE.matmul_tflops)
    assert decode_s(LLAMA, slower, 1, 1024) == pytest.approx(2 * decode_s(LLAMA, PEER_DEVICE, 1, 1024))
    assert prefill_s(LLAMA, slower, [512]) == prefill_s(LLAMA, PEER_DEVICE, [512])
