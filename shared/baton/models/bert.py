"""BERT: learned positions, LayerNorm after each block, biases everywhere; MiniLM, BGE, E5 and GTE are of its kind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from baton.models.encoder import Encoder, Pass, attend, linear_of
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import plain_attention
from baton.models.layers import ACTIVATIONS, LayerNorm
from baton.models.linear import Linear
from baton.models.parameters import Parameters
from baton.models.spec import LayerSpec, MLPSpec, ModelSpec


@dataclass(frozen=True, slots=True)
class BertOwn:
    """What only this family's file reads."""

    num_types: int
    first_position: int = 0
    """Row of the first token's position."""
    head: str = "pooler"
    """pooler: tanh of a dense layer before the classes, which lie in one module; else in the classifier's own two."""


class BertLayer:
    """One layer."""

    def __init__(self, parameters: Parameters, spec: ModelSpec, layer: int) -> None:
        name, size, mlp = f"encoder.layer.{layer}", spec.hidden_size, spec.layers[layer].mlp
        parts = [(f"{name}.attention.self.{part}", size) for part in ("query", "key", "value")]
        assert isinstance(mlp, MLPSpec)
        self.attention = spec.layers[layer].attention
        self.qkv = parameters.linear(parts, size, bias=True)
        self.out = linear_of(parameters, f"{name}.attention.output.dense", size, size)
        self.out_norm = LayerNorm(parameters, f"{name}.attention.output.LayerNorm", size, spec.norm_eps)
        self.up = linear_of(parameters, f"{name}.intermediate.dense", size, mlp.size)
        self.act = ACTIVATIONS[mlp.activation]
        self.down = linear_of(parameters, f"{name}.output.dense", mlp.size, size)
        self.down_norm = LayerNorm(parameters, f"{name}.output.LayerNorm", size, spec.norm_eps)

    def __call__(self, x: Tensor, laid: Pass) -> Tensor:
        x = self.out_norm(self.out(attend(self.qkv(x), self.attention, laid.groups)).add_(x))
        return self.down_norm(self.down(self.act(self.up(x))).add_(x))


class Bert(Encoder):
    """An encoder of BERT's kind, as its spec says."""

    def __init__(self, spec: ModelSpec, parameters: Parameters) -> None:
        super().__init__(spec, parameters)
        size, own = spec.hidden_size, self.own
        table = "embeddings.{}_embeddings.weight"
        self.words = parameters.tensor(table.format("word"), spec.vocab_size, size)
        self.positions = parameters.tensor(table.format("position"), spec.num_positions, size)
        self.types = parameters.tensor(table.format("token_type"), own.num_types, size)
        self.norm = LayerNorm(parameters, "embeddings.LayerNorm", size, spec.norm_eps)
        self.layers = [BertLayer(parameters, spec, layer) for layer in range(spec.num_layers)]
        parameters.unused |= {"cls.", "lm_head.", "classifier.", "pooler."}
        if self.num_classes:
            parameters.unused -= {"classifier.", "pooler."} if own.head == "pooler" else {"classifier."}
            dense, classes = ("pooler.dense", "classifier")
            if own.head != "pooler":
                dense, classes = ("classifier.dense", "classifier.out_proj")
            self.dense: Linear = linear_of(parameters, dense, size, size)
            self.classifier: Linear = linear_of(parameters, classes, size, self.num_classes)

    def encode(self, laid: Pass) -> Tensor:
        x = F.embedding(laid.token_ids, self.words)
        x += F.embedding(laid.positions + self.own.first_position, self.positions)
        # without a second type, all tokens are of the first
        x += self.types[0] if laid.second is None or self.own.num_types < 2 else F.embedding(laid.second, self.types)
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, laid)
        return x

    def classes(self, hidden: Tensor) -> Tensor:
        return self.classifier(torch.tanh(self.dense(hidden)))


def read_bert(fields: Fields, own: BertOwn) -> ModelSpec:
    """Read config.json, of BERT or of a family that varies it."""
    size = fields.integer("hidden_size")
    attention = plain_attention(fields, fields.integer("num_attention_heads"), size, bias=True)
    kinds = ("gelu", "relu", "gelu_new", "gelu_pytorch_tanh", "silu")
    mlp = MLPSpec(
        fields.integer("intermediate_size"),
        fields.choice("hidden_act", allowed=kinds, default="gelu"),
        gated=False,
        bias=True,
    )
    fields.choice("position_embedding_type", allowed=("absolute",), default="absolute")
    fields.must_be_off("is_decoder")
    num_positions = fields.integer("max_position_embeddings")
    return ModelSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=size,
        layers=(LayerSpec(attention, mlp),) * fields.integer("num_hidden_layers"),
        max_model_len=num_positions - own.first_position,
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        tie_word_embeddings=True,
        initializer_range=fields.number("initializer_range", 0.02),
        num_positions=num_positions,
        own=own,
        norm="layer",
        is_encoder=True,
    )


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    return read_bert(fields, BertOwn(fields.integer("type_vocab_size", default=2)))


FAMILY = Family("bert", ("BertModel", "BertForSequenceClassification", "BertForMaskedLM"), read, Bert)
