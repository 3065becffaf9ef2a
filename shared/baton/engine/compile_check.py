"""Compile at start what a model runs, so that a kernel that does not compile is a message then, not a failed request.

Each operation runs once on few rows at the model's shapes and types. Triton keeps what it compiles on disk, so only a
machine's first start waits for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from baton.errors import KernelError
from baton.kernels.attention import paged_attention
from baton.kernels.attention_batch import AttentionBatch
from baton.kernels.few_rows_linear import few_rows_linear
from baton.kernels.invariant_attention import invariant_attention
from baton.kernels.invariant_linear import run_every_tile
from baton.kernels.join_attention import join_attention
from baton.kernels.kv_write import kv_write
from baton.kernels.launch import FEW_ROWS, triton_version, use_reference
from baton.kernels.launch_table import launches_on
from baton.kernels.moe import run_every_launch
from baton.kernels.moe_routing import route
from baton.kernels.moe_weights import ExpertWeights
from baton.kernels.rms_norm import add_rms_norm, rms_norm
from baton.kernels.rotary import rotary_kv_write
from baton.kernels.sample import derive_keys, greedy, logprobs, sample
from baton.kernels.sampling_batch import SamplingBatch
from baton.kernels.silu_mul import gelu_tanh_mul, silu_mul
from baton.kernels.token_counts import count_tokens
from baton.models.spec import LatentSpec, MoESpec
from baton.protocol import MAX_LOGPROBS

# Tokens, where the model takes so many: more than a split of a decode, so that splits are merged too.
_CONTEXT_LEN = 600
# Few rows, whose kernels overlap, and more: compiled apart.
_ROWS = (2, FEW_ROWS + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelShapes:
    """What of a model decides which kernels it runs, and as what they are compiled."""

    dtype: torch.dtype
    block_size: int
    max_model_len: int  # tokens of a block table's row
    max_num_seqs: int
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotations: tuple[
        tuple[int, bool], ...
    ]  # how much of head_dim turns in some layers, and whether pairs are neighbours
    writes_unrotated: bool  # some layers turn nothing
    has_rms_norm: bool
    has_head_norms: bool
    gate: Literal["silu", "gelu_tanh"] | None
    windows: tuple[int | None, ...]
    soft_cap: float | None
    has_slopes: bool
    has_sinks: bool = False
    deterministic: bool  # with the operations whose bits do not depend on the batch
    experts: tuple[MoESpec, ...] = ()  # each kind of layer that has them
    latent: LatentSpec | None = None  # what is cached in place of K and V, whose attention is plain torch

    @property
    def norm_widths(self) -> set[int]:
        """What RMSNorm takes the mean over, beside heads."""
        compressed = {self.latent.rank, self.latent.q_rank} if self.latent else set()
        return {self.hidden_size, *(width for width in compressed if width)}

    @property
    def input_widths(self) -> set[int]:
        """Inputs of the layers' products."""
        if self.latent is None:
            return {self.hidden_size, self.num_heads * self.head_dim, self.intermediate_size}
        gathered = self.num_heads * self.latent.value_dim
        return {self.hidden_size, self.latent.q_rank or self.hidden_size, gathered, self.intermediate_size}


@torch.inference_mode()
def compile_kernels(
    shapes: KernelShapes, device: torch.device, device_name: str, *, allow_reference: bool
) -> dict[str, str]:
    """Run each operation once; return the reason of each that does not compile, which is a reference from then on.

    Raises:
        KernelError: one does not compile, and no reference is allowed.
    """
    failed: dict[str, str] = {}
    for op, run in _operations(shapes, device):
        try:
            run()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Triton, its compiler passes and ptxas each raise what they like
            reason = _reason(error)
            if not allow_reference:
                way_out = (
                    "leave out --deterministic, which has no other way to compute it"
                    if shapes.deterministic
                    else f"give --allow-reference-kernels to run {op} in plain torch, which is slower"
                )
                raise KernelError(
                    f"the Triton kernel of {op} does not compile on {device_name} with Triton {triton_version()}: "
                    f"{reason}. Use another Triton version or device, or {way_out}."
                ) from error
            use_reference(op)
            failed[op] = reason
            run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return failed


