"""Time paged attention at an 8B model's heads: decodes by bytes of K and V, prompt chunks by arithmetic."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from baton.bench.kernels.attention_peers import chunk_peers, decode_peers
from baton.bench.kernels.measure import Row, time_peers, time_us
from baton.kernels.attention_batch import AttentionBatch
from baton.kernels.decode_attention import decode_attention, plan_decode
from baton.kernels.launch_table import DecodeLaunch, PrefillLaunch
from baton.kernels.library_attention import attend_chunk, shortest_query_len
from baton.kernels.prefill_attention import prefill_attention

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE, NUM_LAYERS = 32, 8, 128, 16, 16
NUM_BLOCKS = 16_500
SCALE = HEAD_DIM**-0.5
KV_NBYTES = KV_HEADS * HEAD_DIM * 4
"""Of a token, in one layer."""

DECODES: dict[str, list[int]] = {
    "1 x 1k": [1024],
    "8 x 1k": [1024] * 8,
    "32 x 1k": [1024] * 32,
    "128 x 1k": [1024] * 128,
    "256 x 1k": [1024] * 256,
    "32 x 4k": [4096] * 32,
    "1 x 32k": [32768],
    "64 x 3.5k": [3509] * 64,
    "64 x 50..4k": random.Random(0).choices(range(50, 4097), k=64),
}
CHUNKS: dict[str, list[tuple[int, int]]] = {
    "1 x 512": [(512, 512)],
    "1 x 2k": [(2048, 2048)],
    "1 x 8k": [(8192, 8192)],
    "1 x 32k": [(32768, 32768)],
    "512 after 3.5k": [(512, 4096)],
    "2k after 14k": [(2048, 16384)],
    "16 x 1k": [(1024, 1024)] * 16,
}
# Launches to compare: as many programs an SM as registers and shared memory hold, and one less.
DECODE_LAUNCHES = [
    DecodeLaunch(64, 4, 3, 3),
    DecodeLaunch(64, 4, 3, 2),
    DecodeLaunch(64, 4, 5, 2),
    DecodeLaunch(64, 2, 3, 4),
    DecodeLaunch(64, 2, 3, 3),
    DecodeLaunch(64, 2, 5, 2),
    DecodeLaunch(32, 2, 3, 5),
    DecodeLaunch(32, 2, 5, 4),
    DecodeLaunch(128, 4, 3, 2),
    DecodeLaunch(32, 4, 5, 4),
]
PREFILL_LAUNCHES = [
    PrefillLaunch(128, 128, 8, 3),
    PrefillLaunch(128, 64, 8, 3),
    PrefillLaunch(128, 64, 8, 5),
    PrefillLaunch(128, 64, 8, 7),
    PrefillLaunch(64, 64, 4, 5),
]


class Cache:
    """One pool of blocks of many layers, larger than any cache of the device."""

    def __init__(self) -> None:
        shape = (NUM_BLOCKS, NUM_LAYERS, 2, BLOCK_SIZE, KV_HEADS, HEAD_DIM)
        self.kv = torch.empty(shape, device="cuda", dtype=torch.bfloat16).normal_()

    def step(self, query_lens: Sequence[int], seq_lens: Sequence[int]) -> tuple[Tensor, AttentionBatch]:
        """Lay out a step over shuffled blocks."""
        num_blocks = [-(-n // BLOCK_SIZE) for n in seq_lens]
        table = torch.zeros(len(seq_lens), max(num_blocks), dtype=torch.int32)
        ids = (torch.randperm(NUM_BLOCKS - 1)[: sum(num_blocks)] + 1).to(torch.int32)
        for row, part in zip(table, torch.split(ids, num_blocks), strict=True):
            row[: len(part)] = part
        q = torch.randn(sum(query_lens), HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
        return q, AttentionBatch(
            block_table=table.cuda(),
            query_start=torch.tensor([0, *query_lens]).cumsum(0).int().cuda(),
            seq_lens=torch.tensor(seq_lens).int().cuda(),
            slots=torch.zeros(sum(query_lens), dtype=torch.int64, device="cuda"),
            num_decodes=len(query_lens) if max(query_lens) == 1 else 0,
            query_lens_host=list(query_lens),
            seq_lens_host=list(seq_lens),
        )


def decode_rows() -> Iterator[Row]:
    """Measure decodes."""
    cache = Cache()
    # FlashInfer's cache has one layer; two of them exceed the device's cache.
    layers = [cache.kv[:, layer].contiguous() for layer in range(2)]
    for name, lens in DECODES.items():
        q, batch = cache.step([1] * len(lens), lens)
        us, nbytes = _time_decode(cache, q, batch), sum(lens) * KV_NBYTES
        peers = time_peers(decode_peers(q, layers, batch, SCALE))
        shape = f"{name} ({nbytes / 1e6:.0f} MB)"
        yield Row("decode attention", shape, us, nbytes / us / 1e3, "GB/s", peers)


def chunk_rows() -> Iterator[Row]:
    """Measure prompt chunks: the kernel, and the library with its gather where it takes the shape."""
    cache = Cache()
    layer = cache.kv[:, 0].contiguous()
    for name, chunks in CHUNKS.items():
        q, batch = _chunk_step(cache, chunks)
        flops = _chunk_flops(chunks)
        us = _time_prefill(cache, q, batch)
        peers = time_peers(chunk_peers(q, layer, batch, SCALE))
        yield Row("prefill attention", name, us, flops / us / 1e6, "TFLOP/s", peers)
        if min(n for n, _ in chunks) >= shortest_query_len(q, cache.kv[:, 0], None, None):
            us = _time_library(cache, q, batch)
            yield Row("library attention", name, us, flops / us / 1e6, "TFLOP/s")


def sweep() -> Iterator[tuple[str, float, str, DecodeLaunch | PrefillLaunch]]:
    """Measure every launch that may be a device's entry in the table: shape, rate, its unit and the launch."""
    cache = Cache()
    for name in ("1 x 1k", "32 x 1k", "256 x 1k", "1 x 32k", "64 x 3.5k", "64 x 50..4k"):
        lens = DECODES[name]
        q, batch = cache.step([1] * len(lens), lens)
        for decode_launch in DECODE_LAUNCHES:
            us = _time_decode(cache, q, batch, decode_launch)
            yield name, sum(lens) * KV_NBYTES / us / 1e3, "GB/s", decode_launch
    for name in ("1 x 512", "1 x 8k", "512 after 3.5k"):
        q, batch = _chunk_step(cache, CHUNKS[name])
        for prefill_launch in PREFILL_LAUNCHES:
            us = _time_prefill(cache, q, batch, prefill_launch)
            yield name, _chunk_flops(CHUNKS[name]) / us / 1e6, "TFLOP/s", prefill_launch


