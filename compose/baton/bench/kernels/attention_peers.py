"""Others' attention on the shapes of attention.py: torch's own, and FlashInfer and FlashAttention where they are installed.

FlashInfer reads the same paged blocks; all others get contiguous K and V, and pay for no gather.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from baton.bench.kernels.measure import time_us
from baton.kernels.attention_batch import AttentionBatch

Calls = dict[str, Callable[[], float]]

_FLASH = {"flash_attn": "FlashAttention 2", "flash_attn_interface": "FlashAttention 3"}
_WORKSPACE_NBYTES = 256 << 20  # as FlashInfer's own examples and benches take
_SETS_NBYTES = 3e8  # several times the cache of any device


def decode_peers(q: Tensor, kv_layers: list[Tensor], batch: AttentionBatch, scale: float) -> Calls:
    """What times others' decodes, by name: contiguous K and V only where all lengths are equal."""
    calls: Calls = {}
    lens = list(batch.seq_lens_host)
    if len(set(lens)) == 1:
        contiguous = functools.partial(_contiguous, len(lens), lens[0], *kv_layers[0].shape[3:])
        calls["SDPA"] = lambda: _sdpa_decode(q, contiguous(), scale)
        for module, name in _installed(_FLASH):
            calls[name] = functools.partial(_flash_decode, module, q, contiguous, batch.seq_lens, scale)
    if importlib.util.find_spec("flashinfer"):
        calls["FlashInfer"] = lambda: _flashinfer_decode(q, kv_layers, batch, scale)
    return calls


def chunk_peers(q: Tensor, kv_layer: Tensor, batch: AttentionBatch, scale: float) -> Calls:
    """What times others' prompt chunks, by name."""
    lens, query_lens = list(batch.seq_lens_host), list(batch.query_lens_host)
    num_kv_heads, head_dim = kv_layer.shape[3:]
    k, v = (torch.randn(sum(lens), num_kv_heads, head_dim, device=q.device, dtype=q.dtype) for _ in range(2))
    starts_k = torch.tensor([0, *lens]).cumsum(0).int().to(q.device)
    sizes = (batch.query_start, starts_k, max(query_lens), max(lens))

    def flash(_: None) -> object:
        return torch.ops.aten._flash_attention_forward(q, k, v, *sizes, 0.0, True, False, scale=scale)

    calls: Calls = {"torch flash": lambda: _time_chunk(flash)}
    if query_lens == lens and len(set(lens)) == 1:
        dense_q, dense_k, dense_v = (x.view(len(lens), lens[0], -1, head_dim).transpose(1, 2) for x in (q, k, v))

        def cudnn(_: None) -> object:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return F.scaled_dot_product_attention(
                    dense_q, dense_k, dense_v, is_causal=True, scale=scale, enable_gqa=True
                )

        calls["torch cuDNN"] = lambda: _time_chunk(cudnn)
    for module, name in _installed(_FLASH):
        calls[name] = functools.partial(_flash_chunk, module, (q, k, v, *sizes), scale)
    if importlib.util.find_spec("flashinfer"):
        calls["FlashInfer"] = lambda: _flashinfer_chunk(q, kv_layer, batch, scale)
    return calls


def _flash_chunk(module: Any, given: tuple[Any, ...], scale: float) -> float:
    return _time_chunk(lambda _: module.flash_attn_varlen_func(*given, softmax_scale=scale, causal=True))


def _installed(names: dict[str, str]) -> list[tuple[Any, str]]:
    return [(import_module(module), name) for module, name in names.items() if importlib.util.find_spec(module)]


def _time_chunk(call: Callable[[None], object]) -> float:
    return time_us(call, [None], min_calls=2)


def _contiguous(num_seqs: int, length: int, num_kv_heads: int, head_dim: int) -> list[Tensor]:
    """Make sets of K and V, [2, num_seqs, length, kv_heads, head_dim], together larger than the cache."""
    shape = (2, num_seqs, length, num_kv_heads, head_dim)
    num_sets = max(2, min(16, int(_SETS_NBYTES / (num_seqs * length * num_kv_heads * head_dim * 4))))
    return [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(num_sets)]


def _sdpa_decode(q: Tensor, kvs: list[Tensor], scale: float) -> float:
    """Time SDPA with the heads of a group on the query axis: nothing to mask, the best that torch offers."""
    queries = q.view(len(q), kvs[0].shape[3], -1, q.shape[2])
    heads_first = [kv.transpose(2, 3).contiguous() for kv in kvs]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return time_us(lambda kv: F.scaled_dot_product_attention(queries, kv[0], kv[1], scale=scale), heads_first)


def _flash_decode(
    module: Any, q: Tensor, contiguous: Callable[[], list[Tensor]], seq_lens: Tensor, scale: float
) -> float:
    def attend(kv: Tensor) -> object:
        return module.flash_attn_with_kvcache(
            q[:, None], kv[0], kv[1], cache_seqlens=seq_lens, softmax_scale=scale, causal=True
        )

    return time_us(attend, contiguous())


def _pages(batch: AttentionBatch, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make FlashInfer's page table: starts [num_seqs + 1], block ids in one row, tokens of each last block."""
    num_blocks = [-(-n // block_size) for n in batch.seq_lens_host]
    ids = torch.cat([row[:n] for row, n in zip(batch.block_table, num_blocks, strict=True)])
    starts = torch.tensor([0, *num_blocks]).cumsum(0).int()
    last = torch.tensor([(n - 1) % block_size + 1 for n in batch.seq_lens_host]).int()
    return starts.to(ids.device), ids, last.to(ids.device)


def _flashinfer_decode(q: Tensor, kv_layers: list[Tensor], batch: AttentionBatch, scale: float) -> float:
    _, _, block_size, num_kv_heads, head_dim = kv_layers[0].shape
    workspace = torch.empty(_WORKSPACE_NBYTES, dtype=torch.uint8, device=q.device)
    wrapper = import_module("flashinfer").BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
    wrapper.plan(
        *_pages(batch, block_size),
        q.shape[1],
        num_kv_heads,
        head_dim,
        block_size,
        q_data_type=q.dtype,
        kv_data_type=q.dtype,
        sm_scale=scale,
    )
    return time_us(lambda kv: wrapper.run(q, kv), kv_layers)


def _flashinfer_chunk(q: Tensor, kv_layer: Tensor, batch: AttentionBatch, scale: float) -> float:
    _, _, block_size, num_kv_heads, head_dim = kv_layer.shape
    workspace = torch.empty(_WORKSPACE_NBYTES, dtype=torch.uint8, device=q.device)
    wrapper = import_module("flashinfer").BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
    wrapper.plan(
        batch.query_start,
        *_pages(batch, block_size),
        q.shape[1],
        num_kv_heads,
        head_dim,
        block_size,
        causal=True,
        q_data_type=q.dtype,
        kv_data_type=q.dtype,
        sm_scale=scale,
    )
    return _time_chunk(lambda _: wrapper.run(q, kv_layer))
