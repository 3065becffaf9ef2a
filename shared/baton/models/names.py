"""What a family's checkpoints call their modules, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Names:
    """What a checkpoint calls its modules: as Llama's do, where a family does not say otherwise.

    Those from `attention_norm` to `down` are within a layer. The name of a fused module stands for each of its parts.
    """

    embedding: str = "embed_tokens"
    layers: str = "layers"
    attention_norm: str = "input_layernorm"
    qkv: tuple[str, str, str] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    qk_norm: tuple[str, str] = ("self_attn.q_norm", "self_attn.k_norm")
    by_head: bool = False  # fused queries, keys and values lie by KV head: its queries, its key, its value
    sinks: str = "self_attn.sinks"
    out: str = "self_attn.o_proj"
    mlp_norm: str = "post_attention_layernorm"
    up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    final_norm: str = "norm"
    output: str = "lm_head"


LLAMA = Names()