def _reason(error: BaseException) -> str:
    """Put the innermost error in one line: what encloses it shows source code alone."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join((getattr(error, "error_message", None) or str(error)).split())
    return f"{type(error).__name__}: {text[:300]}".rstrip(": ")


def _operations(shapes: KernelShapes, device: torch.device) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each operation that a model of these shapes runs, by the name that `use_reference` knows."""
    if shapes.has_rms_norm:
        yield "rms_norm", lambda: _norms(shapes, device)
    if shapes.gate is not None:
        gate = silu_mul if shapes.gate == "silu" else gelu_tanh_mul
        yield f"{shapes.gate}_mul", lambda: _gate(gate, shapes, device)
    if shapes.rotations and not shapes.latent:
        yield "rotary_kv_write", lambda: _rotary(shapes, device)
    if shapes.writes_unrotated:
        yield "kv_write", lambda: _write(shapes, device)
    if shapes.deterministic:
        yield "invariant_linear", lambda: _invariant_products(shapes, device)
        yield "invariant_attention", lambda: _attention(invariant_attention, shapes, device)
    else:
        if shapes.dtype != torch.float32 and launches_on(device).few_rows is not None:
            yield "few_rows_linear", lambda: _products(shapes, device)
        if not shapes.latent:
            # Before the attention that tries it, which would be blamed for it.
            yield "join_attention", lambda: _join(shapes, device)
            yield "paged_attention", lambda: _attention(paged_attention, shapes, device)
    for spec in shapes.experts:
        yield "route", partial(_routes, spec, device)
        yield "moe", partial(_experts, spec, shapes, device)
    logits = torch.zeros(2, shapes.vocab_size, device=device)
    rows = torch.arange(2, device=device)
    counts = torch.zeros(2, shapes.vocab_size, dtype=torch.int32, device=device)
    yield "sample", lambda: _sampling(logits, counts, rows)
    yield "logprobs", lambda: _score(logits, rows)
    yield "count_tokens", lambda: count_tokens(counts, rows, rows)


def _norms(shapes: KernelShapes, device: torch.device) -> None:
    for num_rows, width in itertools.product(_ROWS, sorted(shapes.norm_widths)):
        x = torch.zeros(num_rows, width, dtype=shapes.dtype, device=device)
        rms_norm(x, x[0], 1e-5)
        add_rms_norm(x, torch.zeros_like(x), x[0], 1e-5)


def _gate(gate: Callable[[Tensor], Tensor], shapes: KernelShapes, device: torch.device) -> None:
    for num_rows in _ROWS:
        gate(torch.zeros(num_rows, 2 * shapes.intermediate_size, dtype=shapes.dtype, device=device))


def _num_outputs(shapes: KernelShapes) -> tuple[int, int]:
    """Few outputs for the layers, and for the vocabulary as many more as it has beyond a multiple of 16: compiled apart."""
    return 16, 16 + shapes.vocab_size % 16


def _invariant_products(shapes: KernelShapes, device: torch.device) -> None:
    x = torch.zeros(2 * 16, shapes.hidden_size, dtype=shapes.dtype, device=device)
    for num_outputs in _num_outputs(shapes):
        run_every_tile(x, x[:num_outputs])


def _products(shapes: KernelShapes, device: torch.device) -> None:
    """Multiply by few outputs, with each number of inputs that the model has, in each way that is compiled apart."""
    few, of_vocab = _num_outputs(shapes)
    launch = launches_on(device).few_rows
    assert launch is not None
    for num_inputs in sorted(shapes.input_widths):
        x = torch.zeros(FEW_ROWS, num_inputs, dtype=shapes.dtype, device=device)
        for num_rows in (1, launch.narrow.block_m):
            few_rows_linear(x[:num_rows], x[:few])
            few_rows_linear(x[:num_rows], x[:few], x[0, :few])
            few_rows_linear(x[:num_rows], x[:of_vocab], None, torch.float32)
        # wide; and tall in one part, in two and in four
        tall = [replace(launch.tall, filled_by=programs) for programs in (1, 2, 4, 8)]
        for way in (replace(launch, wide_from=1), *(replace(launch, tall=each) for each in tall)):
            few_rows_linear(x, x[:few], launch=way)
            few_rows_linear(x, x[:few], x[0, :few], launch=way)
            few_rows_linear(x, x[:of_vocab], None, torch.float32, way)


def _routes(spec: MoESpec, device: torch.device) -> None:
    bias = torch.zeros(spec.num_experts, device=device) if spec.score_bias else None
    for num_rows in _ROWS:
        route(torch.zeros(num_rows, spec.num_experts, device=device), spec.routing, bias)


def _experts(spec: MoESpec, shapes: KernelShapes, device: torch.device) -> None:
    """Compute with as many experts as the model has, of the memory of one."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=shapes.dtype, device=device)

    num, hidden = spec.num_experts, shapes.hidden_size
    weights = ExpertWeights(
        zeros(2 * spec.size, hidden).expand(num, -1, -1),
        zeros(hidden, spec.size).expand(num, -1, -1),
        zeros(num, 2 * spec.size) if spec.bias else None,
        zeros(num, hidden) if spec.bias else None,
    )
    x = zeros(FEW_ROWS + 1, hidden)
    chosen = torch.arange(spec.routing.num_chosen, dtype=torch.int32, device=device).repeat(len(x), 1)
    run_every_launch(x, chosen, torch.ones(chosen.shape, device=device), weights, spec.gate)


def _cache(shapes: KernelShapes, device: torch.device) -> Tensor:
    """Make a cache of one sequence and one layer, with the strides of several: [blocks, 2, block_size, kv_heads, head_dim]."""
    num_blocks = -(-_CONTEXT_LEN // shapes.block_size)
    shape = (num_blocks, 2, 2, shapes.block_size, shapes.num_kv_heads, shapes.head_dim)
    return torch.zeros(shape, dtype=shapes.dtype, device=device)[:, 0]


def _heads(shapes: KernelShapes, num_tokens: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Make q, k and v as a fused projection does, [tokens, heads or kv_heads, head_dim]."""
    widths = [shapes.num_heads, shapes.num_kv_heads, shapes.num_kv_heads]
    qkv = torch.zeros(num_tokens, sum(widths), shapes.head_dim, dtype=shapes.dtype, device=device)
    q, k, v = qkv.split_with_sizes(widths, 1)
    return q, k, v


