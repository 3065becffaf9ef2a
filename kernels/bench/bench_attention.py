"""Time paged attention at an 8B model's heads: decodes by bytes of K and V, prompt chunks by arithmetic,
beside torch's own.

    python3 kernels/bench/bench_attention.py [--sweep]

--sweep also times other launch choices: what the defaults in the kernels' files were chosen from.
"""

import argparse
import random
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from measure import Row, measure_ceilings, report, time_us
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from baton.kernels.attention import AttentionBatch
from baton.kernels.decode_attention import DecodeLaunch, decode_attention, plan_decode
from baton.kernels.prefill_attention import PrefillLaunch, prefill_attention

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE, NUM_LAYERS = 32, 8, 128, 16, 16
SCALE = HEAD_DIM**-0.5

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
# As many programs an SM as registers and shared memory hold, and one less.
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
    PrefillLaunch(128, 64, 8, 5),
    PrefillLaunch(128, 64, 8, 7),
    PrefillLaunch(64, 64, 4, 5),
]


class Cache:
    """One pool of blocks of many layers, larger than any cache of the device."""

    def __init__(self, num_blocks: int, heads: int = HEADS) -> None:
        shape = (num_blocks, NUM_LAYERS, 2, BLOCK_SIZE, KV_HEADS, HEAD_DIM)
        self.kv = torch.empty(shape, device="cuda", dtype=torch.bfloat16).normal_()
        self.heads = heads

    def step(self, query_lens: Sequence[int], seq_lens: Sequence[int]) -> tuple[Tensor, AttentionBatch]:
        """Lay out a step over shuffled blocks."""
        num_blocks = [-(-n // BLOCK_SIZE) for n in seq_lens]
        table = torch.zeros(len(seq_lens), max(num_blocks), dtype=torch.int32)
        ids = (torch.randperm(self.kv.shape[0] - 1)[: sum(num_blocks)] + 1).to(torch.int32)
        for row, part in zip(table, ids.split(num_blocks), strict=True):
            row[: len(part)] = part
        q = torch.randn(sum(query_lens), self.heads, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
        return q, AttentionBatch(
            block_table=table.cuda(),
            query_start=torch.tensor([0, *query_lens]).cumsum(0).int().cuda(),
            seq_lens=torch.tensor(seq_lens).int().cuda(),
            slots=torch.zeros(sum(query_lens), dtype=torch.int64, device="cuda"),
            num_decodes=len(query_lens) if max(query_lens) == 1 else 0,
            query_lens_host=list(query_lens),
            seq_lens_host=list(seq_lens),
        )


def time_decode(cache: Cache, q: Tensor, batch: AttentionBatch, launch: DecodeLaunch) -> float:
    """Give one layer's microseconds, the step's plan shared by all layers as in a model."""
    out = torch.empty_like(q)

    def step(_: None) -> None:
        plan = plan_decode(q, cache.kv[:, 0], batch, None, launch)
        for layer in range(NUM_LAYERS):
            decode_attention(q, cache.kv[:, layer], batch, plan, out, scale=SCALE, window=None, soft_cap=None)

    return time_us(step, [None], min_calls=2) / NUM_LAYERS


def decode_peer(lens: list[int]) -> float | None:
    """Time torch's SDPA over contiguous K and V of equal lengths: no paging to undo, the best that torch offers."""
    if len(set(lens)) > 1:
        return None
    sets = max(2, min(16, int(3e8 / (len(lens) * lens[0] * KV_HEADS * HEAD_DIM * 4))))
    shape = (len(lens), KV_HEADS, lens[0], HEAD_DIM)
    q = torch.randn(len(lens), KV_HEADS, HEADS // KV_HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    kvs = [torch.randn(2, *shape, device="cuda", dtype=torch.bfloat16) for _ in range(sets)]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return time_us(lambda kv: F.scaled_dot_product_attention(q, kv[0], kv[1], scale=SCALE), kvs)


def decode_rows(cache: Cache) -> list[Row]:
    """Measure decodes with the default launch."""
    rows = []
    for name, lens in DECODES.items():
        q, batch = cache.step([1] * len(lens), lens)
        us = time_decode(cache, q, batch, DecodeLaunch())
        nbytes = sum(lens) * KV_HEADS * HEAD_DIM * 4
        shape = f"{name} ({nbytes / 1e6:.0f} MB)"
        rows.append(Row("decode attention", shape, us, nbytes / us / 1e3, "GB/s", "SDPA", decode_peer(lens)))
    return rows


def chunk_flops(chunks: Sequence[tuple[int, int]]) -> float:
    """Count the products that the causal mask leaves."""
    return sum(4.0 * HEADS * HEAD_DIM * (n * context - n * (n - 1) / 2) for n, context in chunks)


def chunk_peers(q: Tensor, chunks: Sequence[tuple[int, int]]) -> dict[str, Callable[[None], object]]:
    """Give torch's own ways over contiguous K and V (what a gather from the cache would cost is not in them)."""
    lens = [context for _, context in chunks]
    k, v = (torch.randn(sum(lens), KV_HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    starts_q = torch.tensor([0, *(n for n, _ in chunks)]).cumsum(0).int().cuda()
    starts_k = torch.tensor([0, *lens]).cumsum(0).int().cuda()
    most = max(n for n, _ in chunks)

    def flash(_: None) -> object:
        return torch.ops.aten._flash_attention_forward(
            q, k, v, starts_q, starts_k, most, max(lens), 0.0, True, False, scale=SCALE
        )

    peers: dict[str, Callable[[None], object]] = {"flash varlen": flash}
    if all(n == context for n, context in chunks) and len(set(lens)) == 1:
        dense = [x.view(len(lens), lens[0], -1, HEAD_DIM).transpose(1, 2) for x in (q, k, v)]

        def cudnn(_: None) -> object:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return F.scaled_dot_product_attention(*dense, is_causal=True, scale=SCALE, enable_gqa=True)

        peers["cuDNN"] = cudnn
    return peers


def time_prefill(
    cache: Cache, q: Tensor, batch: AttentionBatch, launch: PrefillLaunch | None = None
) -> float:
    """Give the microseconds of one launch."""
    out = torch.empty_like(q)

    def call(_: None) -> None:
        prefill_attention(
            q, cache.kv[:, 0], batch, out, scale=SCALE, window=None, soft_cap=None, launch=launch
        )

    return time_us(call, [None], min_calls=2)


def chunk_rows(cache: Cache) -> list[Row]:
    """Measure prompt chunks with the default launch."""
    rows = []
    for name, chunks in CHUNKS.items():
        q, batch = cache.step([n for n, _ in chunks], [context for _, context in chunks])
        us, flops = time_prefill(cache, q, batch), chunk_flops(chunks)
        for peer, call in chunk_peers(q, chunks).items():
            try:
                peer_us = time_us(call, [None], min_calls=2)
            except RuntimeError as error:
                print(f"{peer} at {name}: {str(error)[:200]}")
                continue
            rows.append(Row("prefill attention", name, us, flops / us / 1e6, "TFLOP/s", peer, peer_us))
    return rows


def sweep(cache: Cache) -> None:
    """Print the time of every launch choice."""
    for name in ("1 x 1k", "32 x 1k", "256 x 1k", "1 x 32k", "64 x 3.5k", "64 x 50..4k"):
        lens = DECODES[name]
        q, batch = cache.step([1] * len(lens), lens)
        nbytes = sum(lens) * KV_HEADS * HEAD_DIM * 4
        for launch in DECODE_LAUNCHES:
            us = time_decode(cache, q, batch, launch)
            print(f"{name}: {us:.1f} us, {nbytes / us / 1e3:.0f} GB/s, {launch}", flush=True)
    for name in ("1 x 512", "1 x 8k", "512 after 3.5k"):
        chunks = CHUNKS[name]
        q, batch = cache.step([n for n, _ in chunks], [context for _, context in chunks])
        for launch in PREFILL_LAUNCHES:
            us = time_prefill(cache, q, batch, launch)
            print(f"{name}: {us:.1f} us, {chunk_flops(chunks) / us / 1e6:.0f} TFLOP/s, {launch}", flush=True)


def gather_row(cache: Cache) -> Row:
    """Measure what a library call would cost before it starts: 8k tokens of K and V out of the cache."""
    layer = cache.kv[:, 0]
    half = BLOCK_SIZE * KV_HEADS * HEAD_DIM
    halves = layer.as_strided((layer.shape[0] - 1, 2, half), (layer.stride(0), half, 1))
    sets = [torch.randperm(layer.shape[0] - 1, device="cuda")[:512] for _ in range(4)]
    us = time_us(lambda ids: halves.index_select(0, ids), sets)
    return Row("gather K and V", "8k tokens", us, 4 * 512 * half * 2 / us / 1e3, "GB/s")


def rows() -> list[Row]:
    """Measure decodes and chunks."""
    cache = Cache(16_500)
    return [*decode_rows(cache), gather_row(cache), *chunk_rows(cache)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweep", action="store_true")
    if parser.parse_args().sweep:
        sweep(Cache(16_500))
    report(rows(), measure_ceilings())
