"""Llama 2 and 3.x, and what differs from it in data only: Mistral (window), Qwen2 (biases), Qwen3 (q, k norms).

x += attention(norm(x)); x += mlp(norm(x)), with RMSNorm, rotary positions, grouped KV heads and a gated
feed-forward. Each residual addition is fused with the norm after it, so a layer ends with its successor's
first norm.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from baton.kernels.rms_norm import add_rms_norm, rms_norm
from baton.models.causal_lm import CausalLM
from baton.models.layers import Attention, Fill, GatedMLP, NormedLayer, Parameters, output_layer
from baton.models.rope import rope_table
from baton.models.spec import ModelSpec
from baton.models.step import Step


class Llama(CausalLM):
    """A decoder of the Llama kind, as its spec says."""

    NORM_FILL: Fill = "ones"  # the value of a norm's weight that scales nothing

    def _build(self, spec: ModelSpec, parameters: Parameters) -> None:
        assert spec.rope is not None
        self.embedding = parameters.table("embed_tokens.weight", spec.vocab_size, spec.hidden_size)
        self.rope_table = rope_table(spec.rope, spec.max_model_len, parameters.device)
        norms = [
            parameters.vector(f"layers.{layer}.input_layernorm.weight", spec.hidden_size, self.NORM_FILL)
            for layer in range(spec.num_layers)
        ]
        norms.append(parameters.vector("norm.weight", spec.hidden_size, self.NORM_FILL))
        self.first_norm = norms[0]
        self.layers = [self._layer(layer, norms[layer + 1]) for layer in range(spec.num_layers)]
        self.lm_head = output_layer(spec, parameters, self.embedding, "embed_tokens.weight")

    def _layer(self, layer: int, next_norm: Tensor) -> NormedLayer:
        spec, parameters = self.spec, self.parameters
        name = f"layers.{layer}"
        post_norm = parameters.vector(f"{name}.post_attention_layernorm.weight", spec.hidden_size, self.NORM_FILL)
        return NormedLayer(self._attention(layer, name), self._mlp(name), post_norm, next_norm)

    def _attention(self, layer: int, name: str) -> Attention:
        spec, parameters = self.spec, self.parameters
        qkv = parameters.linear(self._qkv_parts(f"{name}.self_attn"), spec.hidden_size, bias=spec.qkv_bias)
        out = parameters.linear(
            [(f"{name}.self_attn.o_proj", spec.hidden_size)], spec.num_heads * spec.head_dim, bias=spec.out_bias
        )
        q_norm = k_norm = None
        if spec.qk_norm:
            q_norm = parameters.vector(f"{name}.self_attn.q_norm.weight", spec.head_dim, "ones")
            k_norm = parameters.vector(f"{name}.self_attn.k_norm.weight", spec.head_dim, "ones")
        return Attention(
            spec, layer, qkv, out, parameters.ops.attention, rope_table=self.rope_table, q_norm=q_norm, k_norm=k_norm
        )

    def _mlp(self, name: str) -> GatedMLP:
        spec, parameters = self.spec, self.parameters
        gate_up = parameters.linear(self._gate_up_parts(f"{name}.mlp"), spec.hidden_size, bias=spec.mlp_bias)
        down = parameters.linear(
            [(f"{name}.mlp.down_proj", spec.hidden_size)], spec.intermediate_size, bias=spec.mlp_bias
        )
        return GatedMLP(gate_up, down, spec.activation)

    def _qkv_parts(self, name: str) -> list[tuple[str, int]]:
        q_size, kv_size = (self.spec.num_heads * self.spec.head_dim, self.spec.num_kv_heads * self.spec.head_dim)
        return [(f"{name}.q_proj", q_size), (f"{name}.k_proj", kv_size), (f"{name}.v_proj", kv_size)]

    def _gate_up_parts(self, name: str) -> list[tuple[str, int]]:
        size = self.spec.intermediate_size
        return [(f"{name}.gate_proj", size), (f"{name}.up_proj", size)]

    def forward(self, step: Step) -> Tensor:
        eps = self.spec.norm_eps
        residual = F.embedding(step.token_ids, self.embedding)  # [tokens, hidden_size]
        x = rms_norm(residual, self.first_norm, eps)
        for layer in self.layers:
            x = layer.attention(x, step)
            x, residual = add_rms_norm(x, residual, layer.mlp_norm, eps)
            x = layer.mlp(x)
            x, residual = add_rms_norm(x, residual, layer.next_norm, eps)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head.in_fp32(hidden)
