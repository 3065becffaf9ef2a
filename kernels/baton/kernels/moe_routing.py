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
    return route_reference(logits, routing, bias)
