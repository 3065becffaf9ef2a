"""OPT: learned positions (the first in row 2 of their table), LayerNorm before each block or after it (350m)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from baton.models.causal_lm import CausalLM
from baton.models.layers import MLP, Attention, LayerNorm, Linear, Parameters, output_layer
from baton.models.spec import ModelSpec
from baton.models.step import Step

POSITION_OFFSET = 2


class OPTLayer:
    """Attention and feed-forward around a residual stream, normalized before or after each."""

    def __init__(self, spec: ModelSpec, parameters: Parameters, layer: int) -> None:
        name, size, bias = f"layers.{layer}", spec.hidden_size, spec.qkv_bias

        def norm(which: str) -> LayerNorm:
            return LayerNorm(parameters, f"{name}.{which}_layer_norm", size, spec.norm_eps, spec.norm_affine)

        def linear(num_inputs: int, num_outputs: int, *which: str) -> Linear:
            return parameters.linear([(f"{name}.{part}", num_outputs) for part in which], num_inputs, bias=bias)

        qkv = linear(size, size, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        out = linear(size, size, "self_attn.out_proj")
        self.attention = Attention(spec, layer, qkv, out, parameters.ops.attention)
        inner = spec.intermediate_size
        self.mlp = MLP(linear(size, inner, "fc1"), linear(inner, size, "fc2"), spec.activation)
        self.attention_norm = norm("self_attn")
        self.mlp_norm = norm("final")
        self.norm_first = spec.norm_first

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), step)
            return x + self.mlp(self.mlp_norm(x))
        x = self.attention_norm(x + self.attention(x, step))
        return self.mlp_norm(x + self.mlp(x))


class OPT(CausalLM):
    """A decoder of the OPT kind; where its embeddings are narrower than its layers, matrices lie between."""

    def _build(self, spec: ModelSpec, parameters: Parameters) -> None:
        width, size = spec.embedding_size, spec.hidden_size
        self.embedding = parameters.table("embed_tokens.weight", spec.vocab_size, width)
        table = parameters.table("embed_positions.weight", spec.num_positions + POSITION_OFFSET, size)
        self.position_embedding = table[POSITION_OFFSET:]
        self.project_in = self.project_out = None
        if width != size:
            self.project_in = parameters.linear([("project_in", size)], width, bias=False)
            self.project_out = parameters.linear([("project_out", width)], size, bias=False)
        self.layers = [OPTLayer(spec, parameters, layer) for layer in range(spec.num_layers)]
        self.final_norm = None
        if spec.final_norm:
            self.final_norm = LayerNorm(parameters, "final_layer_norm", size, spec.norm_eps, spec.norm_affine)
        self.lm_head = output_layer(spec, parameters, self.embedding, "embed_tokens.weight")

    def forward(self, step: Step) -> Tensor:
        x = F.embedding(step.token_ids, self.embedding)
        if self.project_in is not None:
            x = self.project_in(x)
        x = x + F.embedding(step.positions, self.position_embedding)  # [tokens, hidden_size]
        for layer in self.layers:
            x = layer(x, step)
        return x if self.final_norm is None else self.final_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        if self.project_out is not None:
            hidden = self.project_out(hidden)
        return self.lm_head.in_fp32(hidden)
