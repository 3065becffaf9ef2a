"""From a device's figures and a model's counts to step times, KV blocks and bytes on the way. No torch.

The form of the step times, and what part of the figures a step reaches, are those of Llama-3.1-8B on an H100, which was
measured (`step_times.LLAMA_8B_ON_H100`): weights at 88 % of the copy rate, KV at all of it, products at 80 % of the product
rate beyond some 256 tokens. A new device or model is predicted from there; its own measured times are better.
"""

from __future__ import annotations

from dataclasses import dataclass

from baton.doctor.figures import Figures
from baton.doctor.model_cost import ModelCost
from baton.step_times import FULL, StepTimes

WEIGHTS_SHARE, KV_SHARE, PRODUCT_SHARE = 0.88, 1.0, 0.80
_PAIR_SHARE = 1.3
"""Attention skips what lies after a token, which is near half of the pairs that are counted."""
_HIDDEN = 0.83
"""Part of a token's products that reading weights hides, below `FULL`."""
_STEP_S, _ROW_S, _CHUNK_S = 0.25e-3, 12e-6, 0.5e-3
"""Of launching a step, of what is done for each sequence, and of chunks lying beside rows."""
BLOCK_LEN = 16
MEMORY_SHARE = 0.9
"""As --gpu-memory-utilization is, where it is not set."""
KEPT_NBYTES = 3 * 2**30
"""Of a GPU: captured steps, CUDA's context, and what a step of 8,192 tokens takes."""


def step_times(model: ModelCost, figures: Figures) -> StepTimes:
    """Predict the step times of a model on a device."""
    bytes_s, flops_s = 1e9 * figures.memory_gbps, 1e12 * figures.product_tflops
    reading_s = model.step_nbytes / bytes_s / WEIGHTS_SHARE
    product_s = 2 * model.body_parameters / flops_s / PRODUCT_SHARE
    # a device that multiplies for longer than it reads from fewer tokens on hides less of them
    hidden = min(_HIDDEN, reading_s / product_s / FULL)
    token_s = (1 - hidden) * product_s
    launches = 1.0 if figures.is_gpu else 0.2
    return StepTimes(
        step=reading_s + launches * _STEP_S,
        row=token_s + launches * _ROW_S,
        context=model.kv_token_nbytes / bytes_s / KV_SHARE,
        chunk=launches * _CHUNK_S,
        token=token_s,
        full=product_s - token_s,
        pair=model.pair_flops / 2 / flops_s / _PAIR_SHARE,
    )


@dataclass(frozen=True, slots=True)
class Fit:
    """How much KV a device holds beside the weights."""

    weights_gib: float
    num_blocks: int
    """0: the weights alone are too large."""

    @property
    def num_tokens(self) -> int:
        """Tokens whose KV fits."""
        return self.num_blocks * BLOCK_LEN


def fit(model: ModelCost, figures: Figures) -> Fit:
    """Say what fits; of a CPU, whose workers take 1 GiB for KV unless told."""
    memory = figures.memory_gib * 2**30
    spare = MEMORY_SHARE * memory - model.weights_nbytes - KEPT_NBYTES
    if not figures.is_gpu:
        spare = min(memory - model.weights_nbytes, 2**30)
    return Fit(model.weights_nbytes / 2**30, max(0, int(spare / (model.kv_token_nbytes * BLOCK_LEN))))


ROWS = (1, 8, 32, 128, 256)
PROMPTS = (512, 2048, 8192)


def predicted_steps(
    times: StepTimes, max_model_len: int, context: int = 1024
) -> tuple[dict[int, float], dict[int, float]]:
    """Return the ms of decode steps by rows, and of prompts by length."""
    decode = {rows: 1e3 * times.seconds(rows, rows * context) for rows in ROWS}
    prompts = {length: 1e3 * times.prompt_seconds(length) for length in PROMPTS if length < max_model_len}
    return decode, prompts
