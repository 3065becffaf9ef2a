"""All families that Baton runs."""

from __future__ import annotations

from baton.models import (
    bert,
    gemma2,
    gemma3,
    glm,
    gpt2,
    granite,
    llama,
    mistral,
    mixtral,
    modernbert,
    olmo2,
    opt,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    roberta,
    smollm3,
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
    gemma3.FAMILY,
    gemma3.WITH_IMAGES,
    granite.FAMILY,
    olmo2.FAMILY,
    olmo2.OLMO3_FAMILY,
    smollm3.FAMILY,
    glm.FAMILY,
    glm.GLM4_FAMILY,
    bert.FAMILY,
    roberta.FAMILY,
    roberta.XLM_FAMILY,
    modernbert.FAMILY,
)
BY_NAME = {family.name: family for family in FAMILIES}
BY_ARCHITECTURE = {architecture: family for family in FAMILIES for architecture in family.architectures}
