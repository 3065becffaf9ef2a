import math
from dataclasses import replace

import pytest
import torch

from baton.kernels.launch import INTERPRET
from baton.kernels.sample import (
    derive_keys,
    greedy,
    gumbel_reference,
    logprobs,
    noise_bits_reference,
    sample,
    sample_reference,
)
from baton.kernels.sampling_batch import SamplingBatch
from baton.kernels.token_counts import row_of


def _batch(num_rows, device="cpu", *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=7, position=None):
    def rows(value, dtype):
        return torch.as_tensor(value, dtype=dtype).expand(num_rows).clone().to(device)

    where = torch.arange(num_rows) if position is None else torch.full((num_rows,), position)
    keys = derive_keys(torch.full((num_rows,), seed), torch.zeros(num_rows, dtype=torch.int64), where)
    batch = SamplingBatch(
        temperature=rows(temperature, torch.float32),
        top_k=rows(top_k, torch.int32),
        top_p=rows(top_p, torch.float32),
        min_p=rows(min_p, torch.float32),
        keys=keys.to(device),
    )
    return replace(
        batch,
        all_greedy=not bool((batch.temperature > 0).any()),
        any_top_k=bool((batch.top_k > 0).any()),
        any_top_p=bool((batch.top_p < 1).any()),
        any_min_p=bool((batch.min_p > 0).any()),
    )


def _kept(scaled, top_k, top_p, min_p):
    """Which tokens the filters keep, by their definitions, in float64."""
    p = scaled.double().softmax(-1)
    keep = p >= min_p * p.max()
    if top_k > 0:
        values = scaled[keep].sort(descending=True).values
        keep &= scaled >= values[min(top_k, len(values)) - 1]
    if top_p < 1:
        q = torch.where(keep, p, 0.0) / p[keep].sum()
        order = scaled.argsort(descending=True)
        above = torch.zeros_like(q)
        above[order] = q[order].cumsum(0) - q[order]
        # Equal values share the mass strictly above the first of them.
        _, which = scaled.unique(return_inverse=True)
        keep &= torch.ones_like(above).scatter_reduce(0, which, above, "amin")[which] < top_p
    return keep


def _draw_by_definition(logits, batch):
    """Sample each row alone, from float64 filters and the reference's noise."""
    chosen = []
    token_ids = torch.arange(logits.shape[1], dtype=torch.int32)
    for row, keys in zip(range(logits.shape[0]), batch.keys.cpu(), strict=True):
        temperature = batch.temperature[row].cpu()
        scaled = logits[row].cpu() * (1.0 if temperature == 0 else temperature.reciprocal())
        keep = _kept(scaled, int(batch.top_k[row]), float(batch.top_p[row]), float(batch.min_p[row]))
        noise = 0.0 if temperature == 0 else gumbel_reference(token_ids, keys)
        chosen.append(int((scaled + noise).masked_fill(~keep, -math.inf).argmax()))
    return chosen


FILTERS = {
    "temperature": {"temperature": [1.0, 0.3, 2.0, 0.0, 1.0, 1.0, 1.0, 1.0]},
    "top_k": {"top_k": [0, 1, 2, 50, 3, 100_000, 7, 20]},
    "top_p": {"top_p": [1.0, 0.9, 0.5, 0.01, 0.999, 0.3, 0.95, 0.7]},
    "min_p": {"min_p": [0.0, 0.1, 0.5, 0.01, 1.0, 0.001, 0.05, 0.2]},
    "all": {
        "temperature": [1.0, 0.5, 2.0, 0.0, 1.0, 0.7, 3.0, 1.0],
        "top_k": [0, 5, 50, 3, 0, 20, 900, 1],
        "top_p": [0.9, 0.9, 1.0, 0.5, 0.99, 0.95, 0.8, 0.1],
        "min_p": [0.01, 0.0, 0.001, 0.0, 0.1, 0.05, 0.0, 0.0],
    },
}


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS.keys())
@pytest.mark.parametrize(("vocab_size", "ties"), [(3, False), (1000, True), (5003, False), (5003, True)])
def test_each_row_is_drawn_by_its_definition(filters, vocab_size, ties, device):
    logits = 3 * torch.randn(8, vocab_size, device=device)
    if ties:
        logits = (8 * logits).round() / 8
    before = logits.clone()
    batch = _batch(8, device, **{name: torch.tensor(values) for name, values in filters.items()})
    assert sample(logits, batch).tolist() == _draw_by_definition(logits, batch)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("spread", [0.01, 30.0])
