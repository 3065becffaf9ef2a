"""What every model is made of: parameters with their places in a checkpoint, linear layers, attention,
feed-forward.

Plain objects that hold tensors, not `nn.Module`: a small model's step on a CPU is bound by Python, and a
parameter here is born on its device in its dtype and never moves. A model is built twice: on the meta device,
to check a checkpoint and to count bytes before memory is taken, and then for real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from baton.kernels.attention import paged_attention
from baton.kernels.attention_batch import AttentionBatch
from baton.kernels.invariant_attention import invariant_attention
from baton.kernels.invariant_linear import invariant_linear
from baton.kernels.kv_write import kv_write
from baton.kernels.linear import linear, linear_packed, pack_weight, packs
from baton.kernels.rotary import rotary_kv_write
from baton.kernels.silu_mul import gelu_tanh_mul, silu_mul
from baton.models.spec import ModelSpec
from baton.models.step import Step

Fill = Literal["normal", "zeros", "ones"]


class AttentionOp(Protocol):
    """Attend over the cache, as `paged_attention` says."""

    def __call__(
        self,
        q: Tensor,
        kv_layer: Tensor,
        batch: AttentionBatch,
        *,
        scale: float,
        window: int | None,
        soft_cap: float | None,
    ) -> Tensor: ...


class LinearOp(Protocol):
    """Multiply by a weight [outputs, inputs] and add a bias; the result has x's type unless told."""

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype | None = None, /
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Ops:
    """The operations that sum over many terms and have two forms; all others treat a row the same in any batch."""

    linear: LinearOp
    attention: AttentionOp


FASTEST = Ops(linear, paged_attention)
INVARIANT = Ops(invariant_linear, invariant_attention)
"""On a GPU: a token's bits do not depend on what else is computed with it."""


