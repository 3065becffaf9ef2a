"""InternLM 2, 2.5 and 3: Llama; of 2 the checkpoints have queries, keys and values fused by KV head, and names of their own."""

from __future__ import annotations

from dataclasses import replace

from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import read_attention, read_mlp, read_rotary
from baton.models.llama import Llama
from baton.models.names import Names
from baton.models.spec import ModelSpec


class InternLM2(Llama):
    """A decoder of the InternLM 2 kind."""

    NAMES = Names(
        embedding="tok_embeddings",
        attention_norm="attention_norm",
        qkv=("attention.wqkv",) * 3,
        by_head=True,
        out="attention.wo",
        mlp_norm="ffn_norm",
        up=("feed_forward.w1", "feed_forward.w3"),
        down="feed_forward.w2",
        output="output",
    )


def read(fields: Fields) -> ModelSpec:
    """Read config.json of InternLM 2."""
    attention = read_attention(fields, kv_heads_named=False, bias=fields.flag("bias", False))
    return read_rotary(fields, attention, read_mlp(fields))


def read_3(fields: Fields) -> ModelSpec:
    """Read config.json of InternLM 3."""
    fields = fields.known_as(attention_bias="qkv_bias", mlp_bias="bias").with_defaults(num_key_value_heads=2)
    bias = fields.flag("mlp_bias", False)
    attention = replace(read_attention(fields, head_dim=128, bias=bias), qkv_bias=fields.flag("attention_bias", False))
    return read_rotary(fields, attention, read_mlp(fields, bias=bias), eps=1e-5)


def _code(version: int) -> frozenset[str]:
    """The code that InternLM publishes with the checkpoints of a version."""
    file, name = f"internlm{version}", f"InternLM{version}"
    return frozenset(
        {f"configuration_{file}.{name}Config", f"modeling_{file}.{name}ForCausalLM", f"modeling_{file}.{name}Model"}
    )


FAMILY = Family("internlm2", ("InternLM2ForCausalLM",), read, InternLM2, eos=2, harmless_code=_code(2))
INTERNLM3_FAMILY = Family("internlm3", ("InternLM3ForCausalLM",), read_3, Llama, eos=2, harmless_code=_code(3))
