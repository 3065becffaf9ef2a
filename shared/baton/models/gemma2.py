"""Gemma 2: a norm before and after each block, norms' weights as 1 + w, soft caps, a window in every other layer.

Embeddings are scaled by sqrt(hidden_size).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import read_attention, read_mlp, read_rotary, read_windows
from baton.models.parameters import Parameters
from baton.models.sandwich import Sandwich
from baton.models.spec import ModelSpec

ACTIVATIONS = ("gelu_pytorch_tanh",)


class Gemma(Sandwich):
    """A decoder of the kind of Gemma 2 and 3."""

    own: float | None  # soft cap of the logits

    def __init__(self, spec: ModelSpec, parameters: Parameters) -> None:
        super().__init__(spec, parameters)
        # Rounded to the weights' dtype as the model was trained: sqrt(3072) = 55.43 is 55.5 in bf16.
        self.embedding_scale = float(torch.tensor(spec.embedding_scale, dtype=parameters.dtype))

    def logits(self, hidden: Tensor) -> Tensor:
        logits, cap = super().logits(hidden), self.own
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    fields.must_be_off("use_bidirectional_attention")
    attention = replace(
        read_attention(fields, head_dim=256, bias=fields.flag("attention_bias", False)),
        scale=fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
        soft_cap=soft_cap(fields, "attn_logit_softcapping", 50.0),
    )
    windows = read_windows(fields, lambda layer: layer % 2 == 0)
    return read_rotary(
        fields,
        attention,
        read_mlp(fields, ACTIVATIONS),
        windows,
        tied=True,
        norm_offset=1.0,
        embedding_scale=fields.integer("hidden_size") ** 0.5,
        own=soft_cap(fields, "final_logit_softcapping", 30.0),
    )


def soft_cap(fields: Fields, name: str, default: float | None) -> float | None:
    """Read a cap: absent is the default, null is none."""
    return fields.optional_number(name) if name in fields.raw else default


FAMILY = Family("gemma2", ("Gemma2ForCausalLM",), read, Gemma, eos=1)