def test_flat_and_steep_rows_are_filtered_alike(spread, device):
    logits = spread * torch.randn(4, 9000, device=device)
    batch = _batch(4, device, top_k=torch.tensor([0, 0, 40, 5000]), top_p=torch.tensor([0.5, 0.999, 0.9, 0.9]))
    assert sample(logits, batch).tolist() == _draw_by_definition(logits, batch)


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("vocab_size", [1, 70, 5003])
def test_rows_that_ask_for_nothing_get_their_likeliest_token(device, num_rows, vocab_size):
    logits = torch.randn(num_rows, vocab_size, device=device)
    assert torch.equal(greedy(logits).cpu(), logits.cpu().argmax(-1))


def test_greedy_takes_the_lowest_id_among_equals(device):
    logits = torch.zeros(2, 6000, device=device)
    logits[0, [17, 4999]] = 1.0
    logits[1, [4096, 5000, 5001]] = 2.0
    assert sample(logits, _batch(2, device, temperature=0.0)).tolist() == [17, 4096]


def test_a_row_alone_draws_what_it_draws_in_company(device):
    logits = torch.randn(6, 2000, device=device)
    batch = _batch(6, device, top_k=torch.tensor([0, 40, 0, 3, 0, 0]), top_p=torch.tensor([1, 1, 0.8, 1, 1, 0.9]))
    together = sample(logits, batch).tolist()
    for row in range(6):
        alone = SamplingBatch(
            batch.temperature[row : row + 1],
            batch.top_k[row : row + 1],
            batch.top_p[row : row + 1],
            batch.min_p[row : row + 1],
            batch.keys[row : row + 1],
            any_top_k=True,
            any_top_p=True,
            any_min_p=True,
        )
        assert sample(logits[row : row + 1], alone).tolist() == together[row : row + 1]


def test_every_token_may_be_banned_but_one(device):
    logits = torch.randn(3, 300, device=device)
    allowed = torch.zeros(3, 300, dtype=torch.bool, device=device)
    allowed[[0, 1, 2], [5, 299, 0]] = True
    batch = replace(_batch(3, device, top_p=0.9), allowed=allowed)
    assert sample(logits, batch).tolist() == [5, 299, 0]


def test_bias_adds_and_bans(device):
    logits = torch.zeros(2, 300, device=device)
    logits[0, 7] = 1.0
    bias = [(0, 7, -math.inf), (0, 9, 0.5), (1, 299, 2.0), (1, 299, 1.0), (1, 0, 2.5)]
    rows, token_ids, values = zip(*bias, strict=True)
    batch = replace(
        _batch(2, device, temperature=0.0),
        bias_rows=torch.tensor(rows, device=device),
        bias_token_ids=torch.tensor(token_ids, device=device),
        bias_values=torch.tensor(values, device=device),
    )
    assert sample(logits, batch).tolist() == [9, 299]


def _penalized(logits, batch, prompts, outputs):
    """Apply vLLM's penalties, one token at a time."""
    logits = logits.double().cpu().clone()
    for row, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        for token in {*prompt, *output}:
            x, penalty = logits[row, token], float(batch.repetition_penalty[row])
            logits[row, token] = x / penalty if x > 0 else x * penalty
        for token in set(output):
            logits[row, token] -= float(batch.frequency_penalty[row]) * output.count(token)
            logits[row, token] -= float(batch.presence_penalty[row])
    return logits


