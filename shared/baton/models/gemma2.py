"""Gemma 2: a norm before and after each block, weights of norms as 1 + w, soft caps, every other layer with a
window.

x += norm(attention(norm(x))); x += norm(mlp(norm(x))); embeddings are scaled by sqrt(hidden_size).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from baton.kernels.rms_norm import add_rms_norm, rms_norm
from baton.models.layers import Fill, NormedLayer, Parameters
from baton.models.llama import Llama
from baton.models.spec import ModelSpec
from baton.models.step import Step


@dataclass(slots=True)
class Gemma2Layer(NormedLayer):
    """A layer with the norms on what its blocks give."""

    attention_out_norm: Tensor
    mlp_out_norm: Tensor


class Gemma2(Llama):
    """A decoder of the Gemma 2 kind."""

    NORM_FILL: Fill = "zeros"
    layers: list[Gemma2Layer]  # type: ignore[assignment]

    def _build(self, spec: ModelSpec, parameters: Parameters) -> None:
        super()._build(spec, parameters)
        # Rounded to the weights' dtype as the model was trained: sqrt(3072) = 55.43 is 55.5 in bf16.
        self.embedding_scale = float(torch.tensor(spec.hidden_size**0.5, dtype=parameters.dtype))

    def _layer(self, layer: int, next_norm: Tensor) -> Gemma2Layer:
        name = f"layers.{layer}"

        def norm(which: str) -> Tensor:
            return self.parameters.vector(f"{name}.{which}_layernorm.weight", self.spec.hidden_size, self.NORM_FILL)

        return Gemma2Layer(
            self._attention(layer, name),
            self._mlp(name),
            norm("pre_feedforward"),
            next_norm,
            attention_out_norm=norm("post_attention"),
            mlp_out_norm=norm("post_feedforward"),
        )

    def forward(self, step: Step) -> Tensor:
        eps = self.spec.norm_eps
        residual = F.embedding(step.token_ids, self.embedding) * self.embedding_scale  # [tokens, hidden_size]
        x = rms_norm(residual, self.first_norm, eps, 1.0)
        for layer in self.layers:
            x = layer.attention(x, step)
            x = rms_norm(x, layer.attention_out_norm, eps, 1.0)
            x, residual = add_rms_norm(x, residual, layer.mlp_norm, eps, 1.0)
            x = layer.mlp(x)
            x = rms_norm(x, layer.mlp_out_norm, eps, 1.0)
            x, residual = add_rms_norm(x, residual, layer.next_norm, eps, 1.0)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        logits = super().logits(hidden)
        cap = self.spec.final_soft_cap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)
