"""What every model is made of: attention, feed-forward, LayerNorm, the output layer.

Plain objects that hold tensors, not `nn.Module`: a small model's step on a CPU is bound by Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from baton.kernels.kv_write import kv_write
from baton.kernels.rotary import rotary_kv_write
from baton.kernels.silu_mul import gelu_tanh_mul, silu_mul
from baton.models.dense import DENSE
from baton.models.linear import Linear
from baton.models.parameters import Parameters
from baton.models.spec import ModelSpec
from baton.models.step import Step


class NoOutput(Linear):
    """The output layer of a model whose hidden states are what is wanted."""

    def __call__(self, x: Tensor, step: Step | None = None) -> Tensor:
        return x

    def in_fp32(self, x: Tensor) -> Tensor:
        return x.float()


def output_layer(spec: ModelSpec, parameters: Parameters, embedding: Tensor, embedding_name: str) -> Linear:
    """Make the layer that computes logits, which is the embedding itself where the spec ties them.

    Of a model that pools it computes classes, or is none.
    """
    if spec.pooling is not None:
        parameters.unused.add("lm_head.weight")
        if not spec.pooling.is_classifier:
            parameters.unused.add("score.weight")
            return NoOutput()
        return parameters.linear([("score", len(spec.pooling.labels))], spec.hidden_size, form=DENSE)
    if spec.tie_word_embeddings:
        parameters.tied["lm_head.weight"] = embedding_name
        return parameters.linear_of(embedding)
    return parameters.linear([("lm_head", spec.vocab_size)], embedding.shape[1], form=DENSE)


class LayerNorm:
    """Normalize to mean 0 and variance 1, with weight and bias where the model has them."""

    def __init__(self, parameters: Parameters, name: str, size: int, eps: float, affine: bool = True) -> None:
        self.weight = parameters.tensor(f"{name}.weight", size, fill="ones") if affine else None
        self.bias = parameters.tensor(f"{name}.bias", size, fill="zeros") if affine else None
        self.shape = (size,)
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class Attention:
    """Project to queries, keys and values, put K and V into the cache, attend, project back.

    Args:
        qkv: modules of queries, keys and values; a fused one three times.
        norms: names of the RMSNorms of queries and keys, where the spec has them.
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
    ) -> None:
        spec, share = model.layers[layer].attention, parameters.share
        num_heads = len(share.of(spec.num_heads, f"{qkv[0]}: heads"))
        num_kv_heads = len(share.of(spec.num_kv_heads, f"{qkv[1]}: KV heads"))
        self.split = (num_heads, num_kv_heads, num_kv_heads)
        parts = zip(qkv, (spec.q_size, spec.kv_size, spec.kv_size), strict=True)
        self.qkv = parameters.linear(parts, model.hidden_size, bias=spec.qkv_bias, split="out")
        self.out = parameters.linear([(out, model.hidden_size)], spec.q_size, bias=spec.out_bias, split="in")
        q_norm, k_norm = (
            parameters.tensor(f"{name}.weight", spec.head_dim, fill="ones") if spec.qk_norm else None for name in norms
        )
        self.turn = partial(rotary_kv_write, q_norm=q_norm, k_norm=k_norm, eps=model.norm_eps)
        # [max_positions, 2, rotated / 2]; None for models that add positions to the embeddings
        self.rope_table = parameters.rotations(spec.rope, model.max_model_len) if spec.rope else None
        self.attend = partial(parameters.ops.attention, scale=spec.scale, window=spec.window, soft_cap=spec.soft_cap)
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
    """

    def __init__(self, parameters: Parameters, model: ModelSpec, layer: int, up: Sequence[str], down: str) -> None:
        spec = model.layers[layer].mlp
        self.up = parameters.linear([(name, spec.size) for name in up], model.hidden_size, bias=spec.bias, split="out")
        self.down = parameters.linear([(down, model.hidden_size)], spec.size, bias=spec.bias, split="in")
        self.act = (GATED_ACTIVATIONS if spec.gated else ACTIVATIONS)[spec.activation]

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        return self.down(self.act(self.up(x, step)), step)
