"""The decoder that normalizes before and after each block: x += norm(attention(norm(x))); x += norm(mlp(norm(x)))."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from baton.kernels.rms_norm import add_rms_norm, rms_norm
from baton.models.llama import Llama, LlamaLayer
from baton.models.step import Step


@dataclass(slots=True)
class SandwichLayer(LlamaLayer):
    """A layer with norms after its blocks too."""

    attention_out_norm: Tensor
    mlp_out_norm: Tensor


class Sandwich(Llama):
    """A decoder with norms on both sides of each block."""

    # Modules of a layer: the norm after attention, before the feed-forward, after it.
    NORMS = ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    layers: list[SandwichLayer]  # type: ignore[assignment]

    def _layer(self, layer: int, next_norm: Tensor) -> SandwichLayer:
        attention, mlp = self._attention(layer), self._mlp(layer)
        after_attention, before, after = (self._norm(f"layers.{layer}.{name}") for name in self.NORMS)
        return SandwichLayer(attention, mlp, before, next_norm, after_attention, after)

    def forward(self, step: Step) -> Tensor:
        eps, offset = self.spec.norm_eps, self.spec.norm_offset
        residual = self.embed(step)
        x = rms_norm(residual, self.first_norm, eps, offset)
        for layer in self.layers:
            x = layer.attention(x, step)
            x = rms_norm(x, layer.attention_out_norm, eps, offset)
            x, residual = add_rms_norm(x, residual, layer.mlp_norm, eps, offset)
            x = layer.mlp(x, step)
            x = rms_norm(x, layer.mlp_out_norm, eps, offset)
            x, residual = add_rms_norm(x, residual, layer.next_norm, eps, offset)
        return x
