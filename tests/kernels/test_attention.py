import math

import pytest
import torch

from baton.kernels import library_attention
from baton.kernels.attention import paged_attention
from baton.kernels.attention_batch import AttentionBatch
from baton.kernels.attention_reference import paged_attention_reference
from baton.kernels.invariant_attention import invariant_attention
from baton.kernels.prefill_attention import prefill_attention

NUM_LAYERS, LAYER = 3, 1
Step = tuple[list[int], list[tuple[int, int]]]
"""Context lengths of decodes, (queries, context) of chunks."""


def _step(decodes, chunks, num_heads, num_kv_heads, head_dim, *, block_size=16, dtype=torch.float32, device="cpu"):
    """Lay out a mixed step over a shuffled cache: context lengths of decodes, (queries, context) of chunks."""
    query_lens = [1] * len(decodes) + [n for n, _ in chunks]
    seq_lens = list(decodes) + [context for _, context in chunks]
    num_blocks = [-(-n // block_size) for n in seq_lens]
    kv = torch.randn(sum(num_blocks) + 3, NUM_LAYERS, 2, block_size, num_kv_heads, head_dim).to(dtype)
    ids = torch.randperm(sum(num_blocks)) + 1
    table = torch.zeros(len(seq_lens), max(num_blocks) + 1, dtype=torch.int32)
    begin = 0
    for i, n in enumerate(num_blocks):
        table[i, :n] = ids[begin : begin + n]
        # What lies past a sequence's end, in its last block, is not its own.
        if seq_lens[i] % block_size:
            kv[ids[begin + n - 1], :, :, seq_lens[i] % block_size :] = float("nan")
        begin += n
    num_tokens = sum(query_lens)
    q = torch.randn(num_tokens, num_heads + 2 * num_kv_heads, head_dim).to(dtype)[:, :num_heads]
    batch = AttentionBatch(
        block_table=table.to(device),
        query_start=torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32).to(device),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
        slots=torch.zeros(num_tokens, dtype=torch.int64, device=device),
        num_decodes=len(decodes),
        query_lens_host=query_lens,
        seq_lens_host=seq_lens,
    )
    return q.to(device), kv.to(device), batch


def _dense(q, kv_layer, batch, scale, window=None, soft_cap=None, slopes=None, sinks=None):
    """Attend by the formula, one sequence at a time, in float64."""
    _, _, block_size, num_kv_heads, head_dim = kv_layer.shape
    group = q.shape[1] // num_kv_heads
    outputs, begin = [], 0
    for i, (n, context) in enumerate(zip(batch.query_lens_host, batch.seq_lens_host, strict=True)):
        blocks = kv_layer[batch.block_table[i, : -(-context // block_size)].long()].double()
        k, v = (blocks[:, j].reshape(-1, num_kv_heads, head_dim)[:context].repeat_interleave(group, 1) for j in (0, 1))
        scores = torch.einsum("qhd,khd->hqk", q[begin : begin + n].double(), k) * scale
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        at, j = torch.arange(context - n, context)[:, None], torch.arange(context)
        if slopes is not None:
            scores = scores + slopes.double()[:, None, None] * (j - at).to(scores.device)
        visible = (j <= at) & (j > at - (window or context + 1))
        scores = scores.masked_fill(~visible.to(scores.device), -math.inf)
        if sinks is not None:
            scores = torch.cat((scores, sinks.double()[:, None, None].expand(-1, n, 1)), -1)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., :context], v))
        begin += n
    return torch.cat(outputs)


DECODES: Step = ([5, 17, 700, 16, 1], [])
CHUNKS: Step = ([], [(7, 7), (33, 50), (20, 200), (1, 1)])
MIXED: Step = ([3, 300, 40], [(5, 20), (64, 64), (1, 33)])


@pytest.mark.parametrize("step", [DECODES, CHUNKS, MIXED], ids=["decodes", "chunks", "mixed"])
@pytest.mark.parametrize(
    ("dtype", "num_heads", "num_kv_heads", "head_dim", "window", "soft_cap"),
    [
        (torch.float32, 6, 2, 64, None, None),
        (torch.float32, 4, 4, 20, 37, None),
        (torch.float32, 3, 1, 16, None, 5.0),
        (torch.float32, 4, 2, 80, 1, None),
        (torch.float32, 4, 2, 32, 16, 3.0),
        (torch.bfloat16, 8, 2, 96, None, None),
        (torch.bfloat16, 5, 5, 24, 50, 8.0),
        (torch.float16, 6, 1, 40, None, None),
        (torch.float16, 2, 2, 256, 10_000, None),
    ],
)
def test_attention_is_its_formula(
    step, dtype, num_heads, num_kv_heads, head_dim, window, soft_cap, device, assert_close
):
    decodes, chunks = step
    q, kv, batch = _step(decodes, chunks, num_heads, num_kv_heads, head_dim, dtype=dtype, device=device)
    scale = head_dim**-0.5
    o = paged_attention(q, kv[:, LAYER], batch, scale=scale, window=window, soft_cap=soft_cap)
    assert o.dtype == dtype
    assert_close(o, _dense(q, kv[:, LAYER], batch, scale, window, soft_cap))


@pytest.mark.parametrize("step", [DECODES, CHUNKS, MIXED], ids=["decodes", "chunks", "mixed"])
@pytest.mark.parametrize(
    ("dtype", "num_heads", "num_kv_heads", "window", "soft_cap"),
    [
        (torch.float32, 3, 3, None, None),
        (torch.float32, 6, 2, 37, None),
        (torch.float32, 4, 1, None, 5.0),
        (torch.bfloat16, 6, 2, None, None),
    ],
)
def test_slopes_lower_scores_by_distance(step, dtype, num_heads, num_kv_heads, window, soft_cap, device, assert_close):
    q, kv, batch = _step(*step, num_heads, num_kv_heads, 32, dtype=dtype, device=device)
    options = {"window": window, "soft_cap": soft_cap}
    slopes = torch.tensor([0.5, 0.03, 0.25, 0.1, 0.002, 1.0], device=device)[:num_heads]
    o = paged_attention(q, kv[:, LAYER], batch, scale=0.3, slopes=slopes, **options)
    assert_close(o, _dense(q, kv[:, LAYER], batch, 0.3, slopes=slopes, **options))


@pytest.mark.parametrize("attend", [paged_attention, invariant_attention])
@pytest.mark.parametrize(
    ("step", "window", "soft_cap"),
    [(DECODES, None, None), (MIXED, 37, None), (MIXED, None, 5.0)],
    ids=["decodes", "window", "cap"],
)
def test_a_sink_takes_its_part_of_the_softmax(attend, step, window, soft_cap, device, assert_close):
    q, kv, batch = _step(*step, 6, 2, 24, device=device)
    sinks = 3 * torch.randn(6, device=device)
    sinks[0], sinks[1] = -100.0, 200.0  # nothing, and all
    o = attend(q, kv[:, LAYER], batch, scale=0.3, window=window, soft_cap=soft_cap, sinks=sinks)
    assert_close(o, _dense(q, kv[:, LAYER], batch, 0.3, window, soft_cap, sinks=sinks))
    assert float(o[:, 1].abs().max()) < 1e-6


@pytest.mark.parametrize("block_size", [1, 8, 32])
def test_any_block_size_works(block_size, device, assert_close):
    q, kv, batch = _step([40, 5], [(9, 30)], 4, 2, 16, block_size=block_size, device=device)
    assert_close(paged_attention(q, kv[:, LAYER], batch, scale=0.3), _dense(q, kv[:, LAYER], batch, 0.3))


def test_layers_and_windows_of_a_step_share_a_batch(device, assert_close):
    q, kv, batch = _step([40, 300], [(9, 30)], 4, 2, 16, device=device)
    for layer in range(NUM_LAYERS):
        for window in (None, 20):
            o = paged_attention(q, kv[:, layer], batch, scale=0.3, window=window)
            assert_close(o, _dense(q, kv[:, layer], batch, 0.3, window))


@pytest.mark.parametrize("context", [1, 255, 256, 257, 600])
def test_a_decode_does_not_depend_on_its_neighbours(context, device, is_kernel, assert_close):
    q, kv, batch = _step([context, 30, 511, 64], [(8, 8)], 4, 2, 32, device=device)
    together = paged_attention(q, kv[:, LAYER], batch, scale=0.2)[:1]
    single = AttentionBatch(
        block_table=batch.block_table[:1],
        query_start=batch.query_start[:2],
        seq_lens=batch.seq_lens[:1],
        slots=batch.slots[:1],
        num_decodes=1,
        query_lens_host=[1],
        seq_lens_host=[context],
    )
    alone = paged_attention(q[:1], kv[:, LAYER], single, scale=0.2)
    if is_kernel:
        assert torch.equal(alone, together)
    else:
        assert_close(alone, together)


def test_many_groups_of_decodes_come_back_in_order(device, assert_close):
    lens = [1 + 37 * i % 900 for i in range(23)]
    q, kv, batch = _step(lens, [(3, 10)], 2, 1, 8, device=device)
    assert_close(paged_attention(q, kv[:, LAYER], batch, scale=0.3), _dense(q, kv[:, LAYER], batch, 0.3))


def test_padding_rows_are_harmless(device, assert_close):
    q, kv, batch = _step([20, 300, 1], [], 4, 2, 16, device=device)
    batch.seq_lens[2] = 0
    batch.seq_lens_host = [20, 300, 0]
    batch.block_table[2] = 0
    o = paged_attention(q, kv[:, LAYER], batch, scale=0.3)
    batch.seq_lens_host, batch.query_lens_host = [20, 300], [1, 1]
    assert_close(o[:2], _dense(q, kv[:, LAYER], batch, 0.3))


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(
    ("decodes", "chunks"),
    [([3, 300, 40], [(5, 20), (64, 64), (2, 33)]), ([], [(70, 90)]), ([9] * 6, [(2, 2)]), ([1], [])],
)
def test_a_step_with_room_for_more_gives_the_same(decodes, chunks, window, device, is_kernel, assert_close):
    """Lay a step out as a captured one: rows for ten decodes and five chunks, and tokens that nobody has."""
    if not is_kernel:
        pytest.skip("only the kernels read a step's layout on the device")
    q, kv, batch = _step(decodes, chunks, 4, 2, 16, device=device)
    num_decodes, num_tokens = len(decodes), q.shape[0]
    rows = [*range(num_decodes), *range(10, 10 + len(chunks))]
    padded = AttentionBatch(
        block_table=torch.zeros(15, batch.block_table.shape[1], dtype=torch.int32, device=device),
        query_start=torch.full((16,), num_decodes, dtype=torch.int32, device=device),
        seq_lens=torch.zeros(15, dtype=torch.int32, device=device),
        slots=torch.zeros(160, dtype=torch.int64, device=device),
        num_decodes=10,
        query_lens_host=[1] * 15,
        seq_lens_host=[],
    )
    padded.block_table[rows], padded.seq_lens[rows] = batch.block_table, batch.seq_lens
    padded.query_start[: num_decodes + 1] = batch.query_start[: num_decodes + 1]
    padded.query_start[10 : 11 + len(chunks)] = batch.query_start[num_decodes:]
    padded.query_start[10 + len(chunks) :] = num_tokens
    room = torch.full((160, *q.shape[1:]), math.nan, device=device)
    room[:num_tokens] = q
    o = paged_attention(room, kv[:, LAYER], padded, scale=0.3, window=window)
    assert torch.equal(o[:num_tokens], paged_attention(q, kv[:, LAYER], batch, scale=0.3, window=window))
    assert_close(o[:num_tokens], _dense(q, kv[:, LAYER], batch, 0.3, window))


@pytest.mark.parametrize("attend", [paged_attention, invariant_attention])
@pytest.mark.parametrize("window", [1, 20, 100])
def test_what_a_window_has_passed_may_hold_anything(attend, window, device, assert_close):
    """Its blocks were given back: in the table stands the scratch block, where rows of padding write, maybe NaN."""
    step = [5, 300, 200], [(7, 150), (40, 200), (64, 64)]
    q, kv, batch = _step(*step, 4, 2, 32, dtype=torch.bfloat16, device=device)
    expected = _dense(q, kv[:, LAYER], batch, 0.3, window)
    kv[0] = math.nan
    for row, query_len, seq_len in zip(batch.block_table, batch.query_lens_host, batch.seq_lens_host, strict=True):
        row[: max(0, seq_len - query_len - window + 1) // 16] = 0
    assert_close(attend(q, kv[:, LAYER], batch, scale=0.3, window=window), expected)


def test_very_long_contexts_use_larger_splits(device, assert_close):
    q, kv, batch = _step([20_000, 50], [], 2, 1, 16, device=device)
    assert_close(paged_attention(q, kv[:, LAYER], batch, scale=0.3), _dense(q, kv[:, LAYER], batch, 0.3))


def test_the_reference_writes_in_and_out_of_inference_mode():
    q, kv, batch = _step([40, 5], [(9, 30)], 4, 2, 16)
    with torch.inference_mode():
        inside = paged_attention_reference(q, kv[:, LAYER], batch, scale=0.3)
    batch.plans.clear()
    assert torch.equal(inside, paged_attention_reference(q, kv[:, LAYER], batch, scale=0.3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_one_cuda_graph_serves_all_lengths(assert_close):
    q, kv, batch = _step([700, 40, 1, 300], [], 8, 2, 64, dtype=torch.bfloat16, device="cuda")
    paged_attention(q, kv[:, LAYER], batch, scale=0.125)  # compiles
    batch.plans.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = [paged_attention(q, kv[:, layer], batch, scale=0.125) for layer in range(NUM_LAYERS)]
    for lens in ([700, 40, 1, 300], [3, 39, 0, 257], [513, 1, 1, 16]):
        batch.seq_lens.copy_(torch.tensor(lens))
        graph.replay()
        kept = [i for i, n in enumerate(lens) if n]
        batch.seq_lens_host, batch.query_lens_host = [lens[i] for i in kept], [1] * len(kept)
        table = batch.block_table
        batch.block_table = table[kept]
        for layer in range(NUM_LAYERS):
            assert_close(out[layer][kept], _dense(q[kept], kv[:, layer].nan_to_num(), batch, 0.125))
        batch.block_table = table


def test_a_long_chunk_is_joined_of_itself_and_its_prefix(monkeypatch, assert_close):
    """Check what surrounds the library's call, with the call done by plain arithmetic; it sees few lengths."""
    seen = set()

    def call(q, k, v, scale, is_causal):
        seen.add((len(q), len(k), is_causal))
        k, v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->qhk", q.double(), k) * scale
        if is_causal:
            scores.masked_fill_(~torch.ones(len(q), len(q)).tril().bool()[:, None], -math.inf)
        o = torch.einsum("qhk,khd->qhd", scores.softmax(-1), v)
        return o.to(q.dtype).contiguous(), scores.logsumexp(-1).float()

    monkeypatch.setattr(library_attention, "_call", call)
    monkeypatch.setattr(library_attention, "_LENGTH_STEP", 16)
    chunks = [(30, 30), (20, 100), (7, 8), (16, 48), (33, 63), (1, 112)]
    q, kv, batch = _step([], chunks, 4, 2, 16)
    out = torch.empty_like(q)
    first = 0
    for seq, (query_len, _) in enumerate(chunks):
        rows = slice(first, first + query_len)
        library_attention.attend_chunk(q[rows], kv[:, LAYER], batch, seq, 0.3, out[rows])
        alone = library_attention.attend_chunk(q[rows], kv[:, LAYER], batch, seq, 0.3)
        assert torch.equal(alone, out[rows])
        first += query_len
    assert_close(out, _dense(q, kv[:, LAYER], batch, 0.3))
    assert {queries for queries, _, _ in seen} == {16, 32, 48}
    assert {keys for queries, keys, is_causal in seen if is_causal and keys != queries} == set()
    assert {keys for _, keys, is_causal in seen if not is_causal} == {16, 32, 64}


def test_the_kernel_leaves_out_what_is_the_librarys(device, is_kernel, assert_close):
    if not is_kernel:
        pytest.skip("the reference has no library path")
    q, kv, batch = _step([5], [(30, 30), (40, 100), (7, 8)], 4, 2, 16, device=device)
    out = torch.full(q.shape, 7.0, device=device)
    prefill_attention(q, kv[:, LAYER], batch, out, scale=0.3, window=None, soft_cap=None, longest=39)
    expected = _dense(q, kv[:, LAYER], batch, 0.3)
    kept = torch.tensor([*range(1, 31), *range(71, 78)], device=device)
    assert_close(out[kept], expected[kept])
    assert (out[31:71] == 7).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuDNN needs a GPU")
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(8, 2, 128), (4, 4, 64)])
def test_long_chunks_go_to_the_library(num_heads, num_kv_heads, head_dim, assert_close):
    step = ([700], [(2300, 2300), (40, 300), (2100, 3000), (2048, 5000), (2048, 2048)])
    q, kv, batch = _step(*step, num_heads, num_kv_heads, head_dim, dtype=torch.bfloat16, device="cuda")
    shortest = library_attention.shortest_query_len(q, kv[:, LAYER], None, None)
    assert shortest == library_attention.SHORTEST_QUERY_LEN
    o = paged_attention(q, kv[:, LAYER], batch, scale=head_dim**-0.5)
    assert_close(o, _dense(q, kv[:, LAYER], batch, head_dim**-0.5))
