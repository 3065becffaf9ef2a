"""What every model is made of: attention, feed-forward, LayerNorm, the output layer.

Plain objects that hold tensors, not `nn.Module`: a small model's step on a CPU is bound by Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from baton.errors import ModelLoadError
from baton.kernels.kv_write import kv_write
from baton.kernels.rms_norm import rms_norm
from baton.kernels.rotary import rotary_kv_write
from baton.kernels.silu_mul import gelu_tanh_mul, silu_mul
from baton.models.dense import DENSE
from baton.models.linear import Fill, Linear
from baton.models.names import Names
from baton.models.parameters import Parameters
from baton.models.spec import AttentionSpec, MLPSpec, ModelSpec
from baton.models.step import Step


class NoOutput(Linear):
    """The output layer of a model whose hidden states are what is wanted."""

    def __call__(self, x: Tensor, step: Step | None = None) -> Tensor:
        return x

    def in_fp32(self, x: Tensor) -> Tensor:
        return x.float()


class Scaled(Linear):
    """A linear layer whose results are multiplied."""

    def __init__(self, linear: Linear, scale: float) -> None:
        self._linear = linear
        self._scale = scale

    def __call__(self, x: Tensor, step: Step | None = None) -> Tensor:
        return self._linear(x, step) * self._scale

    def in_fp32(self, x: Tensor) -> Tensor:
        return self._linear.in_fp32(x) * self._scale


def scaled(linear: Linear, scale: float) -> Linear:
    """Multiply what a linear layer gives, if by anything."""
    return linear if scale == 1.0 else Scaled(linear, scale)


def output_layer(
    spec: ModelSpec,
    parameters: Parameters,
    embedding: Tensor,
    embedding_name: str,
    name: str = "lm_head",
    bias: bool = False,
) -> Linear:
    """Make the layer that computes logits, which is the embedding itself where the spec ties them.

    Of a model that pools it computes classes, or is none.
    """
    if spec.pooling is not None:
        parameters.unused.add(f"{name}.")
        if not spec.pooling.is_classifier:
            parameters.unused.add("score.weight")
            return NoOutput()
        return parameters.linear([("score", len(spec.pooling.labels))], spec.hidden_size, form=DENSE)
    if spec.tie_word_embeddings:
        parameters.tied[f"{name}.weight"] = embedding_name
        return scaled(parameters.linear_of(embedding), spec.logit_scale)
    linear = parameters.linear([(name, spec.vocab_size)], embedding.shape[1], bias=bias, form=DENSE)
    return scaled(linear, spec.logit_scale)


class LayerNorm:
    """Normalize to mean 0 and variance 1, with weight and bias where the model has them."""

    def __init__(
        self, parameters: Parameters, name: str, size: int, eps: float, weight: bool = True, bias: bool = True
    ) -> None:
        self.weight = parameters.tensor(f"{name}.weight", size, fill="ones") if weight else None
        self.bias = parameters.tensor(f"{name}.bias", size, fill="zeros") if bias else None
        self.shape = (size,)
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


Turn = Callable[..., Tensor]
"""Normalize and rotate queries and keys and write keys and values to the cache, as `rotary_kv_write` says."""


def turning(parameters: Parameters, model: ModelSpec, spec: AttentionSpec, norms: tuple[str, str]) -> Turn:
    """Make what stands between a projection and attention, with the norms that are named so."""
    turn = partial(rotary_kv_write, interleaved=spec.rope is not None and spec.rope.interleaved)
    if spec.qk_norm is None:
        return turn
    fill: Fill = "zeros" if model.norm_offset else "ones"
    if spec.qk_norm == "head":
        q_norm, k_norm = (parameters.tensor(f"{name}.weight", spec.head_dim, fill=fill) for name in norms)
        return partial(turn, q_norm=q_norm, k_norm=k_norm, eps=model.norm_eps, norm_offset=model.norm_offset)
    kind = HeadLayerNorm if spec.qk_norm == "layer" else WidthNorm
    num_heads = (spec.num_heads, spec.num_kv_heads)
    of_q, of_k = (
        kind(parameters, name, num, spec.head_dim, model.norm_eps) for name, num in zip(norms, num_heads, strict=True)
    )
    return lambda q, k, *rest: turn(of_q(q), of_k(k), *rest)


class WidthNorm:
    """RMSNorm of all heads of a token together."""

    def __init__(self, parameters: Parameters, name: str, num_heads: int, head_dim: int, eps: float) -> None:
        if parameters.share.size > 1:
            raise ModelLoadError(f"{name} normalizes all heads together, which ranks that share them cannot.")
        self.weight = parameters.tensor(f"{name}.weight", num_heads * head_dim, fill="ones")
        self.eps = eps

    def __call__(self, heads: Tensor) -> Tensor:
        return rms_norm(heads.flatten(1), self.weight, self.eps).view(heads.shape)


class HeadLayerNorm:
    """LayerNorm of each head, with a weight for each and no bias."""

    def __init__(self, parameters: Parameters, name: str, num_heads: int, head_dim: int, eps: float) -> None:
        if "{head}" in name:
            names = [name.format(head=head) for head in range(num_heads)]
            weight = parameters.stack(names, head_dim, fill="ones")
        else:
            weight = parameters.tensor(f"{name}.weight", num_heads, head_dim, fill="ones")
        held = parameters.share.of(num_heads, f"{name}: heads")
        self.weight = weight[held.start : held.stop]  # [heads, head_dim]
        self.eps = eps

    def __call__(self, heads: Tensor) -> Tensor:
        normed = F.layer_norm(heads.float(), heads.shape[-1:], eps=self.eps) * self.weight
        return normed.to(heads.dtype)


class Attention:
    """Project to queries, keys and values, put K and V into the cache, attend, project back.

    Args:
        qkv: modules of queries, keys and values; a fused one three times.
        norms: names of the norms of queries and keys, where the spec has them; one with `{head}` names each head's.
        sinks_name: of the tensor of sinks, where the spec has them.
        by_head: a fused module has each KV head's queries, key and value, then the next one's.
    """

    def __init__(
        self,
        parameters: Parameters,
        model: ModelSpec,
        layer: int,
        qkv: Sequence[str],
        out: str,
        *,
        norms: tuple[str, str] = ("", ""),
        by_head: bool = False,
        sinks_name: str = "",
    ) -> None:
        spec, share = model.layers[layer].attention, parameters.share
        heads = share.of(spec.num_heads, f"{qkv[0]}: heads")
        num_heads = len(heads)
        num_kv_heads = len(share.of(spec.num_kv_heads, f"{qkv[1]}: KV heads"))
        self.split = (num_heads, num_kv_heads, num_kv_heads)
        parts = zip(qkv, (spec.q_size, spec.kv_size, spec.kv_size), strict=True)
        groups = spec.num_kv_heads if by_head else 1
        self.qkv = parameters.linear(parts, model.hidden_size, bias=spec.qkv_bias, split="out", groups=groups)
        linear = parameters.linear([(out, model.hidden_size)], spec.q_size, bias=spec.out_bias, split="in")
        self.out = scaled(linear, model.residual_scale)
        self.turn = turning(parameters, model, spec, norms)
        # [max_positions, 2, rotated / 2]; None for models that add positions to the embeddings
        self.rope_table = parameters.rotations(spec.rope, model.max_model_len) if spec.rope else None
        self.attend = partial(parameters.ops.attention, scale=spec.scale, window=spec.window, soft_cap=spec.soft_cap)
        if spec.slopes:
            slopes = torch.tensor(spec.slopes[heads.start : heads.stop], dtype=torch.float32, device=parameters.device)
            self.attend = partial(self.attend, slopes=slopes)
        if spec.has_sinks:
            sinks = parameters.tensor(sinks_name, spec.num_heads, fill="zeros")[heads.start : heads.stop]
            self.attend = partial(self.attend, sinks=sinks)
        self.layer = layer
        self.head_dim = spec.head_dim

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        cache, batch = step.caches[self.layer], step.batches[self.layer]
        qkv = self.qkv(x, step).view(x.shape[0], -1, self.head_dim)  # [tokens, heads + 2 * kv_heads, head_dim]
        q, k, v = qkv.split_with_sizes(self.split, 1)
        if self.rope_table is None:
            kv_write(k, v, cache, batch.slots)
        else:
            q = self.turn(q, k, v, self.rope_table, step.positions, cache, batch.slots)
        attended = self.attend(q, cache, batch)  # [tokens, heads, head_dim]
        return self.out(attended.reshape(x.shape[0], -1), step)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "silu": F.silu,
}
# act(gate) * up, of [tokens, 2 * size]
GATED_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu_mul,
    "swish": silu_mul,
    "gelu_pytorch_tanh": gelu_tanh_mul,
}


class MLP:
    """down(act(up(x))), or with a gate down(act(gate(x)) * up(x)), gate and up in one matrix.

    Args:
        up: modules of gate and up, or of up alone; a fused one twice.
        spec: None: the layer's.
    """

    def __init__(
        self,
        parameters: Parameters,
        model: ModelSpec,
        layer: int,
        up: Sequence[str],
        down: str,
        spec: MLPSpec | None = None,
    ) -> None:
        of_layer = spec or model.layers[layer].mlp
        assert isinstance(of_layer, MLPSpec)
        spec = of_layer
        self.up = parameters.linear([(name, spec.size) for name in up], model.hidden_size, bias=spec.bias, split="out")
        linear = parameters.linear([(down, model.hidden_size)], spec.size, bias=spec.bias, split="in")
        self.down = scaled(linear, model.residual_scale)
        self.act = (GATED_ACTIVATIONS if spec.gated else ACTIVATIONS)[spec.activation]

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        return self.down(self.act(self.up(x, step)), step)


def attention_of(parameters: Parameters, model: ModelSpec, layer: int, names: Names) -> Attention:
    """Make a layer's attention of modules with these names."""
    name = f"{names.layers}.{layer}"
    q_norm, k_norm = names.qk_norm
    return Attention(
        parameters,
        model,
        layer,
        [f"{name}.{part}" for part in names.qkv],
        f"{name}.{names.out}",
        norms=(f"{name}.{q_norm}", f"{name}.{k_norm}"),
        by_head=names.by_head,
        sinks_name=f"{name}.{names.sinks}",
    )


def mlp_of(parameters: Parameters, model: ModelSpec, layer: int, names: Names) -> MLP:
    """Make a layer's feed-forward of modules with these names."""
    name = f"{names.layers}.{layer}"
    return MLP(parameters, model, layer, [f"{name}.{part}" for part in names.up], f"{name}.{names.down}")
