"""Multiply by a weight and add a bias: y = x W^T + b, x [tokens, inputs], W [outputs, inputs].

On a GPU few rows are few_rows_linear's, where that is faster; the rest is cuBLAS through torch, which beats a Triton GEMM by a quarter
at many rows. On a CPU it is oneDNN with W packed into its tiles once, at load. Measured on one core of a server CPU
with AVX-512 (fp32, GFLOP/s; torch's default calls MKL, which takes its slower path on CPUs that are not Intel's):

    rows x outputs x inputs     F.linear   packed
    2048 x 2048 x 384                105      250
      64 x 2048 x 384                104      245
       8 x 2048 x 384                 71      175
       1 x all of a 14M model     6.2 ms   2.1 ms    (bound by reading W)

In bf16, where the processor multiplies it (AVX-512 BF16 or AMX; Zen 4, microseconds):

       1 x 2048 x 2048              359      133
      16 x 2048 x 2048              987      695
     512 x 1536 x 384      200 GFLOP/s       214

oneDNN makes kernels for each number of rows and keeps them for good, beside its cache that is bounded: 0.3 to 0.6 MiB for
each weight's shape, 2.6 MiB for each number of tokens that a small Llama has seen. So rows are padded to one of a few numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from baton.kernels.few_rows_linear import few_rows_linear, takes_few_rows


def packs(weight: Tensor) -> bool:
    """Whether `pack_weight` gains anything for a weight like this."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and _multiplies_bf16())


def _multiplies_bf16() -> bool:
    """Whether the processor has instructions for it; without, oneDNN converts each number."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def pack_weight(weight: Tensor) -> Tensor:
    """Lay a weight [outputs, inputs] out as `linear_packed` reads it: a copy in oneDNN's own format, of the same size."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def padded_rows(num_rows: int) -> int:
    """Say with how many rows so many are multiplied by a packed weight: up to 16 as they are, then one of eight an octave."""
    grain = 1 << max((num_rows - 1).bit_length() - 4, 0)
    return -(-num_rows // grain) * grain


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
    """Multiply to [tokens, outputs] in `out_dtype`, x's if None, by a weight as it is, [outputs, inputs]."""
    if takes_few_rows(x, weight):
        return few_rows_linear(x, weight, bias, out_dtype)
    if out_dtype is None or out_dtype == x.dtype:
        return F.linear(x, weight, bias)
    if x.is_cuda and bias is None:
        return torch.mm(x, weight.t(), out_dtype=out_dtype)
    return F.linear(x, weight, bias).to(out_dtype)


def linear_packed(
    x: Tensor, packed: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Multiply to [tokens, outputs] in `out_dtype`, x's if None, by a weight from `pack_weight`."""
    num_rows = len(x)
    if num_padded := padded_rows(num_rows) - num_rows:
        x = F.pad(x, (0, 0, 0, num_padded))
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    y = y[:num_rows]
    return y if out_dtype is None else y.to(out_dtype)
