"""GPT-2 (and DialoGPT): learned positions, LayerNorm before each block, fused q, k, v, transposed weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from baton.models.causal_lm import CausalLM
from baton.models.layers import MLP, Attention, LayerNorm, Linear, Parameters, output_layer
from baton.models.spec import ModelSpec
from baton.models.step import Step


class GPT2Layer:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, spec: ModelSpec, parameters: Parameters, layer: int) -> None:
        name, size = f"h.{layer}", spec.hidden_size

        def conv1d(which: str, num_inputs: int, num_outputs: int) -> Linear:
            return parameters.linear([(f"{name}.{which}", num_outputs)], num_inputs, bias=True, transposed=True)

        self.attention_norm = LayerNorm(parameters, f"{name}.ln_1", size, spec.norm_eps)
        self.attention = Attention(
            spec,
            layer,
            conv1d("attn.c_attn", size, 3 * size),
            conv1d("attn.c_proj", size, size),
            parameters.ops.attention,
        )
        self.mlp_norm = LayerNorm(parameters, f"{name}.ln_2", size, spec.norm_eps)
        inner = spec.intermediate_size
        self.mlp = MLP(conv1d("mlp.c_fc", size, inner), conv1d("mlp.c_proj", inner, size), spec.activation)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attention(self.attention_norm(x), step)
        return x + self.mlp(self.mlp_norm(x))


class GPT2(CausalLM):
    """A decoder of the GPT-2 kind."""

    def _build(self, spec: ModelSpec, parameters: Parameters) -> None:
        self.embedding = parameters.table("wte.weight", spec.vocab_size, spec.hidden_size)
        # The checkpoint has as many positions as config.json says, however short the context that is served.
        self.position_embedding = parameters.table("wpe.weight", spec.num_positions, spec.hidden_size)
        self.layers = [GPT2Layer(spec, parameters, layer) for layer in range(spec.num_layers)]
        self.final_norm = LayerNorm(parameters, "ln_f", spec.hidden_size, spec.norm_eps)
        self.lm_head = output_layer(spec, parameters, self.embedding, "wte.weight")

    def forward(self, step: Step) -> Tensor:
        x = F.embedding(step.token_ids, self.embedding) + F.embedding(step.positions, self.position_embedding)
        for layer in self.layers:
            x = layer(x, step)  # [tokens, hidden_size]
        return self.final_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head.in_fp32(hidden)