def _time_decode(cache: Cache, q: Tensor, batch: AttentionBatch, launch: DecodeLaunch | None = None) -> float:
    """Time one layer in microseconds, the step's plan shared by all layers as in a model."""
    out = torch.empty_like(q)

    def step(_: None) -> None:
        plan = plan_decode(q, cache.kv[:, 0], batch, None, launch)
        for layer in range(NUM_LAYERS):
            decode_attention(q, cache.kv[:, layer], batch, plan, out, scale=SCALE, window=None, soft_cap=None)

    return time_us(step, [None], min_calls=2) / NUM_LAYERS


def _time_prefill(cache: Cache, q: Tensor, batch: AttentionBatch, launch: PrefillLaunch | None = None) -> float:
    out = torch.empty_like(q)

    def call(_: None) -> None:
        prefill_attention(q, cache.kv[:, 0], batch, out, scale=SCALE, window=None, soft_cap=None, launch=launch)

    return time_us(call, [None], min_calls=2)


def _time_library(cache: Cache, q: Tensor, batch: AttentionBatch) -> float:
    out = torch.empty_like(q)

    def call(_: None) -> None:
        first = 0
        for seq, n in enumerate(batch.query_lens_host):
            rows = slice(first, first + n)
            attend_chunk(q[rows], cache.kv[:, 0], batch, seq, SCALE, out[rows])
            first += n

    return time_us(call, [None], min_calls=2)


def _chunk_step(cache: Cache, chunks: Sequence[tuple[int, int]]) -> tuple[Tensor, AttentionBatch]:
    return cache.step([n for n, _ in chunks], [context for _, context in chunks])


def _chunk_flops(chunks: Sequence[tuple[int, int]]) -> float:
    """Count the products that the causal mask leaves."""
    return sum(4.0 * HEADS * HEAD_DIM * (n * context - n * (n - 1) / 2) for n, context in chunks)
