"""Llama 2 and 3.x, and the decoder that other families vary.

x += attention(norm(x)); x += mlp(norm(x)), with RMSNorm, rotary positions, grouped KV heads and a gated feed-forward.
Each addition to the residual is fused with the norm after it, so a layer ends with its successor's first norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from baton.kernels.rms_norm import add_rms_norm, rms_norm
from baton.models.causal_lm import CausalLM
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.latent import LatentAttention
from baton.models.layer_config import read_attention, read_mlp, read_rotary
from baton.models.layers import MLP, Attention, attention_of, mlp_of, output_layer
from baton.models.linear import Fill
from baton.models.moe import MoE
from baton.models.names import LLAMA
from baton.models.parameters import Parameters
from baton.models.spec import ModelSpec
from baton.models.step import Step


@dataclass(slots=True)
class LlamaLayer:
    """One layer, and the weight of the norm that follows it."""

    attention: Attention | LatentAttention
    mlp: MLP | MoE
    mlp_norm: Tensor
    next_norm: Tensor  # the next layer's first norm, or the model's last


class Llama(CausalLM):
    """A decoder of the Llama kind, as its spec says."""

    NAMES = LLAMA

    def __init__(self, spec: ModelSpec, parameters: Parameters) -> None:
        super().__init__(spec, parameters)
        names, embedding = self.NAMES, f"{self.NAMES.embedding}.weight"
        self.embedding = parameters.tensor(embedding, spec.vocab_size, spec.hidden_size)
        self.embedding_scale = spec.embedding_scale
        self._stack()
        self.lm_head = output_layer(spec, parameters, self.embedding, embedding, names.output)

    def _stack(self) -> None:
        """Make the layers and the norms between them."""
        num_layers, names = self.spec.num_layers, self.NAMES
        norms = [self._norm(f"{names.layers}.{layer}.{names.attention_norm}") for layer in range(num_layers)]
        norms.append(self._norm(names.final_norm))
        self.first_norm = norms[0]
        self.layers = [self._layer(layer, norms[layer + 1]) for layer in range(num_layers)]

    def _layer(self, layer: int, next_norm: Tensor) -> LlamaLayer:
        mlp_norm = self._norm(f"{self.NAMES.layers}.{layer}.{self.NAMES.mlp_norm}")
        return LlamaLayer(self._attention(layer), self._mlp(layer), mlp_norm, next_norm)

    def _norm(self, name: str) -> Tensor:
        fill: Fill = "zeros" if self.spec.norm_offset else "ones"
        return self.parameters.tensor(f"{name}.weight", self.spec.hidden_size, fill=fill)

    def _attention(self, layer: int) -> Attention | LatentAttention:
        return attention_of(self.parameters, self.spec, layer, self.NAMES)

    def _mlp(self, layer: int) -> MLP | MoE:
        return mlp_of(self.parameters, self.spec, layer, self.NAMES)

    def embed(self, step: Step) -> Tensor:
        """Look the tokens up: [tokens, hidden_size]."""
        x = F.embedding(step.token_ids, self.embedding)
        return x if self.embedding_scale == 1.0 else x * self.embedding_scale

    def forward(self, step: Step) -> Tensor:
        eps = self.spec.norm_eps
        residual = self.embed(step)
        x = rms_norm(residual, self.first_norm, eps)
        for layer in self.layers:
            x = layer.attention(x, step)
            x, residual = add_rms_norm(x, residual, layer.mlp_norm, eps)
            x = layer.mlp(x, step)
            x, residual = add_rms_norm(x, residual, layer.next_norm, eps)
        return x


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    attention = read_attention(fields, kv_heads_named=False, bias=fields.flag("attention_bias", False))
    return read_rotary(fields, attention, read_mlp(fields, bias=fields.flag("mlp_bias", False)))


FAMILY = Family("llama", ("LlamaForCausalLM",), read, Llama, eos=2)
