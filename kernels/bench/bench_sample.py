"""Time sampling over a vocabulary of 128k, beside torch's own ways (which sort, or draw noise that depends on the batch)."""

from collections.abc import Callable

import torch
from measure import Row, measure_ceilings, report, time_us
from torch import Tensor

from baton.kernels.sample import SamplingBatch, derive_keys, logprobs, sample

VOCAB = 128_256


def batch_of(num_rows: int, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> SamplingBatch:
    """Give rows that all have the same parameters."""
    numbers = torch.arange(num_rows, device="cuda")
    ones = torch.ones(num_rows, device="cuda")
    keys = derive_keys(numbers, torch.zeros_like(numbers), numbers)
    flags = {"any_top_k": top_k > 0, "any_top_p": top_p < 1, "any_min_p": min_p > 0}
    return SamplingBatch(ones, (ones * top_k).int(), ones * top_p, ones * min_p, keys, **flags)


def torch_top_p(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Sample as a sort-based implementation does."""
    values, order = logits.sort(dim=-1, descending=True)
    if top_k:
        values = values.masked_fill(torch.arange(VOCAB, device="cuda") >= top_k, float("-inf"))
    p = values.softmax(-1)
    p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)
    drawn = (p / torch.empty_like(p).exponential_()).argmax(-1, keepdim=True)
    return order.gather(1, drawn)


def timed(
    op: str,
    logits: list[Tensor],
    call: Callable[[Tensor], object],
    peer: str,
    peer_call: Callable[[Tensor], object] | None,
) -> Row:
    """Measure a call that must read the logits once."""
    us = time_us(call, logits)
    peer_us = time_us(peer_call, logits) if peer_call else None
    num_rows = logits[0].shape[0]
    return Row(op, f"{num_rows} x {VOCAB}", us, logits[0].nbytes / us / 1e3, "GB/s", peer, peer_us)


def filtered(logits: list[Tensor], top_k: int, top_p: float, min_p: float) -> Row:
    """Measure one choice of filters."""
    batch = batch_of(logits[0].shape[0], top_k, top_p, min_p)
    peer = None if min_p else lambda x: torch_top_p(x, top_k, top_p)
    name = f"sample, top_k {top_k}, top_p {top_p}, min_p {min_p}"
    return timed(name, logits, lambda x: sample(x, batch), "sort", peer)


def rows_of(num_rows: int) -> list[Row]:
    """Measure one number of rows."""
    logits = [2.5 * torch.randn(num_rows, VOCAB, device="cuda") for _ in range(3)]
    greedy, plain, penalized = (batch_of(num_rows) for _ in range(3))
    greedy.all_greedy = True
    penalized.repetition_penalty = penalized.frequency_penalty = torch.full((num_rows,), 1.1, device="cuda")
    penalized.prompt_ids = torch.randint(0, VOCAB, (num_rows, 1024), device="cuda")
    penalized.output_ids = torch.randint(0, VOCAB, (num_rows, 256), device="cuda")
    ids = torch.randint(0, VOCAB, (num_rows,), device="cuda")
    return [
        timed("sample, greedy", logits, lambda x: sample(x, greedy), "argmax", lambda x: x.argmax(-1)),
        timed(
            "sample, temperature",
            logits,
            lambda x: sample(x, plain),
            "softmax, exponential_, argmax",
            lambda x: (x.softmax(-1) / torch.empty_like(x).exponential_()).argmax(-1),
        ),
        filtered(logits, 50, 1.0, 0.0),
        filtered(logits, 0, 0.9, 0.0),
        filtered(logits, 20, 0.95, 0.0),
        filtered(logits, 0, 1.0, 0.05),
        timed("sample, penalties", logits, lambda x: sample(x, penalized), "", None),
        timed(
            "logprobs, 5",
            logits,
            lambda x: logprobs(x, ids, 5),
            "log_softmax, topk",
            lambda x: x.log_softmax(-1).topk(5),
        ),
    ]


def rows() -> list[Row]:
    """Measure one row, and a full batch."""
    return [row for num_rows in (1, 32, 256) for row in rows_of(num_rows)]


if __name__ == "__main__":
    report(rows(), measure_ceilings())
