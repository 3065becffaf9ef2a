"""Choose the experts of each token, and how much each counts: the k best of its scores, by groups where the model has them.

logits [tokens, experts] fp32 -> weights [tokens, k] fp32 and experts [tokens, k] int32, the best first. A score is softmax or
sigmoid of the logits; a bias, where there is one, decides the choice and not the weight. With groups, the experts of the
groups whose best scores add up to most stand for election alone. "sparsemixer" chooses one expert after the other, each with
a softmax over those that come near it. Bound by the launch: a row of logits is a few hundred numbers.

Sources: Shazeer et al., arXiv:1701.06538; DeepSeek-V3, arXiv:2412.19437; SparseMixer-v2, arXiv:2409.12136.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from baton.kernels.launch import on_triton, overlap, start_next, tl, triton, wait_for_previous

Scoring = Literal["softmax", "sigmoid", "sparsemixer"]


@dataclass(frozen=True, slots=True)
class Routing:
    """How experts are chosen."""

    num_chosen: int  # experts of a token
    scoring: Scoring = "softmax"
    renormalized: bool = False  # the weights of a token are divided by their sum
    scale: float = 1.0  # of the weights, at last
    num_groups: int = 1  # equal parts of the experts, one after the other
    num_chosen_groups: int = 1
    num_group_best: int = 1  # how many of a group's best scores are its score
    jitter: float = 0.0  # sparsemixer: how far below the best, relatively, a score still counts


def route_reference(logits: Tensor, routing: Routing, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Choose in plain torch."""
    if routing.scoring == "sparsemixer":
        return _sparsemixer(logits, routing)
    scores = logits.sigmoid() if routing.scoring == "sigmoid" else logits.softmax(-1)
    votes = scores if bias is None else scores + bias
    if routing.num_groups > 1:
        votes = _within_groups(votes, routing)
    chosen = votes.topk(routing.num_chosen, -1).indices
    weights = scores.gather(1, chosen)
    if routing.renormalized:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * routing.scale, chosen.int()


def _within_groups(votes: Tensor, routing: Routing) -> Tensor:
    """Rule out the experts of all groups but the best."""
    grouped = votes.view(len(votes), routing.num_groups, -1)  # [tokens, groups, experts of a group]
    group_scores = grouped.topk(routing.num_group_best, -1).values.sum(-1)
    best = group_scores.topk(routing.num_chosen_groups, -1).indices
    is_out = torch.ones_like(group_scores, dtype=torch.bool).scatter_(1, best, False)
    return grouped.masked_fill(is_out[..., None], float("-inf")).flatten(1)


