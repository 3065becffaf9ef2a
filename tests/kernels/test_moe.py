"""Mixtures of experts: the choice, the order of pairs, and the products, in each of the ways that they are computed."""

from __future__ import annotations

import math

import pytest
import torch

from baton.kernels.moe import invariant_moe, moe, moe_reference, run_every_launch
from baton.kernels.moe_order import num_tiles, order_by_expert, order_by_expert_reference
from baton.kernels.moe_routing import Routing, route
from baton.kernels.moe_weights import SILU, ExpertWeights, Swiglu

GPT_OSS = Swiglu(1.702, 1.0, 1.5)


def _chosen(num_tokens, num_chosen, num_experts, device):
    rows = [torch.randperm(num_experts)[:num_chosen] for _ in range(num_tokens)]
    return torch.stack(rows).int().to(device)


def _experts(num_experts, hidden, inner, dtype, device, has_bias=False):
    shapes = [(num_experts, 2 * inner, hidden), (num_experts, hidden, inner)]
    matrices = [(torch.randn(shape) / shape[2] ** 0.5).to(device, dtype) for shape in shapes]
    biases = [torch.randn(shape[:2]).to(device, dtype) for shape in shapes] if has_bias else (None, None)
    return ExpertWeights(*matrices, *biases)


def _expected(x, chosen, weights, experts, gate):
    exact = ExpertWeights(*(each if each is None else each.double() for each in experts))
    return moe_reference(x.double(), chosen, weights.double(), exact, gate)


def test_the_best_scores_are_chosen_and_weigh_what_softmax_says(device, assert_close):
    logits = torch.randn(9, 60, device=device)
    weights, chosen = route(logits, Routing(6))
    expected = logits.double().softmax(-1).topk(6)
    assert torch.equal(chosen.long(), expected.indices)
    assert_close(weights, expected.values)
    weights, _ = route(logits, Routing(6, renormalized=True, scale=2.5))
    assert_close(weights, 2.5 * expected.values / expected.values.sum(-1, keepdim=True), torch.float32)


def test_a_bias_decides_the_choice_and_not_the_weight(device, assert_close):
    logits, bias = torch.randn(9, 16, device=device), torch.randn(16, device=device)
    weights, chosen = route(logits, Routing(4, "sigmoid"), bias)
    scores = logits.double().sigmoid()
    assert torch.equal(chosen.long(), (scores + bias).topk(4).indices)
    assert_close(weights, scores.gather(1, chosen.long()), torch.float32)


