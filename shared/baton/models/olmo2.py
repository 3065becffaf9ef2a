"""OLMo 2 and 3: norms only after each block, RMSNorm over all heads of queries and keys; OLMo 3 has windows in most layers.

x += norm(attention(x)); x += norm(mlp(x)), and a norm before the output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from baton.kernels.rms_norm import rms_norm
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import (
    SLIDING,
    read_attention,
    read_decoder,
    read_heads,
    read_kinds,
    read_mlp,
    read_rotary,
    read_window,
)
from baton.models.layers import MLP, Attention, attention_of
from baton.models.llama import Llama
from baton.models.moe import MoE
from baton.models.rope import read_ropes
from baton.models.spec import ModelSpec
from baton.models.step import Step


@dataclass(slots=True)
class Olmo2Layer:
    """One layer."""

    attention: Attention
    attention_norm: Tensor
    mlp: MLP | MoE
    mlp_norm: Tensor


class Olmo2(Llama):
    """A decoder of the OLMo 2 kind."""

    layers: list[Olmo2Layer]  # type: ignore[assignment]

    def _stack(self) -> None:
        self.layers = [
            Olmo2Layer(
                attention_of(self.parameters, self.spec, layer, self.NAMES),
                self._norm(f"layers.{layer}.post_attention_layernorm"),
                self._mlp(layer),
                self._norm(f"layers.{layer}.post_feedforward_layernorm"),
            )
            for layer in range(self.spec.num_layers)
        ]
        self.last_norm = self._norm("norm")

    def forward(self, step: Step) -> Tensor:
        eps, x = self.spec.norm_eps, self.embed(step)
        for layer in self.layers:
            x = x + rms_norm(layer.attention(x, step), layer.attention_norm, eps)
            x = x + rms_norm(layer.mlp(x, step), layer.mlp_norm, eps)
        return rms_norm(x, self.last_norm, eps)


def read(fields: Fields) -> ModelSpec:
    """Read config.json of OLMo 2."""
    attention = read_attention(fields, kv_heads_named=False, bias=fields.flag("attention_bias", False))
    return read_rotary(fields, replace(attention, qk_norm="width"), read_mlp(fields), eps=1e-5)


def read_3(fields: Fields) -> ModelSpec:
    """Read config.json of OLMo 3."""
    fields = fields.with_defaults(rope_theta=5e5)
    bias = fields.flag("attention_bias", False)
    heads = replace(read_heads(fields, kv_heads_named=False), qk_norm="width", qkv_bias=bias, out_bias=bias)
    window, ropes = read_window(fields), read_ropes(fields, heads.head_dim)
    layers = [
        replace(heads, rope=ropes[kind], window=window if kind == SLIDING else None)
        for kind in read_kinds(fields, lambda layer: (layer + 1) % 4 != 0)
    ]
    max_len = fields.integer("max_position_embeddings")  # the scaling of its rotation is within
    return read_decoder(fields, layers, read_mlp(fields), max_len, eps=1e-5)


FAMILY = Family("olmo2", ("Olmo2ForCausalLM",), read, Olmo2, eos=50279)
OLMO3_FAMILY = Family("olmo3", ("Olmo3ForCausalLM",), read_3, Olmo2, eos=50279)
