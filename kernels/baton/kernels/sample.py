"""Choose the next token of every row, and compute log probabilities.

logits [rows, vocab] fp32 -> allowed and bias -> repetition (prompt and output), presence and frequency
(output) penalties -> temperature -> min-p, top-k, top-p -> token = argmax(scaled logit + g), g = -log(-log(1
- w)) with w uniform: the Gumbel form of a draw from softmax. The order and the meaning of each parameter are
vLLM's.

The noise is a function of the row's 64-bit key and the token id alone: w comes from 32-bit integer arithmetic
that torch and Triton do bit for bit alike (`noise_bits_reference`), so neither the other rows nor the device
changes a draw. 31 bits keep the tail right for vocabularies of 256k, where 24 would cap the noise too low.

Each filter is a floor: tokens whose scaled logit is below it go. top-k keeps the k-th largest value and all
equal to it; top-p, of what min-p and top-k left, keeps a value while the mass strictly above it is under
top_p of the total: equal values stay or go together. Bound by memory: a pass over the logits for a draw, and
one for each step of the search for a floor. Sources: Gumbel-max trick; mixer of Wellons, "Prospecting for
hash functions" (lowbias32).
"""

import torch
from torch import Tensor

from baton.kernels.launch import on_triton
from baton.kernels.sample_draw import draw, row_logprobs
from baton.kernels.sampling_batch import SamplingBatch
from baton.kernels.token_counts import NUM_DRAWN

_MULTIPLY_1 = 0x7FEB352D
_MULTIPLY_2 = 0x846CA68B
_MULTIPLY_2_SIGNED = _MULTIPLY_2 - (1 << 32)
_MOST_TOP = 20
"""Alternatives that the Triton kernel looks for one after the other; for more a sort is as good, and nothing is compiled."""
_LARGEST_UNIFORM = 1.0 - 2.0**-24
# The reference looks for a row's floor among so many of its best values, then among eight times as many, and
# so on: a trained model's nucleus is nearly always within 64, which costs 20 us a row of 8k where sorting the
# row costs 500.
_HEAD_LEN = 64
# Elements of noise that the reference makes at once: more falls out of the cache between its twenty passes.
_NOISE_LEN = 1 << 17


