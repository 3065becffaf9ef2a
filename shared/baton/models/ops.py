"""The operations that sum over many terms, fastest or with the same bits in any company."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from baton.kernels.attention import paged_attention
from baton.kernels.attention_batch import AttentionBatch
from baton.kernels.invariant_attention import invariant_attention
from baton.kernels.invariant_linear import invariant_linear
from baton.kernels.linear import linear
from baton.kernels.moe import invariant_moe, moe
from baton.kernels.moe_weights import ExpertWeights, Swiglu


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
        slopes: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor: ...


LinearOp = Callable[[Tensor, Tensor, Tensor | None, torch.dtype | None], Tensor]
"""Multiply x by a weight [outputs, inputs] and add a bias; the result has the type given, or x's."""


ExpertsOp = Callable[[Tensor, Tensor, Tensor, ExpertWeights, Swiglu], Tensor]
"""Compute a mixture of experts, as `moe` says."""


@dataclass(frozen=True, slots=True)
class Ops:
    """The operations that have two forms; all others treat a row the same in any batch."""

    linear: LinearOp
    attention: AttentionOp
    experts: ExpertsOp


FASTEST = Ops(linear, paged_attention, moe)
INVARIANT = Ops(invariant_linear, invariant_attention, invariant_moe)
"""On a GPU: a token's bits do not depend on what else is computed with it."""
