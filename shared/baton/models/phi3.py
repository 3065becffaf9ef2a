"""Phi-3 and Phi-4-mini: Llama with LongRoPE, whose checkpoints have q, k, v and gate, up already fused."""

from __future__ import annotations

from baton.models.llama import Llama


class Phi3(Llama):
    """A decoder of the Phi-3 kind."""

    def _qkv_parts(self, name: str) -> list[tuple[str, int]]:
        spec = self.spec
        return [(f"{name}.qkv_proj", (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim)]

    def _gate_up_parts(self, name: str) -> list[tuple[str, int]]:
        return [(f"{name}.gate_up_proj", 2 * self.spec.intermediate_size)]