def derive_keys(seeds: Tensor, choices: Tensor, positions: Tensor) -> Tensor:
    """Mix each row's seed, choice index and position (each [N] int64) into its noise key: [N, 2] int32, on their device.

    The same on every device: three rounds of splitmix64's finalizer in wrapping 64-bit arithmetic.
    """
    state = seeds
    for word in (choices, positions, torch.zeros_like(seeds)):
        state = state + word * -0x61C8864680B583EB + 0x632BE59BD9B4E019
        state = (state ^ (state >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
        state = (state ^ (state >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
        state = state ^ (state >> 31 & 0x1FFFFFFFF)
    return torch.stack((state.to(torch.int32), (state >> 32).to(torch.int32)), dim=-1)


# --- reference -----------------------------------------------------------------------------------------


def _mix_(x: Tensor, key: Tensor | None = None) -> Tensor:
    """Mix int32 words in place (lowbias32); a key, where given, enters between the two products."""
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= _MULTIPLY_1
    if key is not None:
        x += key
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= _MULTIPLY_2_SIGNED
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    return x


def noise_bits_reference(token_ids: Tensor, keys: Tensor) -> Tensor:
    """Hash token ids (int32, [..., n]) with keys [..., 2] int32: int32 words, all 32 bits random."""
    mixed = _mix_(token_ids.clone())
    return _mix_(mixed ^ keys[..., :1], keys[..., 1:])


def gumbel_reference(token_ids: Tensor, keys: Tensor) -> Tensor:
    """Compute the Gumbel noise of each (token, key), fp32: token_ids [..., n] int32, keys [..., 2] int32, broadcast."""
    bits = noise_bits_reference(token_ids, keys).bitwise_and_(0x7FFFFFFF)
    uniform = bits.float().add_(0.5).mul_(2.0**-31).clamp_(max=_LARGEST_UNIFORM)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def adjust_reference(logits: Tensor, batch: SamplingBatch) -> None:
    """Apply allowed tokens, bias and penalties in place."""
    if batch.allowed is not None:
        logits.masked_fill_(~batch.allowed, float("-inf"))
    if batch.bias_rows is not None:
        assert batch.bias_values is not None
        logits.index_put_((batch.bias_rows, batch.bias_token_ids), batch.bias_values, accumulate=True)
    if batch.has_penalties:
        _penalize_reference(logits, batch)


def _penalize_reference(logits: Tensor, batch: SamplingBatch) -> None:
    penalties = batch.repetition_penalty, batch.presence_penalty, batch.frequency_penalty
    assert batch.counts is not None
    assert batch.count_rows is not None
    repetition, presence, frequency = (penalty[:, None] for penalty in penalties if penalty is not None)
    is_on = (repetition != 1) | (presence != 0) | (frequency != 0)
    rows = is_on.view(-1).nonzero().view(-1)
    counts = batch.counts[batch.count_rows[rows]]
    x, num_drawn = logits[rows], counts & NUM_DRAWN
    x = torch.where(counts != 0, torch.where(x > 0, x / repetition[rows], x * repetition[rows]), x)
    x -= frequency[rows] * num_drawn
    x -= presence[rows] * (num_drawn > 0)
    logits[rows] = x


def floor_reference(scaled: Tensor, batch: SamplingBatch) -> Tensor:
    """Find each row's smallest kept value after min-p, top-k and top-p, [N, 1]."""
    vocab_size = scaled.shape[1]
    largest = scaled.amax(-1, keepdim=True)
    floor = largest + batch.min_p[:, None].log() if batch.any_min_p else torch.full_like(largest, float("-inf"))
    if not (batch.any_top_k or batch.any_top_p):
        return floor
    head_len = min(vocab_size, max(_HEAD_LEN, int(batch.top_k.clamp(max=vocab_size).amax())))
    head = scaled.topk(head_len, sorted=True).values
    if batch.any_top_k:
        last = batch.top_k.long().clamp(1, vocab_size)[:, None] - 1
        kth = head.gather(1, last).masked_fill_(batch.top_k[:, None] <= 0, float("-inf"))
        floor = torch.maximum(floor, kth)
    if batch.any_top_p:
        total = (scaled - largest).exp_().masked_fill_(scaled < floor, 0).sum(-1, keepdim=True)
        target = total * batch.top_p[:, None]
        nucleus, found = _nucleus_floor(head, largest, floor, target)
        wanted = batch.top_p[:, None] < 1
        rows = (wanted & ~found).view(-1).nonzero().view(-1)
        while rows.numel() and head_len < vocab_size:
            head_len = min(vocab_size, head_len * 8)
            head = scaled[rows].topk(head_len, sorted=True).values
            nucleus[rows], found = _nucleus_floor(head, largest[rows], floor[rows], target[rows])
            rows = rows[~found.view(-1)]
        floor = torch.where(wanted, torch.maximum(floor, nucleus), floor)
    return floor


def _nucleus_floor(head: Tensor, largest: Tensor, floor: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Find the last value with less than `target` mass before it, and whether the head was long enough to tell."""
    mass = (head - largest).exp_().masked_fill_(head < floor, 0)
    sums = mass.cumsum(-1)
    num_kept = ((sums - mass) < target).sum(-1, keepdim=True).clamp_(min=1)
    reached = (sums[:, -1:] >= target) | (head[:, -1:] < floor)
    return head.gather(1, num_kept - 1), reached


def sample_reference(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """Sample in plain torch, with noise only for the tokens that the filters left where they left few."""
    adjust_reference(logits, batch)
    if batch.all_greedy:
        return logits.argmax(-1)
    num_rows, vocab_size = logits.shape
    greedy = batch.temperature == 0
    scaled = logits * batch.inverse_temperature[:, None]
    if batch.any_top_k or batch.any_top_p or batch.any_min_p:
        kept = (scaled >= floor_reference(scaled, batch)).nonzero()
        if kept.shape[0] * 4 < num_rows * vocab_size:
            rows, token_ids = kept.unbind(1)
            noise = gumbel_reference(token_ids.to(torch.int32)[:, None], batch.keys[rows])[:, 0]
            noise.masked_fill_(greedy[rows], 0)
            scores = torch.full_like(scaled, float("-inf"))
            scores[rows, token_ids] = scaled[rows, token_ids] + noise
            return scores.argmax(-1)
        scaled = torch.full_like(scaled, float("-inf")).index_put_(kept.unbind(1), scaled[kept.unbind(1)])
    token_ids = torch.arange(vocab_size, dtype=torch.int32, device=logits.device)
    step = max(1, _NOISE_LEN // vocab_size)
    chosen = []
    for i in range(0, num_rows, step):
        noise = gumbel_reference(token_ids, batch.keys[i : i + step])
        noise.masked_fill_(greedy[i : i + step, None], 0)
        chosen.append(noise.add_(scaled[i : i + step]).argmax(-1))
    return torch.cat(chosen)


def logprobs_reference(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute log probabilities in plain torch."""
    normalizer = logits.logsumexp(-1, keepdim=True)
    chosen = logits.gather(1, token_ids[:, None])
    rank = (logits >= chosen).sum(-1)
    top = logits.topk(num_top, dim=-1)
    return (chosen - normalizer)[:, 0], rank, top.indices, top.values - normalizer


# --- public -----------------------------------------------------------------------------------------


def sample(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """Draw each row's token id, [N] int64; greedy rows take the largest logit, the lowest id among equals.

    Logits of rows with bias, penalties or a choice of tokens are changed on the way.
    """
    return draw(logits, batch) if on_triton(logits, "sample") else sample_reference(logits, batch)


def greedy(logits: Tensor) -> Tensor:
    """Find each row's likeliest token, [N] int64, the lowest id among equals: `sample` where no row asks for anything else."""
    if not on_triton(logits, "sample"):
        return logits.argmax(-1)
    unused = logits[:0]
    return draw(logits, SamplingBatch(unused, unused, unused, unused, unused, all_greedy=True))


def logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute (log probability [N], rank [N], top ids [N, num_top], their log probabilities) of raw logits.

    The rank counts the tokens at least as likely as the chosen one, so the best token has rank 1.
    """
    if num_top > _MOST_TOP or not on_triton(logits, "logprobs"):
        return logprobs_reference(logits, token_ids, num_top)
    return row_logprobs(logits, token_ids, num_top)
