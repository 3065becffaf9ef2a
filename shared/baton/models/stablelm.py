"""StableLM: Llama with LayerNorm and a quarter of each head turning; the 12B has its blocks side by side and norms of heads."""

from __future__ import annotations

from dataclasses import replace

from baton.models.blocks import BlockDecoder, Blocks
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import read_attention, read_mlp, read_rotary
from baton.models.names import LLAMA
from baton.models.spec import ModelSpec

NAMES = replace(LLAMA, qk_norm=("self_attn.q_layernorm.norms.{head}", "self_attn.k_layernorm.norms.{head}"))


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    fields = fields.known_as(rms_norm_eps="layer_norm_eps").with_defaults(partial_rotary_factor=0.25)
    attention = replace(
        read_attention(fields, kv_heads_named=False),
        qkv_bias=fields.flag("use_qkv_bias", False),
        qk_norm="layer" if fields.flag("qk_layernorm", False) else None,
    )
    is_parallel = fields.flag("use_parallel_residual", False)
    blocks = Blocks(NAMES, parallel=is_parallel, shared_norm=is_parallel)
    return read_rotary(fields, attention, read_mlp(fields), eps=1e-5, norm="layer", own=blocks)


FAMILY = Family("stablelm", ("StableLmForCausalLM",), read, BlockDecoder, eos=0)
