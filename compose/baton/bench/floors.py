"""The least time that a device with given ceilings could take for a workload: no bytes read twice, no waiting.

A step reads every weight once while it computes two operations a weight and token, whichever takes longer, and reads the KV of its
sequences; a prompt takes the operations of its products and of causal attention. Nothing else is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from baton.bench.kernels.measure import Ceilings
from baton.bench.workloads import Workload


@dataclass(frozen=True, slots=True)
class Model:
    """What of a bf16 model costs time."""

    layer_parameters: int
    head_parameters: int  # the output layer, which a prompt needs for one token alone
    kv_token_nbytes: int
    attention_width: int  # query heads times their size, of all layers

    @classmethod
    def of(cls, config: dict[str, Any]) -> Model:
        """Count from a config.json of the Llama kind."""
        hidden, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        layers = config["num_hidden_layers"]
        of_a_layer = hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * inner
        return cls(
            layer_parameters=layers * of_a_layer,
            head_parameters=config["vocab_size"] * hidden,
            kv_token_nbytes=2 * 2 * layers * kv_heads * head_dim,
            attention_width=layers * heads * head_dim,
        )


def decode_s(model: Model, device: Ceilings, batch: int, context: int) -> float:
    """Return the seconds of one decode step."""
    parameters = model.layer_parameters + model.head_parameters
    reading = 2 * parameters / device.copy_gbps / 1e9
    computing = 2 * parameters * batch / device.matmul_tflops / 1e12
    return max(reading, computing) + batch * context * model.kv_token_nbytes / device.copy_gbps / 1e9


def prefill_s(model: Model, device: Ceilings, lens: Sequence[int]) -> float:
    """Return the seconds of prompts of these lengths."""
    operations = sum(2 * model.layer_parameters * length + 2 * model.attention_width * length**2 for length in lens)
    return operations / device.matmul_tflops / 1e12


def run_s(model: Model, device: Ceilings, workload: Workload, max_num_seqs: int = 256) -> float:
    """Return the seconds of a workload: its prompts, then decode steps, each full as long as there are enough requests."""
    seconds = prefill_s(model, device, [len(prompt) for prompt in workload.prompts])
    for first in range(0, len(workload.prompts), max_num_seqs):
        part = slice(first, first + max_num_seqs)
        lens = list(zip(map(len, workload.prompts[part]), workload.max_tokens[part], strict=True))
        for step in range(1, max(workload.max_tokens[part])):
            contexts = [prompt + step for prompt, answer in lens if answer > step]
            seconds += decode_s(model, device, len(contexts), sum(contexts) // len(contexts))
    return seconds
