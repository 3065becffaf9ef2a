"""Attention of a mixed step in plain torch: what a CPU runs, and what the kernels are compared with.

The formula is attention.py's. The blocks of sequences of similar length are gathered side by side and attended to by one SDPA.
What to gather, and the masks, are planned once a step.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from baton.kernels.attention_batch import AttentionBatch

# A gathered group of decodes is read back right after it is written, so it should stay in the last-level
# cache: 6 MiB is within 2 % of the best from 2 to 12 MiB (64 sequences of 50 to 1200 tokens, two cores, 32
# MiB of shared cache).
_GATHER_NBYTES = 6 << 20
# One more group costs about as much time per layer as gathering and attending to this many bytes of padding.
_PADDING_NBYTES = 384 << 10
# Rows of explicit scores (soft cap, slopes) are cut so that they take at most so many bytes.
_SCORES_NBYTES = 64 << 20


@dataclass(slots=True)
class _Piece:
    """One gather and one attention: a group of decodes padded to the longest, or one sequence's chunk."""

    first: int  # first query token, in the plan's order
    num_seqs: int
    query_len: int
    context_len: int  # of the gathered keys, after any blocks that the window hides
    rows: Tensor  # [2 * num_seqs * num_blocks] int32: K's half-block rows, then V's
    mask: Tensor | None  # [num_seqs, 1, 1, context] or [1, 1, queries, context], 0 (or how far a key is) or -inf
    tails: Tensor | None = None  # tokens of the gathered K and V that belong to nobody
    is_causal: bool = False


@dataclass(slots=True)
class _GatherPlan:
    pieces: list[_Piece]
    order: Tensor | None  # [num_decodes] decodes sorted by length; None: as they are
    inverse: Tensor | None  # [num_tokens] back from the pieces' order


def _group_by_length(lens: list[int], token_nbytes: int) -> list[list[int]]:
    """Split sequences into groups to be padded together: similar lengths, small enough to stay in the cache."""
    groups: list[list[int]] = []
    padding = longest = 0
    for i in sorted(range(len(lens)), key=lens.__getitem__, reverse=True):
        padding += longest - lens[i]
        full = not groups or (len(groups[-1]) + 1) * longest * token_nbytes > _GATHER_NBYTES
        if full or padding * token_nbytes > _PADDING_NBYTES:
            groups.append([])
            padding, longest = 0, lens[i]
        groups[-1].append(i)
    return groups


