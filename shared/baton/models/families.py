"""All families that Baton runs."""

from __future__ import annotations

from baton.models import (
    bert,
    gemma2,
    gpt2,
    llama,
    mistral,
    mixtral,
    modernbert,
    opt,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    roberta,
)
from baton.models.family import Family

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    mistral.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    mixtral.FAMILY,
    qwen3_moe.FAMILY,
    gemma2.FAMILY,
    phi3.FAMILY,
    gpt2.FAMILY,
    opt.FAMILY,
    bert.FAMILY,
    roberta.FAMILY,
    roberta.XLM_FAMILY,
    modernbert.FAMILY,
)
BY_NAME = {family.name: family for family in FAMILIES}
BY_ARCHITECTURE = {architecture: family for family in FAMILIES for architecture in family.architectures}
