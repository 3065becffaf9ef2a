"""Multiply by a weight so that a row's result depends on that row alone, bit for bit: y = x W^T + b, x
[tokens, inputs], W [outputs, inputs], b [outputs].

A library picks tiles, and splits of the inner dimension, by the number of rows, so the order of a row's additions changes
with its neighbours. Here every element is one chain over the inner dimension in fp32, in steps of the matrix instruction,
from first to last, for any number of rows; tiles change only which program computes it. That a device's matrix unit
keeps to this for every tile is tried once, before first use, and a tile whose bits differ is left out. Bound by the bytes of W at few
rows, by matrix arithmetic at many. Source: He et al., "Defeating Nondeterminism in LLM Inference".
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from baton.kernels.launch import num_sms, on_triton, tl, triton, upcasts_dot
from baton.kernels.launch_table import TileLaunch

# The first is the one that the others must agree with; then in the order of their size. Rows are never fewer than 64, which
# is the narrowest that a warp group's instruction takes: narrower tiles use another one, which may add in another order.
_TILES = (
    TileLaunch(64, 64, 64, 4, 3),
    TileLaunch(64, 32, 128, 4, 4),
    TileLaunch(64, 64, 128, 4, 4),
    TileLaunch(64, 128, 64, 4, 4),
    TileLaunch(128, 128, 64, 8, 4),
    TileLaunch(128, 256, 64, 8, 3),
)
_TILES_FP32 = (TileLaunch(64, 64, 32, 4, 2),)


def invariant_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply one row at a time: a library's choice for one row knows no other."""
    return torch.cat([F.linear(row, weight, bias) for row in torch.split(x, 1)])


def invariant_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Multiply to [tokens, outputs] in `out_dtype`, x's if None; rows of x may be strided, x and weight are of one dtype."""
    if not on_triton(x):
        return invariant_linear_reference(x, weight, bias).to(out_dtype or x.dtype)
    return _launch(x, weight, bias, _tile_for(x.shape[0], weight.shape[0], x.device, x.dtype), out_dtype or x.dtype)


# --- Triton -----------------------------------------------------------------------------------------


@cache
def _tile_for(num_rows: int, num_outputs: int, device: torch.device, dtype: torch.dtype) -> TileLaunch:
    """Choose the largest tile with a program for most of the device, no taller than the rows."""
    tiles = agreeing_tiles(device, dtype)
    for tile in reversed(tiles[1:]):
        num_programs = -(-num_rows // tile.block_m) * -(-num_outputs // tile.block_n)
        if tile.block_m <= max(64, num_rows) and 4 * num_programs >= 3 * num_sms(device):
            return tile
    return tiles[min(1, len(tiles) - 1)]


@cache
def agreeing_tiles(device: torch.device, dtype: torch.dtype) -> tuple[TileLaunch, ...]:
    """Find the tiles that compute the bits of the first one, and fit the device."""
    first, *others = _TILES_FP32 if dtype == torch.float32 else _TILES
    generator = torch.Generator(device).manual_seed(0)
    x, weight = (torch.randn(n, 1024, generator=generator, device=device, dtype=dtype) for n in (130, 300))
    expected = _launch(x, weight, None, first, dtype)
    agreeing = [first]
    for tile in others:
        try:
            if torch.equal(_launch(x, weight, None, tile, dtype), expected):
                agreeing.append(tile)
        except triton.runtime.errors.OutOfResources:
            continue
    return tuple(agreeing)


def run_every_tile(x: Tensor, weight: Tensor) -> None:
    """Multiply by every tile that may be chosen, into x's type and into fp32: each is compiled apart."""
    for tile in agreeing_tiles(x.device, x.dtype) if on_triton(x) else ():
        for out_dtype in (x.dtype, torch.float32):
            _launch(x, weight, None, tile, out_dtype)


def _launch(x: Tensor, weight: Tensor, bias: Tensor | None, tile: TileLaunch, out_dtype: torch.dtype) -> Tensor:
    num_rows, num_inputs = x.shape
    num_outputs = weight.shape[0]
    y = torch.empty((num_rows, num_outputs), dtype=out_dtype, device=x.device)
    if num_rows == 0:
        return y
    num_programs = triton.cdiv(num_rows, tile.block_m) * triton.cdiv(num_outputs, tile.block_n)
    _linear_kernel[(num_programs,)](
        x,
        weight,
        weight if bias is None else bias,
        y,
        num_rows,
        num_outputs,
        num_inputs,
        x.stride(0),
        weight.stride(0),
        HAS_BIAS=bias is not None,
        IS_WHOLE=num_inputs % tile.block_k == 0,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        UPCAST=upcasts_dot(x),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return y


@triton.jit(do_not_specialize=["num_rows"])
def _linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    num_rows,
    num_outputs,
    num_inputs,
    x_stride,
    weight_stride,
    HAS_BIAS: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    # Programs that run together take eight tiles of rows by as many of outputs as that allows, which share what they read.
    GROUP: tl.constexpr = 8
    num_tiles_m, num_tiles_n = tl.cdiv(num_rows, BLOCK_M), tl.cdiv(num_outputs, BLOCK_N)
    program = tl.program_id(0)
    first_m = program // (GROUP * num_tiles_n) * GROUP
    height = tl.minimum(num_tiles_m - first_m, GROUP)
    within = program % (GROUP * num_tiles_n)
    rows = ((first_m + within % height) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    outputs = (within // height * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    inside_x, inside_w = (rows < num_rows)[:, None], (outputs < num_outputs)[:, None]
    inputs = tl.arange(0, BLOCK_K)
    x_at = x_ptr + rows[:, None] * x_stride + inputs[None, :]
    w_at = weight_ptr + outputs[:, None] * weight_stride + inputs[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, num_inputs, BLOCK_K):
        if IS_WHOLE:
            x = tl.load(x_at, mask=inside_x, other=0.0)
            w = tl.load(w_at, mask=inside_w, other=0.0)
        else:
            inside = (start + inputs < num_inputs)[None, :]
            x = tl.load(x_at, mask=inside_x & inside, other=0.0)
            w = tl.load(w_at, mask=inside_w & inside, other=0.0)
        if UPCAST:
            x, w = x.to(tl.float32), w.to(tl.float32)
        acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
        x_at += BLOCK_K
        w_at += BLOCK_K
    if HAS_BIAS:
        acc += tl.load(bias_ptr + outputs, mask=outputs < num_outputs, other=0.0).to(tl.float32)[None, :]
    y_at = y_ptr + rows[:, None] * num_outputs + outputs[None, :]
    tl.store(y_at, acc.to(y_ptr.dtype.element_ty), mask=inside_x & (outputs < num_outputs)[None, :])