def test_penalties_are_vllms(device):
    vocab_size, num_rows = 40, 6
    logits = torch.randn(num_rows, vocab_size, device=device)
    prompts = torch.randint(0, vocab_size, (num_rows, 30)).tolist()
    outputs = [torch.randint(0, vocab_size, (10 * row,)).tolist() for row in range(num_rows)]
    rows = torch.tensor([7, 0, 3, 2, 9, 4])
    counts = torch.full((10, vocab_size), 5, dtype=torch.int32)  # of others
    for row, prompt, drawn in zip(rows, prompts, outputs, strict=True):
        counts[row] = row_of(prompt, drawn, vocab_size)
    batch = replace(
        _batch(num_rows, device, temperature=0.0),
        repetition_penalty=torch.rand(num_rows, device=device) * 2 + 0.5,
        presence_penalty=torch.randn(num_rows, device=device),
        frequency_penalty=torch.randn(num_rows, device=device),
        counts=counts.to(device),
        count_rows=rows.to(device),
    )
    # rows that ask for nothing get nothing
    batch.repetition_penalty[4], batch.presence_penalty[4], batch.frequency_penalty[4] = 1.0, 0.0, 0.0
    expected = _penalized(logits, batch, prompts, outputs)
    assert sample(logits.clone(), batch).tolist() == expected.argmax(-1).tolist()
    # The order of all tokens, not only of the best: each is chosen once those above it are banned.
    allowed = torch.ones(num_rows, vocab_size, dtype=torch.bool, device=device)
    for rank in range(5):
        batch.allowed = allowed
        chosen = sample(logits.clone(), batch)
        assert chosen.tolist() == expected.argsort(-1, descending=True)[:, rank].tolist()
        allowed[torch.arange(num_rows), chosen.cpu()] = False


def test_draws_follow_the_distribution(device):
    """Chi-square over 200,000 positions; 33.7 is passed by chance once in 10,000 at 10 degrees of freedom."""
    num_draws = 400 if INTERPRET else 200_000
    logits = torch.randn(1, 11)
    p = logits.double().softmax(-1)[0]
    chosen = sample(logits.expand(num_draws, 11).contiguous().to(device), _batch(num_draws, device)).cpu()
    counts = torch.bincount(chosen, minlength=11).double()
    assert ((counts - p * num_draws) ** 2 / (p * num_draws)).sum().item() < 33.7


def test_neighbouring_positions_and_seeds_draw_independently():
    """Chi-square of pairs; 202 is passed by chance once in 10,000 at 143 degrees of freedom."""
    num_draws = 100_000
    logits = torch.randn(1, 12)
    p = logits.double().softmax(-1)[0]
    expected = (p[:, None] * p).view(-1) * (num_draws - 1)
    first = sample_reference(logits.expand(num_draws, 12), _batch(num_draws, seed=1))
    second = sample_reference(logits.expand(num_draws, 12), _batch(num_draws, seed=2))
    for a, b in ((first[:-1], first[1:]), (first[:-1], second[:-1])):
        counts = torch.bincount(12 * a + b, minlength=144).double()
        assert ((counts - expected) ** 2 / expected).sum().item() < 202


def test_noise_bits_are_even_in_every_bit():
    token_ids = torch.arange(4096, dtype=torch.int32)
    keys = derive_keys(torch.zeros(64, dtype=torch.int64), torch.zeros(64, dtype=torch.int64), torch.arange(64))
    bits = noise_bits_reference(token_ids, keys[:, None].expand(64, 1, 2).squeeze(1))
    for bit in range(32):
        ones = (bits >> bit & 1).double().mean()
        assert abs(float(ones) - 0.5) < 5 * 0.5 / math.sqrt(bits.numel())


def test_keys_differ_where_seed_choice_or_position_differ(device):
    grid = torch.cartesian_prod(torch.arange(-3, 5), torch.arange(4), torch.arange(50))
    keys = derive_keys(*grid.T.to(device))
    assert keys.dtype == torch.int32
    assert len({tuple(key) for key in keys.tolist()}) == grid.shape[0]
    # A fixed point, so that a change of the function is seen: recorded answers would change with it.
    assert derive_keys(*torch.tensor([[1], [2], [3]]).to(device)).tolist() == [[963705776, -279960709]]


@pytest.mark.parametrize("num_top", [0, 1, 5])
def test_logprobs_are_of_the_raw_logits(num_top, device, assert_close):
    logits = 4 * torch.randn(5, 9001, device=device)
    token_ids = torch.tensor([0, 9000, 17, 4, 5], device=device)
    token_ids[2] = logits[2].argmax()
    chosen, rank, top_ids, top = logprobs(logits, token_ids, num_top)
    expected = logits.double().log_softmax(-1)
    at = expected.gather(1, token_ids[:, None])
    assert_close(chosen, at[:, 0])
    assert rank.tolist() == (expected >= at).sum(-1).tolist()
    assert rank[2] == 1
    assert top_ids.shape == top.shape == (5, num_top)
    assert_close(top, expected.topk(num_top).values)
    assert top_ids.tolist() == expected.topk(num_top).indices.tolist()
