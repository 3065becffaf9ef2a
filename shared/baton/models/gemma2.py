"""Gemma 2: a norm before and after each block, norms' weights as 1 + w, soft caps, a window in every other layer.

x += norm(attention(norm(x))); x += norm(mlp(norm(x))); embeddings are scaled by sqrt(hidden_size).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from baton.kernels.rms_norm import add_rms_norm, rms_norm
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import read_attention, read_mlp, read_rotary, read_windows
from baton.models.linear import Fill
from baton.models.llama import Llama, LlamaLayer
from baton.models.parameters import Parameters
from baton.models.spec import ModelSpec
from baton.models.step import Step


@dataclass(slots=True)
class Gemma2Layer(LlamaLayer):
    """A layer with norms after its blocks too."""

    attention_out_norm: Tensor
    mlp_out_norm: Tensor


class Gemma2(Llama):
    """A decoder of the Gemma 2 kind."""

    NORM_FILL: Fill = "zeros"
    own: float | None  # soft cap of the logits
    layers: list[Gemma2Layer]  # type: ignore[assignment]

    def __init__(self, spec: ModelSpec, parameters: Parameters) -> None:
        super().__init__(spec, parameters)
        # Rounded to the weights' dtype as the model was trained: sqrt(3072) = 55.43 is 55.5 in bf16.
        self.embedding_scale = float(torch.tensor(spec.hidden_size**0.5, dtype=parameters.dtype))

    def _layer(self, layer: int, next_norm: Tensor) -> Gemma2Layer:
        attention, mlp = self._attention(layer), self._mlp(layer)
        before, after_attention, after = (
            self._norm(f"layers.{layer}.{which}_layernorm")
            for which in ("pre_feedforward", "post_attention", "post_feedforward")
        )
        return Gemma2Layer(attention, mlp, before, next_norm, after_attention, after)

    def forward(self, step: Step) -> Tensor:
        eps = self.spec.norm_eps
        residual = F.embedding(step.token_ids, self.embedding) * self.embedding_scale  # [tokens, hidden_size]
        x = rms_norm(residual, self.first_norm, eps, 1.0)
        for layer in self.layers:
            x = layer.attention(x, step)
            x = rms_norm(x, layer.attention_out_norm, eps, 1.0)
            x, residual = add_rms_norm(x, residual, layer.mlp_norm, eps, 1.0)
            x = layer.mlp(x, step)
            x = rms_norm(x, layer.mlp_out_norm, eps, 1.0)
            x, residual = add_rms_norm(x, residual, layer.next_norm, eps, 1.0)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        logits, cap = super().logits(hidden), self.own
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    fields.must_be_off("use_bidirectional_attention")
    attention = replace(
        read_attention(fields, head_dim=256, bias=fields.flag("attention_bias", False)),
        scale=fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
        soft_cap=_soft_cap(fields, "attn_logit_softcapping", 50.0),
    )
    final_cap = _soft_cap(fields, "final_logit_softcapping", 30.0)
    windows = read_windows(fields, lambda layer: layer % 2 == 0)
    return read_rotary(fields, attention, read_mlp(fields, ("gelu_pytorch_tanh",)), windows, tied=True, own=final_cap)


def _soft_cap(fields: Fields, name: str, default: float) -> float | None:
    """Read a cap: absent is the default, null is none."""
    return fields.optional_number(name) if name in fields.raw else default


FAMILY = Family("gemma2", ("Gemma2ForCausalLM",), read, Gemma2, eos=1)
