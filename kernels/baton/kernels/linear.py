"""Multiply by a weight and add a bias: y = x W^T + b, x [tokens, inputs], W [outputs, inputs].

On a GPU this is cuBLAS through torch: at large M the vendor's library beats a Triton GEMM by a quarter, and a decode step is bound
by the bytes of W either way. On a CPU it is oneDNN with W packed into its tiles once, at load. Measured on one core of a server CPU
with AVX-512 (fp32, GFLOP/s; torch's default calls MKL, which takes its slower path on CPUs that are not Intel's):

    rows x outputs x inputs     F.linear   packed
    2048 x 2048 x 384                105      250
      64 x 2048 x 384                104      245
       8 x 2048 x 384                 71      175
       1 x all of a 14M model     6.2 ms   2.1 ms    (bound by reading W)
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def packs(weight: Tensor) -> bool:
    """Say whether `pack_weight` gains anything for a weight like this."""
    return (
        weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    )


def pack_weight(weight: Tensor) -> Tensor:
    """Lay a weight [outputs, inputs] out as `linear_packed` reads it: a copy in oneDNN's own format, of the same size."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Give [tokens, outputs] for a weight as it is, [outputs, inputs]."""
    return F.linear(x, weight, bias)


def linear_packed(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """Give [tokens, outputs] for a weight from `pack_weight`."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
