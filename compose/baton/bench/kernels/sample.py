"""Time sampling over a vocabulary of 128k, beside torch's own ways (which sort, or draw noise that depends on the batch)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from baton.bench.kernels.measure import Row, time_us
from baton.kernels.sample import derive_keys, logprobs, sample
from baton.kernels.sampling_batch import SamplingBatch

VOCAB = 128_256

Call = Callable[[Tensor], object]


def rows() -> Iterator[Row]:
    """Measure one row, a small and a full batch."""
    for num_rows in (1, 32, 256):
        logits = [2.5 * torch.randn(num_rows, VOCAB, device="cuda") for _ in range(3)]
        greedy = _batch(num_rows)
        greedy.all_greedy = True
        yield _row("sample, greedy", logits, greedy, {"argmax": lambda x: x.argmax(-1)})
        peer = {"softmax, exponential_, argmax": _torch_draw}
        yield _row("sample, temperature", logits, _batch(num_rows), peer)
        for top_k, top_p in ((50, 1.0), (0, 0.9), (20, 0.95)):
            batch = _batch(num_rows, top_k, top_p)
            sort = functools.partial(_torch_filtered, top_k=top_k, top_p=top_p)
            yield _row(f"sample, top_k {top_k}, top_p {top_p}", logits, batch, {"sort": sort})
        yield _row("sample, min_p 0.05", logits, _batch(num_rows, min_p=0.05), {})
        yield _logprobs_row(logits)
        yield _row("sample, penalties", logits, _penalized(num_rows), {})  # the last: it changes the logits


def _batch(num_rows: int, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> SamplingBatch:
    """Make rows that all have the same parameters."""
    numbers = torch.arange(num_rows, device="cuda")
    ones = torch.ones(num_rows, device="cuda")
    keys = derive_keys(numbers, torch.zeros_like(numbers), numbers)
    return SamplingBatch(
        temperature=ones,
        top_k=(ones * top_k).int(),
        top_p=ones * top_p,
        min_p=ones * min_p,
        keys=keys,
        any_top_k=top_k > 0,
        any_top_p=top_p < 1,
        any_min_p=min_p > 0,
    )


def _penalized(num_rows: int) -> SamplingBatch:
    batch = _batch(num_rows)
    batch.repetition_penalty = batch.frequency_penalty = torch.full((num_rows,), 1.1, device="cuda")
    batch.presence_penalty = torch.zeros(num_rows, device="cuda")
    batch.counts = (torch.rand(num_rows, VOCAB, device="cuda") < 0.01).int()
    batch.count_rows = torch.arange(num_rows, device="cuda")
    return batch


def _row(op: str, logits: list[Tensor], batch: SamplingBatch, peers: Mapping[str, Call]) -> Row:
    return _timed(op, logits, lambda x: sample(x, batch), peers)


def _logprobs_row(logits: list[Tensor]) -> Row:
    ids = torch.randint(0, VOCAB, (logits[0].shape[0],), device="cuda")
    peers: dict[str, Call] = {"log_softmax, topk": lambda x: x.log_softmax(-1).topk(5)}
    return _timed("logprobs, 5 best", logits, lambda x: logprobs(x, ids, 5), peers)


def _timed(op: str, logits: list[Tensor], call: Call, peers: Mapping[str, Call]) -> Row:
    """Measure a call that must read the logits once."""
    us = time_us(call, logits)
    found = {name: time_us(peer, logits) for name, peer in peers.items()}
    shape, nbytes = f"{logits[0].shape[0]} x {VOCAB}", logits[0].nbytes
    return Row(op, shape, us, nbytes / us / 1e3, "GB/s", found)


def _torch_draw(logits: Tensor) -> Tensor:
    return (logits.softmax(-1) / torch.empty_like(logits).exponential_()).argmax(-1)


def _torch_filtered(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Sample as a sort-based implementation does."""
    values, order = logits.sort(dim=-1, descending=True)
    if top_k:
        values = values.masked_fill(torch.arange(VOCAB, device="cuda") >= top_k, float("-inf"))
    p = values.softmax(-1)
    p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)
    drawn = (p / torch.empty_like(p).exponential_()).argmax(-1, keepdim=True)
    return order.gather(1, drawn)
