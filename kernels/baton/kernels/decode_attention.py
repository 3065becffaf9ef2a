"""Attention of one query token a sequence over the paged cache: split over the context, packed over the heads of a group.

A sequence's context is cut into splits whose size depends on its own length alone (256 tokens up to 16k, then the power of two that
gives at most 64), so its result never depends on its neighbours. A plan kernel, once a step, lists (sequence, split) items
from the lengths on the device; a fixed number of programs walks the list times the KV heads. Grid, addresses and workspace depend only on the
padded batch, so one CUDA graph serves all lengths. The queries of a group share one tile, so K and V are read once. The last
program to finish a (sequence, KV head) merges its splits, so no second kernel runs. A sequence of length 0 (a padding row) gives zeros.

Bound by the bytes of K and V. Sources: Dao et al., Flash-Decoding; Ringlein et al., arXiv 2511.11581.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from baton.kernels.launch import INTERPRET, tl, triton, upcasts_dot

if TYPE_CHECKING:
    from baton.kernels.attention import AttentionBatch

_SMALLEST_SPLIT = 256
_MAX_SPLITS = 64


@dataclass(frozen=True, slots=True)
class DecodeLaunch:
    """How the kernel is launched. The figures behind the defaults are in kernels/README.md."""

    block_n: int = 64  # context tokens a step
    num_warps: int = 4
    num_stages: int = 3
    programs_per_sm: int = 2


@dataclass(slots=True)
class DecodePlan:
    """A step's work list and workspace, shared by its layers (of one window)."""

    items: Tensor  # [num_decodes * max_splits] int32: sequence * 64 + split
    num_items: Tensor  # [1] int32
    arrivals: Tensor  # [num_decodes * kv_heads] int32: splits finished; 0 between launches
    partial: Tensor  # [num_decodes * max_splits * kv_heads, group, head_dim] fp32, not normalized
    partial_max: Tensor  # [num_decodes * max_splits * kv_heads, group] fp32, in log2
    partial_sum: Tensor  # the same shape


@cache
def _num_sms(device: torch.device) -> int:
    return 2 if INTERPRET else torch.cuda.get_device_properties(device).multi_processor_count


