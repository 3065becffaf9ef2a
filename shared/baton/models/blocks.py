"""The decoder with LayerNorm: blocks one after the other, or attention and feed-forward side by side.

x += attention(norm(x)); x += mlp(norm(x)), or in parallel x += attention(norm(x)) + mlp(norm(x)), where both may have one
norm. What a family's checkpoints call these is a value, so that a family is a name and how its config.json is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from baton.models.causal_lm import CausalLM
from baton.models.layers import MLP, LayerNorm, attention_of, mlp_of, output_layer
from baton.models.moe import ExpertNames, MoE
from baton.models.names import LLAMA, Names
from baton.models.parameters import Parameters
from baton.models.spec import ModelSpec
from baton.models.step import Step


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a model's blocks stand to one another."""

    names: Names = LLAMA
    parallel: bool = False
    shared_norm: bool = False  # of parallel blocks: one norm for both
    norm_bias: bool = True
    output_bias: bool = False
    experts: ExpertNames | None = None  # every layer has them


class BlockLayer:
    """One layer: its blocks one after the other."""

    def __init__(self, parameters: Parameters, spec: ModelSpec, own: Blocks, layer: int) -> None:
        names, name = own.names, f"{own.names.layers}.{layer}"
        norm = {"size": spec.hidden_size, "eps": spec.norm_eps, "bias": own.norm_bias}
        self.attention_norm = LayerNorm(parameters, f"{name}.{names.attention_norm}", **norm)  # type: ignore[arg-type]
        self.mlp_norm = self.attention_norm
        if not own.shared_norm:
            self.mlp_norm = LayerNorm(parameters, f"{name}.{names.mlp_norm}", **norm)  # type: ignore[arg-type]
        self.attention = attention_of(parameters, spec, layer, names)
        self.mlp: MLP | MoE
        if own.experts is None:
            self.mlp = mlp_of(parameters, spec, layer, names)
        else:
            self.mlp = MoE(parameters, spec, layer, own.experts)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attention(self.attention_norm(x), step)
        return x + self.mlp(self.mlp_norm(x), step)


class ParallelLayer(BlockLayer):
    """One layer: its blocks side by side, each with a norm."""

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        return x + self.attention(self.attention_norm(x), step) + self.mlp(self.mlp_norm(x), step)


class SharedNormLayer(BlockLayer):
    """One layer: its blocks side by side, with one norm."""

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        normed = self.attention_norm(x)
        return x + self.attention(normed, step) + self.mlp(normed, step)


class BlockDecoder(CausalLM):
    """A decoder of such blocks, as its spec's `own` says."""

    own: Blocks

    def __init__(self, spec: ModelSpec, parameters: Parameters) -> None:
        super().__init__(spec, parameters)
        own, names = self.own, self.own.names
        embedding = f"{names.embedding}.weight"
        self.embedding = parameters.tensor(embedding, spec.vocab_size, spec.hidden_size)
        kind = BlockLayer if not own.parallel else SharedNormLayer if own.shared_norm else ParallelLayer
        self.layers = [kind(parameters, spec, own, layer) for layer in range(spec.num_layers)]
        self.final_norm = LayerNorm(parameters, names.final_norm, spec.hidden_size, spec.norm_eps, bias=own.norm_bias)
        self.lm_head = output_layer(spec, parameters, self.embedding, embedding, names.output, own.output_bias)

    def embed(self, step: Step) -> Tensor:
        """Look the tokens up: [tokens, hidden_size]."""
        return F.embedding(step.token_ids, self.embedding)

    def forward(self, step: Step) -> Tensor:
        x = self.embed(step)
        for layer in self.layers:
            x = layer(x, step)  # [tokens, hidden_size]
        return self.final_norm(x)