def _rotary(shapes: KernelShapes, device: torch.device) -> None:
    norm = torch.zeros(shapes.head_dim, dtype=shapes.dtype, device=device) if shapes.has_head_norms else None
    cache = _cache(shapes, device)
    for num_rows, (dim, interleaved) in itertools.product(_ROWS, shapes.rotations):
        cos_sin = torch.zeros(num_rows, 2, dim // 2, device=device)
        at = torch.arange(num_rows, device=device)
        given = (*_heads(shapes, num_rows, device), cos_sin, at, cache, at)
        rotary_kv_write(*given, q_norm=norm, k_norm=norm, eps=1e-5, interleaved=interleaved)


def _write(shapes: KernelShapes, device: torch.device) -> None:
    cache = _cache(shapes, device)
    for num_rows in _ROWS:
        _, k, v = _heads(shapes, num_rows, device)
        kv_write(k, v, cache, torch.arange(num_rows, device=device))


def _join(shapes: KernelShapes, device: torch.device) -> None:
    heads = torch.zeros(2, shapes.num_heads, shapes.head_dim, dtype=shapes.dtype, device=device)
    sums = torch.zeros(2, shapes.num_heads, device=device)
    join_attention(heads, sums, heads, sums, torch.empty_like(heads))


def _attention(attend: Callable[..., Tensor], shapes: KernelShapes, device: torch.device) -> None:
    """Attend in a mixed step, with a decode of several splits, and in steps of decodes of each size that is compiled apart."""
    chunk_len = min(3, shapes.max_model_len)
    _attend(attend, shapes, device, [1, 1, chunk_len], 2)
    for doublings in range((shapes.max_num_seqs - 1).bit_length() + 1):
        _attend(attend, shapes, device, [1] * 2**doublings, 2**doublings)


def _attend(
    attend: Callable[..., Tensor], shapes: KernelShapes, device: torch.device, query_lens: list[int], num_decodes: int
) -> None:
    cache = _cache(shapes, device)
    table_len = -(-shapes.max_model_len // shapes.block_size)
    q, _, _ = _heads(shapes, sum(query_lens), device)
    of_heads = {}
    if shapes.has_slopes:
        of_heads["slopes"] = torch.zeros(shapes.num_heads, device=device)
    if shapes.has_sinks:
        of_heads["sinks"] = torch.zeros(shapes.num_heads, dtype=shapes.dtype, device=device)
    seq_lens = [min(_CONTEXT_LEN, shapes.max_model_len), *query_lens[1:]]
    for window in shapes.windows:
        batch = AttentionBatch(
            block_table=torch.zeros(len(seq_lens), table_len, dtype=torch.int32, device=device),
            query_start=torch.tensor([0, *query_lens]).cumsum(0).int().to(device),
            seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
            slots=torch.zeros(len(q), dtype=torch.int64, device=device),
            num_decodes=num_decodes,
            query_lens_host=query_lens,
            seq_lens_host=seq_lens,
        )
        attend(q, cache, batch, scale=1.0, window=window, soft_cap=shapes.soft_cap, **of_heads)


def _sampling(logits: Tensor, counts: Tensor, rows: Tensor) -> None:
    """Draw in each of the ways that are compiled apart."""
    ones = torch.ones(len(rows), device=logits.device)
    batch = SamplingBatch(
        temperature=ones, top_k=ones.int(), top_p=ones / 2, min_p=ones / 2, keys=derive_keys(rows, rows, rows)
    )
    greedy(logits)
    sample(logits, batch)
    batch.any_min_p = True
    sample(logits, batch)
    batch.any_top_k = batch.any_top_p = True
    sample(logits, batch)
    batch.allowed = torch.ones(logits.shape, dtype=torch.bool, device=logits.device)
    batch.bias_rows = batch.bias_token_ids = rows
    batch.bias_values = ones
    batch.repetition_penalty = batch.presence_penalty = batch.frequency_penalty = ones
    batch.counts, batch.count_rows = counts, rows
    sample(logits, batch)


def _score(logits: Tensor, token_ids: Tensor) -> None:
    """Score with as many of the likeliest tokens as a request may ask for: each doubling is compiled apart."""
    for num_top in (0, 1, 2, 4, 8, 16, MAX_LOGPROBS):
        logprobs(logits, token_ids, num_top)