class Parameters:
    """All tensors of a model, and where each tensor of a checkpoint goes.

    Checkpoint names are without the prefixes (`model.`, `transformer.`, ...) that differ between versions of
    the same checkpoint.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, ops: Ops = FASTEST) -> None:
        self.dtype = dtype
        self.device = device
        self.ops = ops
        self.targets: dict[str, Tensor] = {}  # checkpoint name -> a view of a parameter, in the checkpoint's shape
        self.tied: dict[str, str] = {}  # checkpoint name that may repeat another one's tensor -> that one
        self.fills: list[tuple[Tensor, Fill]] = []  # each parameter once, with its dummy value
        self._linears: list[Linear] = []
        self._nbytes: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes on the device, of all parameters."""
        if self._nbytes is not None:
            return self._nbytes
        return sum(tensor.nbytes for tensor, _ in self.fills)

    def new(self, shape: Sequence[int], fill: Fill) -> Tensor:
        """Take memory for a parameter; its values are undefined until the weights are loaded."""
        tensor = torch.empty(shape, dtype=self.dtype, device=self.device)
        self.fills.append((tensor, fill))
        return tensor

    def table(self, name: str, rows: int, columns: int) -> Tensor:
        """Make a table of vectors, [rows, columns], which may be the weight of the output layer as well."""
        tensor = self.targets[name] = self.new((rows, columns), "normal")
        return tensor

    def vector(self, name: str, size: int, fill: Fill) -> Tensor:
        tensor = self.targets[name] = self.new((size,), fill)
        return tensor

    def linear(
        self, parts: Iterable[tuple[str, int]], num_inputs: int, *, bias: bool, transposed: bool = False
    ) -> Linear:
        """Make one linear layer of the parts (checkpoint module, outputs) that lie one after the other in it.

        Args:
            transposed: the checkpoint has [inputs, outputs] (GPT-2's Conv1D).
        """
        parts = tuple(parts)
        num_outputs = sum(size for _, size in parts)
        weight = self.new((num_outputs, num_inputs), "normal")
        bias_vector = self.new((num_outputs,), "zeros") if bias else None
        start = 0
        for name, size in parts:
            rows = weight[start : start + size]
            self.targets[f"{name}.weight"] = rows.t() if transposed else rows
            if bias_vector is not None:
                self.targets[f"{name}.bias"] = bias_vector[start : start + size]
            start += size
        return self.multiply(weight, bias_vector)

    def multiply(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """Make a linear layer of a parameter, [outputs, inputs]."""
        layer = Linear(weight, bias, self.ops.linear)
        self._linears.append(layer)
        return layer

    def settle(self) -> None:
        """Bring the loaded weights into the form that the device multiplies fastest; ends loading.

        One layer at a time, and the places in the checkpoint are forgotten first, so that no weight is kept twice.
        """
        self._nbytes = self.nbytes
        self.targets.clear()
        self.fills.clear()
        for layer in self._linears:
            layer.pack()


class Linear:
    """Multiply by a weight [outputs, inputs] and add a bias."""

    __slots__ = ("_multiply", "bias", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, multiply: LinearOp) -> None:
        self.weight = weight
        self.bias = bias
        self._multiply = multiply

    def pack(self) -> None:
        """Replace the weight by its packed form, where the device has a faster one."""
        if self._multiply is linear and packs(self.weight):
            self.weight = pack_weight(self.weight)
            self._multiply = linear_packed

    def __call__(self, x: Tensor) -> Tensor:
        return self._multiply(x, self.weight, self.bias)  # [tokens, outputs]

    def in_fp32(self, x: Tensor) -> Tensor:
        """Multiply, and on a GPU leave the result as it was summed: logits rounded to bf16 tie."""
        return self._multiply(x, self.weight, self.bias, torch.float32)


def output_layer(spec: ModelSpec, parameters: Parameters, embedding: Tensor, embedding_name: str) -> Linear:
    """Make the layer that gives logits, which is the embedding itself where the spec ties them."""
    if spec.tie_word_embeddings:
        parameters.tied["lm_head.weight"] = embedding_name
        return parameters.multiply(embedding)
    return parameters.linear([("lm_head", spec.vocab_size)], embedding.shape[1], bias=False)


class LayerNorm:
    """Normalize to mean 0 and variance 1, with weight and bias where the model has them."""

    __slots__ = ("bias", "eps", "shape", "weight")

    def __init__(self, parameters: Parameters, name: str, size: int, eps: float, affine: bool = True) -> None:
        self.weight = parameters.vector(f"{name}.weight", size, "ones") if affine else None
        self.bias = parameters.vector(f"{name}.bias", size, "zeros") if affine else None
        self.shape = (size,)
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class Attention:
    """Project to queries, keys and values, put K and V into the cache, attend, project back.

    Args:
        qkv: gives [tokens, (heads + 2 * kv_heads) * head_dim], the queries first, then the keys.
        rope_table: [max_positions, 2, rotated / 2]; None for models that add positions to the embeddings.
        q_norm, k_norm: [head_dim], RMSNorm of each head before rotation.
    """

    __slots__ = (
        "attend",
        "eps",
        "head_dim",
        "k_norm",
        "layer",
        "num_heads",
        "out",
        "q_norm",
        "qkv",
        "rope_table",
        "scale",
        "soft_cap",
        "split",
        "window",
    )

    def __init__(
        self,
        spec: ModelSpec,
        layer: int,
        qkv: Linear,
        out: Linear,
        attend: AttentionOp,
        *,
        rope_table: Tensor | None = None,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
    ) -> None:
        self.layer = layer
        self.qkv = qkv
        self.out = out
        self.attend = attend
        self.rope_table = rope_table
        self.q_norm = q_norm
        self.k_norm = k_norm
        self.eps = spec.norm_eps
        self.head_dim = spec.head_dim
        self.num_heads = spec.num_heads
        self.split = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        self.scale = spec.attention_scales[layer]
        self.window = spec.windows[layer]
        self.soft_cap = spec.attention_soft_cap

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        cache, batch = step.caches[self.layer], step.batches[self.layer]
        qkv = self.qkv(x).view(x.shape[0], -1, self.head_dim)  # [tokens, heads + 2 * kv_heads, head_dim]
        q, k, v = qkv.split_with_sizes(self.split, 1)
        if self.rope_table is None:
            kv_write(k, v, cache, batch.slots)
        else:
            q = rotary_kv_write(
                q,
                k,
                v,
                self.rope_table,
                step.positions,
                cache,
                batch.slots,
                q_norm=self.q_norm,
                k_norm=self.k_norm,
                eps=self.eps,
            )
        attended = self.attend(
            q, cache, batch, scale=self.scale, window=self.window, soft_cap=self.soft_cap
        )  # [tokens, heads, head_dim]
        return self.out(attended.reshape(x.shape[0], -1))


class GatedMLP:
    """down(act(gate(x)) * up(x)), with gate and up in one matrix."""

    __slots__ = ("act_mul", "down", "gate_up")

    def __init__(self, gate_up: Linear, down: Linear, activation: str) -> None:
        self.gate_up = gate_up
        self.down = down
        self.act_mul = silu_mul if activation in ("silu", "swish") else gelu_tanh_mul

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.act_mul(self.gate_up(x)))


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "silu": F.silu,
}


class MLP:
    """down(act(up(x)))."""

    __slots__ = ("act", "down", "up")

    def __init__(self, up: Linear, down: Linear, activation: str) -> None:
        self.up = up
        self.down = down
        self.act = ACTIVATIONS[activation]

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


@dataclass(slots=True)
class NormedLayer:
    """One layer of a model with RMSNorm, and the weight of the norm that follows it."""

    attention: Attention
    mlp: GatedMLP
    mlp_norm: Tensor
    next_norm: Tensor  # the next layer's first norm, or the model's last
