"""ModernBERT: rotary positions, LayerNorm without bias before each block, gated feed-forward, windows in two of three layers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from baton.models.encoder import Encoder, Pass, attend, linear_of
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import plain_attention
from baton.models.layers import ACTIVATIONS, LayerNorm
from baton.models.parameters import Parameters
from baton.models.spec import LayerSpec, MLPSpec, ModelSpec, RopeSpec

Norm = partial(LayerNorm, bias=False)


class ModernLayer:
    """One layer."""

    def __init__(self, parameters: Parameters, spec: ModelSpec, layer: int) -> None:
        name, size, eps = f"layers.{layer}", spec.hidden_size, spec.norm_eps
        self.attention, mlp = spec.layers[layer].attention, spec.layers[layer].mlp
        assert isinstance(mlp, MLPSpec)
        self.norm = (
            Norm(parameters, f"{name}.attn_norm", size, eps) if layer else None
        )  # the embedding's own comes before
        self.qkv = linear_of(parameters, f"{name}.attn.Wqkv", size, 3 * size, bias=self.attention.qkv_bias)
        self.out = linear_of(parameters, f"{name}.attn.Wo", size, size, bias=self.attention.out_bias)
        self.mlp_norm = Norm(parameters, f"{name}.mlp_norm", size, eps)
        self.up = linear_of(parameters, f"{name}.mlp.Wi", size, 2 * mlp.size, bias=mlp.bias)
        self.act = ACTIVATIONS[mlp.activation]
        self.down = linear_of(parameters, f"{name}.mlp.Wo", mlp.size, size, bias=mlp.bias)
        assert self.attention.rope is not None
        self.rotations = parameters.rotations(self.attention.rope, spec.max_model_len)

    def __call__(self, x: Tensor, laid: Pass) -> Tensor:
        normed = x if self.norm is None else self.norm(x)
        x = x + self.out(attend(self.qkv(normed), self.attention, laid.groups, self.rotations[laid.positions]))
        given, gate = self.up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down((self.act(given) * gate).contiguous())


class ModernBert(Encoder):
    """An encoder of ModernBERT's kind."""

    def __init__(self, spec: ModelSpec, parameters: Parameters) -> None:
        super().__init__(spec, parameters)
        size, eps = spec.hidden_size, spec.norm_eps
        self.words = parameters.tensor("embeddings.tok_embeddings.weight", spec.vocab_size, size)
        self.norm = Norm(parameters, "embeddings.norm", size, eps)
        self.layers = [ModernLayer(parameters, spec, layer) for layer in range(spec.num_layers)]
        self.final_norm = Norm(parameters, "final_norm", size, eps)
        parameters.unused |= {"decoder.", "head.", "classifier."}
        if self.num_classes:
            parameters.unused -= {"head.", "classifier."}
            self.dense = linear_of(parameters, "head.dense", size, size, bias=False)
            self.head_norm = Norm(parameters, "head.norm", size, eps)
            self.classifier = linear_of(parameters, "classifier", size, self.num_classes)

    def encode(self, laid: Pass) -> Tensor:
        x = self.norm(F.embedding(laid.token_ids, self.words))
        for layer in self.layers:
            x = layer(x, laid)
        return self.final_norm(x)

    def classes(self, hidden: Tensor) -> Tensor:
        return self.classifier(self.head_norm(F.gelu(self.dense(hidden))))


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    size, raw = fields.integer("hidden_size"), fields.raw
    for name in ("norm_bias", "classifier_bias"):
        fields.must_be_off(name)
    bias = fields.flag("attention_bias", False)
    attention = plain_attention(fields, fields.integer("num_attention_heads"), size, bias=bias)
    mlp = MLPSpec(
        fields.integer("intermediate_size"),
        fields.choice("hidden_activation", allowed=("gelu", "gelu_new", "silu", "relu"), default="gelu"),
        bias=fields.flag("mlp_bias", False),
    )
    fields.choice("classifier_activation", allowed=("gelu",), default="gelu")
    num_layers, max_len = fields.integer("num_hidden_layers"), fields.integer("max_position_embeddings")
    every = fields.integer("global_attn_every_n_layers", default=3)
    kinds = raw.get("layer_types") or [
        "sliding_attention" if layer % every else "full_attention" for layer in range(num_layers)
    ]
    if len(kinds) != num_layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise fields.refusal("layer_types", kinds, f"it must list {num_layers} of sliding_attention, full_attention")
    by_kind = raw.get("rope_parameters") or {}
    whole = replace(
        attention, rope=_rope(fields, by_kind, "full_attention", "global_rope_theta", 160000.0, attention.head_dim)
    )
    near = replace(
        attention,
        rope=_rope(fields, by_kind, "sliding_attention", "local_rope_theta", 10000.0, attention.head_dim),
        window=fields.integer("local_attention", default=128) // 2,
    )
    return ModelSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=size,
        layers=tuple(LayerSpec(near if kind == "sliding_attention" else whole, mlp) for kind in kinds),
        max_model_len=max_len,
        norm_eps=fields.number("norm_eps", 1e-5),
        tie_word_embeddings=True,
        initializer_range=fields.number("initializer_range", 0.02),
        norm="layer",
        is_encoder=True,
    )


def _rope(fields: Fields, by_kind: object, kind: str, name: str, default: float, head_dim: int) -> RopeSpec:
    theta = fields.number(name, default)
    named = by_kind.get(kind) if isinstance(by_kind, dict) else None
    if isinstance(named, dict):
        if named.get("rope_type", "default") != "default":
            raise fields.refusal("rope_parameters", named, "Baton runs this family with rope_type=default")
        theta = fields.as_number("rope_theta", named.get("rope_theta", theta))
    powers = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = tuple((1.0 / theta**powers).tolist())
    return RopeSpec(head_dim, fields.integer("max_position_embeddings"), frequencies)


FAMILY = Family(
    "modernbert", ("ModernBertModel", "ModernBertForSequenceClassification", "ModernBertForMaskedLM"), read, ModernBert
)