@pytest.mark.parametrize("num_group_best", [1, 2])
def test_only_the_best_groups_are_chosen_from(num_group_best, device):
    routing = Routing(6, num_groups=5, num_chosen_groups=2, num_group_best=num_group_best)
    logits = torch.randn(9, 60, device=device)
    _, chosen = route(logits, routing)
    by_group = logits.softmax(-1).view(9, 5, 12)
    groups = by_group.topk(num_group_best).values.sum(-1).topk(2).indices
    for row, of_token in enumerate(groups.tolist()):
        allowed = torch.tensor([expert // 12 in of_token for expert in range(60)], device=device)
        best = logits[row].masked_fill(~allowed, -math.inf).topk(6).indices
        assert torch.equal(chosen[row].long(), best)


def test_sparsemixer_weighs_each_choice_among_those_near_it(device, assert_close):
    logits = torch.tensor([[4.0, 3.99, 1.0, -2.0], [-1.0, -3.0, -1.01, -9.0]], device=device)
    weights, chosen = route(logits, Routing(2, "sparsemixer", jitter=0.01))
    assert chosen.tolist() == [[0, 1], [0, 2]]
    near = torch.tensor([[4.0, 3.99], [-1.0, -1.01]]).softmax(-1)[:, 0]
    assert_close(weights, torch.stack((near, torch.ones(2)), 1), torch.float32)


def test_logits_of_nan_choose_experts_that_there_are(device):
    _, chosen = route(torch.full((2, 5), math.nan, device=device), Routing(2))
    assert int(chosen.max()) < 5
    assert int(chosen.min()) >= 0


@pytest.mark.parametrize(
    ("num_tokens", "num_chosen", "num_experts", "block_m"),
    [(1, 2, 8, 16), (5, 3, 7, 16), (70, 8, 128, 16), (600, 8, 60, 16)],
)
def test_pairs_stand_in_the_order_of_their_experts(num_tokens, num_chosen, num_experts, block_m, device):
    chosen = _chosen(num_tokens, num_chosen, num_experts, device)
    tiles = order_by_expert(chosen, num_experts, block_m)
    expected = order_by_expert_reference(chosen, num_experts, block_m)
    assert len(tiles.expert) == num_tiles(chosen.numel(), num_experts, block_m)
    assert torch.equal(tiles.order, expected.order)
    assert torch.equal(tiles.expert, expected.expert)
    real = tiles.expert >= 0
    assert torch.equal(tiles.first[real], expected.first[real])
    assert torch.equal(tiles.end[real], expected.end[real])
    rows = (tiles.end - tiles.first).clamp(max=block_m)[real]
    assert int(rows.min()) > 0
    assert int(rows.sum()) == chosen.numel()


@pytest.mark.parametrize(
    ("num_tokens", "num_chosen", "num_experts", "hidden", "inner"),
    [(1, 2, 8, 48, 24), (5, 3, 7, 64, 32), (40, 2, 4, 33, 17)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("gate", "has_bias"), [(SILU, False), (GPT_OSS, True)], ids=["silu", "clamped"])
def test_it_is_the_weighted_sum_of_the_experts(
    num_tokens, num_chosen, num_experts, hidden, inner, dtype, gate, has_bias, device, assert_close
):
    experts = _experts(num_experts, hidden, inner, dtype, device, has_bias)
    x = torch.randn(num_tokens, hidden).to(device, dtype)
    chosen = _chosen(num_tokens, num_chosen, num_experts, device)
    weights = torch.rand(num_tokens, num_chosen, device=device)
    expected = _expected(x, chosen, weights, experts, gate)
    for op in (moe_reference, moe, invariant_moe):
        y = op(x, chosen, weights, experts, gate)
        assert y.dtype == dtype
        assert_close(y, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("same_bits_anywhere")
def test_no_token_depends_on_the_others(dtype, device):
    experts = _experts(4, 64, 32, dtype, device)
    x, chosen = torch.randn(70, 64).to(device, dtype), _chosen(70, 2, 4, device)
    weights = torch.rand(70, 2, device=device)
    whole = invariant_moe(x, chosen, weights, experts)
    for part in (slice(0, 1), slice(3, 20), slice(69, 70), slice(5, 70)):
        assert torch.equal(invariant_moe(x[part], chosen[part], weights[part], experts), whole[part])


def test_no_tokens_give_no_rows(device):
    experts = _experts(4, 16, 8, torch.float32, device)
    x, weights = torch.zeros(0, 16, device=device), torch.zeros(0, 2, device=device)
    for op in (moe, invariant_moe):
        assert op(x, weights.int(), weights, experts).shape == (0, 16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="too much for the interpreter")
@pytest.mark.parametrize("num_tokens", [1, 2, 8, 33, 128, 700, 4096])
@pytest.mark.parametrize(("num_experts", "num_chosen", "hidden", "inner"), [(8, 2, 1024, 3584), (128, 8, 2048, 768)])
def test_real_sizes_captured_are_the_weighted_sum(num_tokens, num_experts, num_chosen, hidden, inner, assert_close):
    experts = _experts(num_experts, hidden, inner, torch.bfloat16, "cuda")
    x = torch.randn(num_tokens, hidden, device="cuda", dtype=torch.bfloat16)
    logits = torch.randn(num_tokens, num_experts, device="cuda")
    routing = Routing(num_chosen, renormalized=True)

    def run():
        weights, chosen = route(logits, routing)
        return moe(x, chosen, weights, experts)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run()
    for _ in range(3):
        x.normal_()
        logits.normal_()
        graph.replay()
        weights, chosen = route(logits, routing)
        assert_close(y, moe_reference(x, chosen, weights, experts))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="too much for the interpreter")
def test_no_token_of_many_depends_on_the_others():
    experts = _experts(16, 1024, 768, torch.bfloat16, "cuda")
    x = torch.randn(4096, 1024, device="cuda", dtype=torch.bfloat16)
    weights, chosen = route(torch.randn(4096, 16, device="cuda"), Routing(4))
    whole = invariant_moe(x, chosen, weights, experts)
    for rows in (1, 5, 64, 200, 1000):
        assert torch.equal(invariant_moe(x[-rows:], chosen[-rows:], weights[-rows:], experts), whole[-rows:])


def test_every_launch_runs(device):
    experts = _experts(4, 32, 16, torch.float16, device)
    x, chosen = torch.zeros(3, 32, dtype=torch.float16, device=device), _chosen(3, 2, 4, device)
    run_every_launch(x, chosen, torch.ones(3, 2, device=device), experts)