def plan_decode(q: Tensor, kv_layer: Tensor, batch: AttentionBatch, window: int | None) -> DecodePlan:
    """List the step's work on the device and take its workspace."""
    num_decodes, (num_heads, head_dim) = batch.num_decodes, q.shape[1:]
    block_size, num_kv_heads = kv_layer.shape[2:4]
    longest = batch.block_table.shape[1] * block_size
    if window is not None:
        longest = min(longest, window + block_size)
    max_splits = max(1, min(_MAX_SPLITS, -(-longest // _SMALLEST_SPLIT)))
    capacity = num_decodes * max_splits
    group = num_heads // num_kv_heads
    assert capacity * num_heads * head_dim < 2**31

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=q.device)

    plan = DecodePlan(
        items=empty(capacity),
        num_items=empty(1),
        arrivals=empty(num_decodes * num_kv_heads),
        partial=empty(capacity * num_kv_heads, group, head_dim, dtype=torch.float32),
        partial_max=empty(capacity * num_kv_heads, group, dtype=torch.float32),
        partial_sum=empty(capacity * num_kv_heads, group, dtype=torch.float32),
    )
    _plan_kernel[(num_decodes,)](
        batch.seq_lens,
        plan.items,
        plan.num_items,
        plan.arrivals,
        num_decodes,
        WINDOW=window or 0,
        BLOCK_SIZE=block_size,
        NUM_KV_HEADS=num_kv_heads,
        SMALLEST=_SMALLEST_SPLIT,
        MAX_SPLITS=_MAX_SPLITS,
        BLOCK_SEQS=triton.next_power_of_2(num_decodes),
        BLOCK_KV_HEADS=triton.next_power_of_2(num_kv_heads),
        num_warps=4,
    )
    return plan


def decode_attention(
    q: Tensor,
    kv_layer: Tensor,
    batch: AttentionBatch,
    plan: DecodePlan,
    out: Tensor,
    *,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    launch: DecodeLaunch | None = None,
) -> None:
    """Attend for the first num_decodes tokens; writes their rows of `out` [tokens, heads, head_dim]."""
    launch = launch or DecodeLaunch()
    num_heads, head_dim = q.shape[1:]
    block_size, num_kv_heads = kv_layer.shape[2:4]
    group = num_heads // num_kv_heads
    num_programs = min(_num_sms(q.device) * launch.programs_per_sm, plan.items.shape[0] * num_kv_heads)
    _decode_kernel[(num_programs,)](
        q,
        kv_layer,
        out,
        plan.items,
        plan.num_items,
        plan.arrivals,
        plan.partial,
        plan.partial_max,
        plan.partial_sum,
        batch.block_table,
        batch.seq_lens,
        batch.block_table.stride(0),
        q.stride(0),
        q.stride(1),
        kv_layer.stride(0),
        kv_layer.stride(1),
        out.stride(0),
        scale,
        soft_cap or 0.0,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        WINDOW=window or 0,
        HAS_CAP=soft_cap is not None,
        SMALLEST=_SMALLEST_SPLIT,
        MAX_SPLITS=_MAX_SPLITS,
        BLOCK_G=max(16, triton.next_power_of_2(group)),
        BLOCK_MERGE=triton.next_power_of_2(group),
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_N=launch.block_n,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        UPCAST=upcasts_dot(q),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )


# --- Triton ----------------------------------------------------------------------------------------------------------


@triton.jit
def _first_seen(seq_len, WINDOW: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Give the first context position to read: the window's start, down to a block's."""
    if WINDOW > 0:
        return tl.maximum(seq_len - WINDOW, 0) // BLOCK_SIZE * BLOCK_SIZE
    else:
        return seq_len * 0


@triton.jit
def _split_size(length, SMALLEST: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """Give the split of a context of `length` tokens: a function of the length alone."""
    size = tl.where(length > SMALLEST * MAX_SPLITS, 2 * SMALLEST, SMALLEST)
    size = tl.where(length > 2 * SMALLEST * MAX_SPLITS, 4 * SMALLEST, size)
    size = tl.where(length > 4 * SMALLEST * MAX_SPLITS, 8 * SMALLEST, size)
    size = tl.where(length > 8 * SMALLEST * MAX_SPLITS, 16 * SMALLEST, size)
    size = tl.where(length > 16 * SMALLEST * MAX_SPLITS, 64 * SMALLEST, size)
    return tl.where(length > 64 * SMALLEST * MAX_SPLITS, 1024 * SMALLEST, size)


@triton.jit(do_not_specialize=["num_seqs"])
def _plan_kernel(
    seq_lens_ptr,
    items_ptr,
    num_items_ptr,
    arrivals_ptr,
    num_seqs,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    SMALLEST: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    BLOCK_KV_HEADS: tl.constexpr,
):
    seq = tl.program_id(0)
    seqs = tl.arange(0, BLOCK_SEQS)
    lens = tl.load(seq_lens_ptr + seqs, mask=seqs < num_seqs, other=0)
    seen = lens - _first_seen(lens, WINDOW, BLOCK_SIZE)
    size = _split_size(seen, SMALLEST, MAX_SPLITS)
    num_splits = tl.where(seqs < num_seqs, tl.maximum((seen + size - 1) // size, 1), 0)
    first = tl.sum(tl.where(seqs < seq, num_splits, 0), axis=0)
    mine = tl.sum(tl.where(seqs == seq, num_splits, 0), axis=0)
    splits = tl.arange(0, MAX_SPLITS)
    tl.store(items_ptr + first + splits, seq * MAX_SPLITS + splits, mask=splits < mine)
    heads = tl.arange(0, BLOCK_KV_HEADS)
    tl.store(arrivals_ptr + seq * NUM_KV_HEADS + heads, heads * 0, mask=heads < NUM_KV_HEADS)
    if seq == num_seqs - 1:
        tl.store(num_items_ptr, first + mine)


@triton.jit
def _decode_kernel(
    q_ptr,
    kv_ptr,
    out_ptr,
    items_ptr,
    num_items_ptr,
    arrivals_ptr,
    partial_ptr,
    partial_max_ptr,
    partial_sum_ptr,
    block_table_ptr,
    seq_lens_ptr,
    table_stride,
    q_stride_token,
    q_stride_head,
    kv_stride_block,
    kv_stride_half,
    out_stride_token,
    scale,
    soft_cap,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    SMALLEST: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_MERGE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    LOG2E: tl.constexpr = 1.4426950408889634
    MERGE: tl.constexpr = 8  # splits merged at once
    rows = tl.arange(0, BLOCK_G)
    dims = tl.arange(0, BLOCK_D)
    columns = tl.arange(0, BLOCK_N)
    inside_q = (rows[:, None] < GROUP) & (dims[None, :] < HEAD_DIM)
    num_work = tl.load(num_items_ptr) * NUM_KV_HEADS
    # KV heads are neighbours in the list: programs that run together read whole tokens, not slices of them.
    for work in range(tl.program_id(0), num_work, tl.num_programs(0)):
        item = tl.load(items_ptr + work // NUM_KV_HEADS)
        kv_head = work % NUM_KV_HEADS
        seq, split = item // MAX_SPLITS, item % MAX_SPLITS
        seq_len = tl.load(seq_lens_ptr + seq)
        seen_from = _first_seen(seq_len, WINDOW, BLOCK_SIZE)
        size = _split_size(seq_len - seen_from, SMALLEST, MAX_SPLITS)
        num_splits = tl.maximum((seq_len - seen_from + size - 1) // size, 1)
        first = seen_from + split * size
        last = tl.minimum(first + size, seq_len)

        head_rows = kv_head * GROUP + rows
        at_q = seq.to(tl.int64) * q_stride_token + head_rows[:, None] * q_stride_head + dims[None, :]
        q = tl.load(q_ptr + at_q, mask=inside_q, other=0.0)
        if UPCAST:
            q = q.to(tl.float32)
        table = block_table_ptr + seq.to(tl.int64) * table_stride
        row_max = tl.full([BLOCK_G], -1.0e30, tl.float32)
        row_sum = tl.zeros([BLOCK_G], tl.float32)
        acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
        for start in range(first, last, BLOCK_N):
            positions = start + columns
            valid = positions < last
            blocks = tl.load(table + positions // BLOCK_SIZE, mask=valid, other=0).to(tl.int64)
            at = (
                blocks * kv_stride_block
                + (positions % BLOCK_SIZE) * (NUM_KV_HEADS * HEAD_DIM)
                + kv_head * HEAD_DIM
            )
            inside = valid[:, None] & (dims[None, :] < HEAD_DIM)
            # Masked rows are loaded as 0: what a free slot holds may be NaN, and 0 * NaN is NaN.
            k = tl.load(kv_ptr + at[:, None] + dims[None, :], mask=inside, other=0.0)
            v = tl.load(kv_ptr + kv_stride_half + at[:, None] + dims[None, :], mask=inside, other=0.0)
            if UPCAST:
                k, v = k.to(tl.float32), v.to(tl.float32)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            if HAS_CAP:
                scores = soft_cap * (1.0 - 2.0 / (tl.exp(2.0 * scores / soft_cap) + 1.0))
            scores = scores * LOG2E
            if WINDOW > 0:
                valid = valid & (positions >= seq_len - WINDOW)
            scores = tl.where(valid[None, :], scores, float("-inf"))
            new_max = tl.maximum(row_max, tl.max(scores, axis=1))
            p = tl.exp2(scores - new_max[:, None])
            shrink = tl.exp2(row_max - new_max)
            row_sum = row_sum * shrink + tl.sum(p, axis=1)
            acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
            row_max = new_max

        if num_splits == 1:
            o = acc / tl.maximum(row_sum, 1.0e-30)[:, None]
            at_o = seq.to(tl.int64) * out_stride_token + head_rows[:, None] * HEAD_DIM + dims[None, :]
            tl.store(out_ptr + at_o, o.to(out_ptr.dtype.element_ty), mask=inside_q)
        else:
            mine = work  # item and KV head; the workspace has less than 2^31 elements
            tl.store(
                partial_ptr + mine * (GROUP * HEAD_DIM) + rows[:, None] * HEAD_DIM + dims[None, :],
                acc,
                mask=inside_q,
            )
            tl.store(partial_max_ptr + mine * GROUP + rows, row_max, mask=rows < GROUP)
            tl.store(partial_sum_ptr + mine * GROUP + rows, row_sum, mask=rows < GROUP)
            # All threads' stores before the one thread's release; the last to arrive sees every split's.
            tl.debug_barrier()
            arrived = tl.atomic_add(arrivals_ptr + seq * NUM_KV_HEADS + kv_head, 1, sem="acq_rel")
            if arrived == num_splits - 1:
                tl.store(arrivals_ptr + seq * NUM_KV_HEADS + kv_head, 0)
                tl.debug_barrier()
                merge_rows = tl.arange(0, BLOCK_MERGE)
                merge_splits = tl.arange(0, MERGE)
                base = work // NUM_KV_HEADS - split
                total_max = tl.full([BLOCK_MERGE], -1.0e30, tl.float32)
                total_sum = tl.zeros([BLOCK_MERGE], tl.float32)
                total = tl.zeros([BLOCK_MERGE, BLOCK_D], tl.float32)
                for s in range(0, num_splits, MERGE):
                    which = (base + s + merge_splits) * NUM_KV_HEADS + kv_head
                    inside_s = (s + merge_splits < num_splits)[:, None] & (merge_rows < GROUP)[None, :]
                    at_s = which[:, None] * GROUP + merge_rows[None, :]
                    maxima = tl.load(
                        partial_max_ptr + at_s, mask=inside_s, other=-1.0e30, cache_modifier=".cg"
                    )
                    sums = tl.load(partial_sum_ptr + at_s, mask=inside_s, other=0.0, cache_modifier=".cg")
                    inside_a = inside_s[:, :, None] & (dims < HEAD_DIM)[None, None, :]
                    at_a = at_s[:, :, None] * HEAD_DIM + dims[None, None, :]
                    parts = tl.load(partial_ptr + at_a, mask=inside_a, other=0.0, cache_modifier=".cg")
                    new_total_max = tl.maximum(total_max, tl.max(maxima, axis=0))
                    weights = tl.exp2(maxima - new_total_max[None, :])
                    shrink_total = tl.exp2(total_max - new_total_max)
                    total_sum = total_sum * shrink_total + tl.sum(sums * weights, axis=0)
                    total = total * shrink_total[:, None] + tl.sum(parts * weights[:, :, None], axis=0)
                    total_max = new_total_max
                merged = total / total_sum[:, None]
                merge_heads = kv_head * GROUP + merge_rows
                at_m = seq.to(tl.int64) * out_stride_token + merge_heads[:, None] * HEAD_DIM + dims[None, :]
                inside_m = (merge_rows[:, None] < GROUP) & (dims[None, :] < HEAD_DIM)
                tl.store(out_ptr + at_m, merged.to(out_ptr.dtype.element_ty), mask=inside_m)
