"""StarCoder 2: LayerNorm before each block, biases, rotation, a window in every layer where there is one."""

from __future__ import annotations

from dataclasses import replace

from baton.models.blocks import BlockDecoder, Blocks
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import read_attention, read_mlp, read_rotary, read_window
from baton.models.names import LLAMA
from baton.models.spec import ModelSpec

NAMES = replace(LLAMA, up=("mlp.c_fc",), down="mlp.c_proj")


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    fields = fields.known_as(rms_norm_eps="norm_epsilon")
    bias = fields.flag("use_bias", True)
    attention = replace(read_attention(fields, bias=bias), window=read_window(fields, None))
    mlp = read_mlp(fields, ("gelu_pytorch_tanh", "gelu"), gated=False, bias=bias)
    return read_rotary(fields, attention, mlp, eps=1e-5, tied=True, norm="layer", own=Blocks(NAMES))


FAMILY = Family("starcoder2", ("Starcoder2ForCausalLM",), read, BlockDecoder, eos=50256)