def _mask(visible: Tensor, dtype: torch.dtype, distances: Tensor | None = None) -> Tensor:
    """What is added to scores, -inf where a key is not visible; with distances these, in fp32, for slopes to multiply."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device) if distances is None else distances.float()
    return mask.masked_fill_(visible.logical_not_(), float("-inf"))


def _block_rows(table: Tensor, row_step: int) -> Tensor:
    rows = (table * row_step).view(-1)
    return torch.cat((rows, rows + 1))


def _tails(seen: list[int], padded: int, block_size: int, device: torch.device) -> Tensor | None:
    """List the gathered tokens, K's then V's, that are nobody's and yet are read.

    Past a sequence's end its first block is gathered again; the rest of its last block, and of a first block
    that is its last, may hold what another left there, which may not be finite: no mask stops 0 * NaN.
    """
    tails: list[int] = []
    for i, n in enumerate(seen):
        end = -(-n // block_size) * block_size if n >= block_size else padded
        tails.extend(range(i * padded + n, i * padded + end))
    if not tails:
        return None
    of_k = torch.tensor(tails, device=device)
    return torch.cat((of_k, of_k + len(seen) * padded))


def _plan_decodes(
    batch: AttentionBatch, kv_layer: Tensor, dtype: torch.dtype, window: int | None, sloped: bool
) -> _GatherPlan:
    """Group decodes by length; what all groups need is computed once, sorted, and sliced."""
    _, _, block_size, num_kv_heads, head_dim = kv_layer.shape
    row_step = kv_layer.stride(0) // (block_size * num_kv_heads * head_dim)
    num_decodes = batch.num_decodes
    lens = [max(1, n) for n in batch.seq_lens_host[:num_decodes]]
    hidden = [0 if window is None else max(0, n - window) // block_size for n in lens]  # blocks before the window
    seen = [n - h * block_size for n, h in zip(lens, hidden, strict=True)]
    if num_decodes == 1 and window is None and not sloped:
        rows = _block_rows(batch.block_table[:1, : -(-seen[0] // block_size)], row_step)
        return _GatherPlan([_Piece(0, 1, 1, seen[0], rows, None)], None, None)
    groups = _group_by_length(seen, 2 * num_kv_heads * head_dim * kv_layer.element_size())
    ids = [i for group in groups for i in group]
    device = kv_layer.device
    order = torch.tensor(ids, device=device)
    inverse = torch.arange(batch.slots.shape[0], device=device)
    inverse[order] = torch.arange(num_decodes, device=device)
    ends = torch.tensor([seen[i] for i in ids], device=device)[:, None]
    longest = max(seen)
    columns = torch.arange(-(-longest // block_size), device=device).expand(num_decodes, -1)
    columns = torch.where(columns * block_size < ends, columns, 0)
    if any(hidden):
        columns += torch.tensor([hidden[i] for i in ids], device=device)[:, None]
    table = batch.block_table[:num_decodes].index_select(0, order).gather(1, columns).mul_(row_step)
    positions = torch.arange(longest, device=device)
    visible = positions < ends
    if window is not None:
        visible &= positions >= ends - window
    mask = _mask(visible, dtype, positions - (ends - 1) if sloped else None)[:, None, None]
    pieces: list[_Piece] = []
    first = 0
    for group in groups:
        sizes = [seen[i] for i in group]
        last, widest = first + len(group), max(sizes)
        rows = table[first:last, : -(-widest // block_size)].reshape(-1)
        rows = torch.cat((rows, rows + 1))
        is_even = window is None and min(sizes) == widest
        needs_mask = sloped or not is_even
        padded = rows.shape[0] // (2 * len(group)) * block_size
        tails = None if is_even else _tails(sizes, padded, block_size, device)
        piece_mask = mask[first:last, ..., :widest] if needs_mask else None
        pieces.append(_Piece(first, len(group), 1, widest, rows, piece_mask, tails))
        first = last
    return _GatherPlan(pieces, order, inverse)


def _plan_chunk(
    batch: AttentionBatch,
    seq: int,
    first: int,
    kv_layer: Tensor,
    dtype: torch.dtype,
    window: int | None,
    capped: bool,
    sloped: bool,
) -> _Piece:
    _, _, block_size, num_kv_heads, head_dim = kv_layer.shape
    row_step = kv_layer.stride(0) // (block_size * num_kv_heads * head_dim)
    query_len, seq_len = batch.query_lens_host[seq], batch.seq_lens_host[seq]
    start = seq_len - query_len  # position of the first query
    hidden = 0 if window is None else max(0, start - window + 1) // block_size
    context_len = seq_len - hidden * block_size
    rows = _block_rows(batch.block_table[seq, hidden : -(-seq_len // block_size)], row_step)
    is_causal = start == 0 and not capped and not sloped and (window is None or window >= seq_len)
    mask = None
    if not is_causal:
        device = kv_layer.device
        at = torch.arange(start - hidden * block_size, context_len, device=device)[:, None]
        positions = torch.arange(context_len, device=device)
        visible = positions <= at
        if window is not None:
            visible &= positions > at - window
        mask = _mask(visible, dtype, positions - at if sloped else None)[None, None]
    return _Piece(first, 1, query_len, context_len, rows, mask, is_causal=is_causal)


def _plan(
    batch: AttentionBatch, kv_layer: Tensor, dtype: torch.dtype, window: int | None, capped: bool, sloped: bool
) -> _GatherPlan:
    num_decodes = batch.num_decodes
    plan = _plan_decodes(batch, kv_layer, dtype, window, sloped) if num_decodes else _GatherPlan([], None, None)
    first = num_decodes
    for seq in range(num_decodes, batch.num_seqs):
        plan.pieces.append(_plan_chunk(batch, seq, first, kv_layer, dtype, window, capped, sloped))
        first += batch.query_lens_host[seq]
    return plan


_local = threading.local()


def _gather_space(num_elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Lend this thread's buffer for gathered keys and values: fresh memory would cost a page fault every 4 KiB, each layer."""
    spaces: dict[tuple[torch.dtype, torch.device], Tensor] = _local.__dict__.setdefault("spaces", {})
    space = spaces.get((dtype, device))
    if space is None or space.numel() < num_elements:
        with torch.inference_mode(False):  # so that it may be written to in any mode
            space = spaces[dtype, device] = torch.empty(num_elements, dtype=dtype, device=device)
    return space[:num_elements]


