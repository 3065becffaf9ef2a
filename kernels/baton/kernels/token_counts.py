"""Count each row's tokens where they are drawn, so that penalties need no token on the host.

counts [rows, vocab] int32: the low 30 bits say how often the token was drawn, bit 30 that the prompt has it. A step
adds its own draws, counts[rows[i], token_ids[i]] += 1, and the next step finds them. Bound by the launch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from baton.kernels.launch import on_triton, tl, triton

IN_PROMPT = 1 << 30
NUM_DRAWN = IN_PROMPT - 1


def row_of(prompt_ids: Sequence[int], drawn_ids: Sequence[int], vocab_size: int) -> Tensor:
    """Count on the host what a sequence has so far: its row, [vocab] int32."""
    row = torch.bincount(torch.tensor(drawn_ids, dtype=torch.int64), minlength=vocab_size).to(torch.int32)
    row[torch.tensor(prompt_ids, dtype=torch.int64)] |= IN_PROMPT
    return row


# --- reference -----------------------------------------------------------------------------------------


def count_tokens_reference(counts: Tensor, rows: Tensor, token_ids: Tensor) -> None:
    """Count in plain torch."""
    counts[rows, token_ids] += 1


# --- public -----------------------------------------------------------------------------------------


def count_tokens(counts: Tensor, rows: Tensor, token_ids: Tensor) -> None:
    """Add one to counts[rows[i], token_ids[i]], for rows ([N] int64) that are all different."""
    if not on_triton(counts, "count_tokens"):
        count_tokens_reference(counts, rows, token_ids)
    elif num_rows := rows.shape[0]:
        _count_kernel[(triton.cdiv(num_rows, 128),)](
            counts, rows, token_ids, num_rows, counts.stride(0), BLOCK=128, num_warps=4
        )


# --- Triton -----------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["rows_ptr"])
def _count_kernel(counts_ptr, rows_ptr, ids_ptr, num_rows, stride, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < num_rows
    rows = tl.load(rows_ptr + i, mask=inside, other=0)
    at = counts_ptr + rows * stride + tl.load(ids_ptr + i, mask=inside, other=0)
    tl.store(at, tl.load(at, mask=inside, other=0) + 1, mask=inside)
