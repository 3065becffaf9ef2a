"""A query's attention is its own: the same bits as a decode or in a chunk, alone or in a crowd, split or not."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from baton.kernels import invariant_attention as module
from baton.kernels.attention_batch import AttentionBatch
from baton.kernels.invariant_attention import invariant_attention

CONTEXTS = (150, 40, 300, 1)
SPLIT = 128  # in place of 512, so that short contexts have several
SHAPES = [
    # dtype, heads, kv_heads, head_dim, window, soft cap
    (torch.float32, 4, 2, 32, None, None),
    (torch.float32, 3, 1, 20, 37, 5.0),
    (torch.bfloat16, 4, 1, 64, None, None),
    (torch.bfloat16, 3, 3, 24, 50, 8.0),
    (torch.float16, 2, 1, 256, 200, None),
]


class Cache:
    """Sequences whose keys, values and queries are known at every position; any parts of them make a step."""

    def __init__(self, dtype, num_heads, num_kv_heads, head_dim, window, soft_cap, device, block_size=16):
        num_blocks = [-(-n // block_size) for n in CONTEXTS]
        ids = (torch.randperm(sum(num_blocks)) + 1).split(num_blocks)
        self.kv = torch.randn(sum(num_blocks) + 2, 2, block_size, num_kv_heads, head_dim).to(device, dtype)
        self.table = torch.zeros(len(CONTEXTS), max(num_blocks) + 1, dtype=torch.int32)
        for seq, blocks in enumerate(ids):
            self.table[seq, : len(blocks)] = blocks
            if CONTEXTS[seq] % block_size:  # what lies past the end is not the sequence's own
                self.kv[blocks[-1], :, CONTEXTS[seq] % block_size :] = float("nan")
        self.q = [torch.randn(n, num_heads, head_dim).to(device, dtype) for n in CONTEXTS]
        self.device = device
        self.options = {"scale": head_dim**-0.5, "window": window, "soft_cap": soft_cap}

    def attend(self, *parts):
        """Attend for (sequence, first position, queries), decodes first; a list of outputs."""
        lens = [n for _, _, n in parts]
        ends = [start + n for _, start, n in parts]
        batch = AttentionBatch(
            block_table=self.table[[seq for seq, _, _ in parts]].to(self.device),
            query_start=torch.tensor([0, *itertools.accumulate(lens)], dtype=torch.int32, device=self.device),
            seq_lens=torch.tensor(ends, dtype=torch.int32, device=self.device),
            slots=torch.zeros(sum(lens), dtype=torch.int64, device=self.device),
            num_decodes=sum(n == 1 for n in lens),
            query_lens_host=lens,
            seq_lens_host=ends,
        )
        q = torch.cat([self.q[seq][start : start + n] for seq, start, n in parts])
        return invariant_attention(q, self.kv, batch, **self.options).split(lens)

    def expected(self, seq):
        """Attend for a whole sequence by the formula, in float64."""
        n, q = CONTEXTS[seq], self.q[seq].double()
        blocks = self.kv[self.table[seq].long().to(self.device)].double()
        k, v = (
            blocks[:, half].flatten(0, 1)[:n].repeat_interleave(q.shape[1] // blocks.shape[3], 1) for half in (0, 1)
        )
        scores = torch.einsum("qhd,khd->hqk", q, k) * self.options["scale"]
        if cap := self.options["soft_cap"]:
            scores = cap * torch.tanh(scores / cap)
        at, j = torch.arange(n, device=self.device)[:, None], torch.arange(n, device=self.device)
        if (slopes := self.options.get("slopes")) is not None:
            scores += slopes.double()[:, None, None] * (j - at)
        visible = (j <= at) & (j > at - (self.options["window"] or n + 1))
        scores = scores.masked_fill(~visible, -math.inf)
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


@pytest.fixture(autouse=True)
def short_splits(monkeypatch):
    monkeypatch.setattr(module, "_SPLIT", SPLIT)


@pytest.fixture(params=SHAPES, ids=lambda shape: f"{str(shape[0])[6:]}-{shape[3]}-{shape[4]}")
def cache(request, device):
    return Cache(*(*request.param, device))


def test_attention_is_its_formula(cache, assert_close):
    outputs = cache.attend((3, 0, 1), (2, 299, 1), (0, 0, 150), (1, 10, 30), (2, 150, 150))
    rows = ((3, 0, 1), (2, 299, 300), (0, 0, 150), (1, 10, 40), (2, 150, 300))
    for output, (seq, start, end) in zip(outputs, rows, strict=True):
        assert_close(output, cache.expected(seq)[start:end])


def test_slopes_lower_scores_by_distance(device, assert_close):
    cache = Cache(torch.float32, 3, 1, 20, 37, None, device)
    cache.options["slopes"] = torch.tensor([0.5, 0.03, 0.25], device=device)
    for output, (start, end) in zip(cache.attend((2, 299, 1), (2, 150, 150)), ((299, 300), (150, 300)), strict=True):
        assert_close(output, cache.expected(2)[start:end])


@pytest.mark.usefixtures("same_bits_anywhere")
def test_no_query_depends_on_neighbours_or_chunks(cache, is_kernel):
    if not is_kernel:
        pytest.skip("the reference is invariant only where each query is alone")
    (whole,) = cache.attend((2, 0, 300))
    for parts in (
        [(2, 0, 16), (2, 16, 100), (2, 116, 184)],
        [(2, 130, 7), (1, 0, 40), (2, 137, 100), (0, 3, 100)],
        [(3, 0, 1), (1, 39, 1), (0, 149, 1), (2, 127, 1), (2, 128, 1), (2, 129, 1), (2, 239, 61)],
        [(2, 299, 1)],
        [(2, 299, 1), (2, 100, 1), (0, 5, 1)],
    ):
        for (seq, start, n), output in zip(parts, cache.attend(*parts), strict=True):
            if seq == 2:
                assert torch.equal(output, whole[start : start + n])


@pytest.mark.usefixtures("same_bits_anywhere")
def test_splits_side_by_side_give_the_same_bits(cache, is_kernel, monkeypatch):
    if not is_kernel:
        pytest.skip("the reference has no splits")
    steps = [(2, 299, 1), (2, 128, 1), (0, 149, 1)]
    found = []
    for num_sms in (1, 1000):
        monkeypatch.setattr(module, "num_sms", lambda device, n=num_sms: n)
        found.append(cache.attend(*steps))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.usefixtures("same_bits_anywhere")
def test_room_for_more_sequences_changes_no_bit(cache, is_kernel, device):
    """Lay a step out as a captured one: rows for four decodes and three chunks, and tokens that nobody has."""
    if not is_kernel:
        pytest.skip("only the kernel reads a step's layout on the device")
    rows = {0: (2, 299, 1), 1: (0, 149, 1), 4: (2, 100, 70), 5: (1, 0, 40)}
    lens = [rows.get(row, (0, 0, 0))[2] for row in range(7)]
    batch = AttentionBatch(
        block_table=cache.table[[rows.get(row, (3, 0, 0))[0] for row in range(7)]].to(device),
        query_start=torch.tensor([0, *itertools.accumulate(lens)], dtype=torch.int32, device=device),
        seq_lens=torch.tensor(
            [sum(rows.get(row, (0, 0, 0))[1:]) for row in range(7)], dtype=torch.int32, device=device
        ),
        slots=torch.zeros(160, dtype=torch.int64, device=device),
        num_decodes=4,
        query_lens_host=[1] * 7,
        seq_lens_host=[],
    )
    q = torch.cat([cache.q[seq][start : start + n] for seq, start, n in rows.values()])
    room = torch.full((160, *q.shape[1:]), math.nan, device=device, dtype=q.dtype)
    room[: len(q)] = q
    o = invariant_attention(room, cache.kv, batch, **cache.options)
    assert torch.equal(o[: len(q)], torch.cat(cache.attend(*rows.values())))


@pytest.mark.usefixtures("same_bits_anywhere")
def test_padding_rows_give_zeros(device, is_kernel):
    if not is_kernel:
        pytest.skip("a CPU has no padding rows")
    cache = Cache(*SHAPES[0], device)
    batch = AttentionBatch(
        block_table=cache.table[[2, 0]].to(device) * torch.tensor([[1], [0]], device=device, dtype=torch.int32),
        query_start=torch.tensor([0, 1, 2], dtype=torch.int32, device=device),
        seq_lens=torch.tensor([300, 0], dtype=torch.int32, device=device),
        slots=torch.zeros(2, dtype=torch.int64, device=device),
        num_decodes=2,
        query_lens_host=[1, 1],
        seq_lens_host=[],
    )
    o = invariant_attention(cache.q[2][-2:].flip(0), cache.kv, batch, **cache.options)
    assert torch.equal(o[:1], cache.attend((2, 299, 1))[0])
    assert not o[1].any()