def _attend_by_scores(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    soft_cap: float | None,
    slopes: Tensor | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attend with explicit scores: q [batch, kv_heads, queries, head_dim], k and v [batch, kv_heads, context, head_dim].

    slopes, sinks: what broadcasts to [batch, kv_heads, queries, 1]; with slopes the mask has distances.
    """
    batch, num_heads, query_len, _ = q.shape
    keys, values = k.float().transpose(2, 3), v.float()
    step = max(1, _SCORES_NBYTES // (4 * batch * num_heads * keys.shape[3]))
    pieces = []
    for i in range(0, query_len, step):
        scores = torch.matmul(q[:, :, i : i + step].float(), keys)  # [batch, kv_heads, step, context]
        if soft_cap is None:
            scores.mul_(scale)
        else:
            scores.mul_(scale / soft_cap).tanh_().mul_(soft_cap)
        if mask is not None:
            added = _rows(mask, i, step)
            scores += added if slopes is None else added * _rows(slopes, i, step)
        if sinks is None:
            weights = scores.softmax(-1)
        else:
            sink = _rows(sinks, i, step).float().expand(*scores.shape[:3], 1)
            weights = torch.cat((scores, sink), -1).softmax(-1)[..., :-1]
        pieces.append(torch.matmul(weights, values).to(q.dtype))
    return torch.cat(pieces, dim=2)


def _rows(x: Tensor, first: int, num: int) -> Tensor:
    """Some of what is the same for all queries, or not."""
    return x if x.shape[2] == 1 else x[:, :, first : first + num]


def paged_attention_reference(
    q: Tensor,
    kv_layer: Tensor,
    batch: AttentionBatch,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend in plain torch: gather the blocks of similar sequences together, then one SDPA over them.

    Queries that share a KV head lie on the query axis for decodes (no mask between them) and on the batch
    axis, with K and V expanded by stride, for chunks (where the causal mask is the same for each), so K and V
    are never repeated.
    """
    _, num_heads, head_dim = q.shape
    num_blocks, _, block_size, num_kv_heads, _ = kv_layer.shape
    group = num_heads // num_kv_heads
    capped = soft_cap is not None or sinks is not None  # by scores that are written out
    key = ("gather", window, capped, slopes is not None)
    plan = batch.plans.get(key)
    if plan is None:
        plan = batch.plans[key] = _plan(batch, kv_layer, q.dtype, window, capped, slopes is not None)
    half = block_size * num_kv_heads * head_dim
    rows = kv_layer.as_strided(
        ((num_blocks - 1) * (kv_layer.stride(0) // half) + 2, half), (half, 1), kv_layer.storage_offset()
    )
    decodes = q[: batch.num_decodes] if plan.order is None else q.index_select(0, plan.order)
    outputs = []
    for piece in plan.pieces:
        gathered = _gather_space(piece.rows.shape[0] * half, kv_layer.dtype, kv_layer.device).view(-1, half)
        torch.index_select(rows, 0, piece.rows, out=gathered)
        if piece.tails is not None:
            gathered.view(-1, half // block_size).index_fill_(0, piece.tails, 0)
        k, v = gathered.view(2, piece.num_seqs, -1, num_kv_heads, head_dim)[:, :, : piece.context_len].transpose(2, 3)
        is_decode = piece.first < batch.num_decodes
        if is_decode:
            queries = decodes[piece.first : piece.first + piece.num_seqs].view(-1, num_kv_heads, group, head_dim)
        else:
            queries = q[piece.first : piece.first + piece.query_len].view(-1, num_kv_heads, group, head_dim)
            queries = queries.permute(2, 1, 0, 3)  # [group, kv_heads, queries, head_dim]
            k, v = k.expand(group, -1, -1, -1), v.expand(group, -1, -1, -1)
        if not capped and slopes is None:
            o = F.scaled_dot_product_attention(
                queries, k, v, attn_mask=piece.mask, is_causal=piece.is_causal, scale=scale
            )
        else:
            of_slopes, of_sinks = (
                None if each is None else each.view(1, num_kv_heads, group, 1) for each in (slopes, sinks)
            )
            if not is_decode:
                of_slopes, of_sinks = (None if each is None else each.transpose(0, 2) for each in (of_slopes, of_sinks))
            o = _attend_by_scores(queries, k, v, piece.mask, scale, soft_cap, of_slopes, of_sinks)
        outputs.append((o if is_decode else o.permute(2, 1, 0, 3)).flatten(1, 2))
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return output if plan.inverse is None else output.index_select(0, plan.inverse)