def _sparsemixer(logits: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
    weights, chosen = [], []
    left = logits
    for _ in range(routing.num_chosen):
        best, index = left.max(-1, keepdim=True)
        # How far below the best one each is, in parts of the larger of the two, of all experts and not of those left.
        distance = (best - logits) / torch.maximum(logits.abs(), best)
        near = left.masked_fill(distance > 2 * routing.jitter, float("-inf"))
        weights.append(near.softmax(-1).gather(1, index))
        chosen.append(index)
        left = left.scatter(1, index, float("-inf"))
    return torch.cat(weights, 1) * routing.scale, torch.cat(chosen, 1).int()


def route(logits: Tensor, routing: Routing, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the weights [tokens, k] fp32 and the experts [tokens, k] int32, the best first, of logits in fp32."""
    if not on_triton(logits, "route"):
        return route_reference(logits, routing, bias)
    num_tokens, num_experts = logits.shape
    weights = torch.empty((num_tokens, routing.num_chosen), dtype=torch.float32, device=logits.device)
    chosen = torch.empty((num_tokens, routing.num_chosen), dtype=torch.int32, device=logits.device)
    if num_tokens:
        _route_kernel[(num_tokens,)](
            logits,
            logits if bias is None else bias,
            weights,
            chosen,
            routing.scale,
            2 * routing.jitter,
            NUM_EXPERTS=num_experts,
            BLOCK_E=triton.next_power_of_2(num_experts),
            NUM_CHOSEN=routing.num_chosen,
            BLOCK_K=triton.next_power_of_2(routing.num_chosen),
            NUM_GROUPS=routing.num_groups,
            BLOCK_G=triton.next_power_of_2(routing.num_groups),
            NUM_CHOSEN_GROUPS=routing.num_chosen_groups,
            NUM_GROUP_BEST=routing.num_group_best,
            SCORING=routing.scoring,
            RENORMALIZED=routing.renormalized,
            HAS_BIAS=bias is not None,
            num_warps=1 if num_experts <= 256 else 4,
            **overlap(num_tokens, logits.device),
        )
    return weights, chosen


# --- Triton -----------------------------------------------------------------------------------------


@triton.jit
def _best(votes, at, LAST: tl.constexpr):
    """Find the largest vote and where it is, the first of equal ones; where all are NaN, the last place."""
    best = tl.max(votes, axis=0)
    return best, tl.minimum(tl.min(tl.where(votes == best, at, LAST), axis=0), LAST)


@triton.jit
def _within_best_groups(
    votes,
    experts,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    NUM_CHOSEN_GROUPS: tl.constexpr,
    NUM_GROUP_BEST: tl.constexpr,
):
    """Rule out the experts of all groups but the best."""
    groups = experts // (NUM_EXPERTS // NUM_GROUPS)
    at = tl.arange(0, BLOCK_G)
    scores = tl.full([BLOCK_G], float("-inf"), tl.float32)
    for group in tl.static_range(NUM_GROUPS):
        of_group = tl.where(groups == group, votes, float("-inf"))
        score = 0.0
        for _ in tl.static_range(NUM_GROUP_BEST):
            best, index = _best(of_group, experts, NUM_EXPERTS - 1)
            score += best
            of_group = tl.where(experts == index, float("-inf"), of_group)
        scores = tl.where(at == group, score, scores)
    kept = tl.zeros([BLOCK_E], tl.int1)
    for _ in tl.static_range(NUM_CHOSEN_GROUPS):
        _, group = _best(scores, at, NUM_GROUPS - 1)
        kept = kept | (groups == group)
        scores = tl.where(at == group, float("-inf"), scores)
    return tl.where(kept, votes, float("-inf"))


@triton.jit
def _route_kernel(
    logits_ptr,
    bias_ptr,
    weights_ptr,
    chosen_ptr,
    scale,
    reach,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    NUM_CHOSEN: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    NUM_CHOSEN_GROUPS: tl.constexpr,
    NUM_GROUP_BEST: tl.constexpr,
    SCORING: tl.constexpr,
    RENORMALIZED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    experts = tl.arange(0, BLOCK_E)
    inside = experts < NUM_EXPERTS
    bias = tl.zeros([BLOCK_E], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + experts, mask=inside, other=0.0).to(tl.float32)
    wait_for_previous(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    logits = tl.load(logits_ptr + token * NUM_EXPERTS + experts, mask=inside, other=float("-inf")).to(tl.float32)
    if SCORING == "softmax":
        scores = tl.exp(logits - tl.max(logits, axis=0))
        scores = scores / tl.sum(scores, axis=0)
    elif SCORING == "sigmoid":
        scores = 1.0 / (1.0 + tl.exp(-logits))
    else:
        scores = logits
    votes = tl.where(inside, scores + bias, float("-inf"))
    if NUM_GROUPS > 1:
        votes = _within_best_groups(
            votes, experts, NUM_EXPERTS, BLOCK_E, NUM_GROUPS, BLOCK_G, NUM_CHOSEN_GROUPS, NUM_GROUP_BEST
        )
    at = tl.arange(0, BLOCK_K)
    weights = tl.zeros([BLOCK_K], tl.float32)
    chosen = tl.zeros([BLOCK_K], tl.int32)
    for place in tl.static_range(NUM_CHOSEN):
        best, index = _best(votes, experts, NUM_EXPERTS - 1)
        if SCORING == "sparsemixer":
            distance = (best - logits) / tl.maximum(tl.abs(logits), best)
            near = tl.where(inside & (distance <= reach), votes, float("-inf"))
            weight = 1.0 / tl.sum(tl.exp(near - best), axis=0)
        else:
            weight = tl.sum(tl.where(experts == index, scores, 0.0), axis=0)
        weights = tl.where(at == place, weight, weights)
        chosen = tl.where(at == place, index, chosen)
        votes = tl.where(experts == index, float("-inf"), votes)
    if RENORMALIZED:
        weights = weights / (tl.sum(weights, axis=0) + 1e-20)
    to = token * NUM_CHOSEN + at
    tl.store(weights_ptr + to, weights * scale, mask=at < NUM_CHOSEN)
    tl.store(chosen_ptr + to, chosen, mask=at < NUM_CHOSEN)
