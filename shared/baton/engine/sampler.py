"""From logits to tokens: each row's parameters, gathered from its request.

A draw is a pure function of (seed, choice, position): the noise is counter-based, so the same request gives
the same tokens alone or in a crowd, on one worker or across two. What the rows share is only the launch.

The host may not know yet the token before the one to be drawn. Whatever depends on that one is decided on the
device: penalties by counts that stay there, bad words by comparing their last token but one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baton.engine.sequence import Sequence
from baton.engine.upload import upload
from baton.engine.wide_scores import is_wide, num_few, wide_scores
from baton.kernels.sample import derive_keys, greedy, logprobs, sample
from baton.kernels.sampling_batch import SamplingBatch
from baton.kernels.token_counts import count_tokens, row_of
from baton.protocol import SamplingParams

SAMPLING_NBYTES = 18
"""Bytes of a device for each logit of a full batch, at most: the logits, a copy of them for log-probabilities, what
top-k and top-p search, and the counts of tokens take 4 each; which tokens are allowed, for this batch and the last, 1 each.
Masks of grammars take 2 before anything is searched."""


@dataclass(slots=True)
class RowParams:
    """One sequence's part of a sampling batch: what does not change from step to step."""

    seed: int
    choice: int
    is_plain: bool  # the likeliest token, nothing else to look at
    stop_ids: tuple[int, ...]  # not to be drawn before min_tokens
    bias: tuple[tuple[int, float], ...]
    allowed: Tensor | None  # [vocab] bool


@dataclass(slots=True)
class Bias:
    """A value to add to one logit."""

    row: int
    token_id: int
    value: float
    after: int = -1  # only if the token before is this one, which only the device knows; -1: in any case


class Sampler:
    """Draw the next tokens of a step's rows.

    `last_tokens` [num_rows] int64 is the runner's: each running sequence's last token, at the row that is its own
    from plan to preemption or end. Counts of tokens are kept by the same rows.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        num_tokens: int | None,
        eos_token_ids: tuple[int, ...],
        last_tokens: Tensor,
        device: torch.device,
    ) -> None:
        self._vocab_size = vocab_size
        # Many models pad their tables to a round number; what was never trained is not to be drawn.
        self._first_padding = vocab_size if num_tokens is None else min(num_tokens, vocab_size)
        self._last_tokens = last_tokens
        self._counts: Tensor | None = None  # [num_rows, vocab] int32, from the first penalty on
        self._counted: set[Sequence] = set()  # those whose row of it is theirs
        self._eos = eos_token_ids
        self._device = device
        self._rows: dict[Sequence, RowParams] = {}
        self._lasting: tuple[list[Sequence], SamplingBatch] | None = None

    def add(self, sequence: Sequence, *, default_seed: int, choice: int) -> None:
        """Take in a sequence's parameters; the draws depend on its seed, its choice index and positions."""
        params: SamplingParams = sequence.params
        seed = default_seed if params.seed is None else params.seed
        allowed = None
        if params.allowed_token_ids is not None:
            allowed = torch.zeros(self._vocab_size, dtype=torch.bool)
            allowed[list(params.allowed_token_ids)] = True
        self._rows[sequence] = RowParams(
            seed=seed,
            choice=choice,
            is_plain=_is_plain(params),
            stop_ids=tuple({*self._eos, *params.stop_token_ids}),  # eos also where it ends nothing, as in vLLM
            bias=tuple((params.logit_bias or {}).items()),
            allowed=allowed,
        )

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence."""
        self._counted.discard(sequence)
        if self._rows.pop(sequence, None) is not None:
            self._lasting = None

    def preempt(self, sequence: Sequence) -> None:
        """Note that a sequence has lost its row: its tokens are counted again when it has another."""
        self._counted.discard(sequence)

    def draw(
        self,
        logits: Tensor,
        sequences: list[Sequence],
        positions: list[int],
        places: Tensor,
        masks: Tensor | None = None,
        edits: Mapping[int, Callable[[Tensor], None]] | None = None,
    ) -> tuple[Tensor, ...]:
        """Sample one token a row; everything stays on the device.

        logits: [rows, vocab] fp32, may be changed. sequences: one a row. positions: of the tokens to draw. places:
        [rows] int64, where `last_tokens` has each sequence's. masks, edits: as in `ModelRunner.sample`;
        log-probabilities are those before them.

        Returns:
            (token ids [rows],), if any row asked for log-probabilities the four of `kernels.sample.logprobs`, with as many
            as a row that wants few does, and what `_score_more` gives.
        """
        rows = [self._rows[sequence] for sequence in sequences]
        tops = [s.params.num_top for s in sequences if s.params.num_top is not None]
        is_padded = self._first_padding < self._vocab_size
        raw = logits.clone() if tops and (masks is not None or is_padded or edits) else logits
        for row, edit in (edits or {}).items():
            edit(logits[row])
        if is_padded:
            logits[:, self._first_padding :] = -math.inf
        if masks is not None:
            logits.masked_fill_(_forbidden(masks, self._vocab_size), -math.inf)
        if all(row.is_plain for row in rows):
            token_ids = greedy(logits)
        else:
            batch = self._batch(sequences, rows, positions, places)
            if tops and batch.changes_logits and raw is logits:
                raw = logits.clone()
            token_ids = sample(logits, batch)
            if batch.counts is not None:
                count_tokens(batch.counts, places, token_ids)
        if not tops:
            return (token_ids,)
        found = logprobs(raw, token_ids, num_few(tops))
        normalizers = raw.gather(1, token_ids[:, None])[:, 0] - found[0]
        return (token_ids, *found, *self._score_more(raw, sequences, normalizers))

    def _score_more(self, raw: Tensor, sequences: list[Sequence], normalizers: Tensor) -> tuple[Tensor, ...]:
        """Score the tokens that rows name, and the likeliest of rows that want many, both in the order of the rows.

        Nothing if there are no such rows; else the scores of the first kind, and ids and scores of the second.
        """
        named = [(i, s.params.logprob_token_ids) for i, s in enumerate(sequences) if s.params.logprob_token_ids]
        wide = [i for i, s in enumerate(sequences) if is_wide(s.params.num_top)]
        if not named and not wide:
            return ()
        most = max((len(ids) for _, ids in named), default=0)
        rows = self._tensor([i for i, _ in named], np.int64)
        ids = self._tensor([ids + ids[:1] * (most - len(ids)) for _, ids in named], np.int64).view(len(named), most)
        scores = raw[rows[:, None], ids] - normalizers[rows, None]
        num_top = max((sequences[i].params.num_top or 0 for i in wide), default=0)
        return (scores, *wide_scores(raw, normalizers, wide, num_top))

    def _batch(
        self, sequences: list[Sequence], rows: list[RowParams], positions: list[int], places: Tensor
    ) -> SamplingBatch:
        """Gather the rows' parameters; what does not change while the same sequences run is sent once."""
        if self._lasting is None or self._lasting[0] != sequences:
            self._lasting = (list(sequences), self._lasting_batch(sequences, rows))
        words = [[row.seed for row in rows], [row.choice for row in rows], positions]
        keys = derive_keys(*torch.tensor(words, dtype=torch.int64))
        batch = dataclasses.replace(self._lasting[1], keys=upload(keys.numpy(), self._device))
        if batch.has_penalties:
            batch.counts, batch.count_rows = self._counts_of(sequences, places), places
        if biases := _biases(sequences, rows, positions):
            batch.bias_rows = self._tensor([bias.row for bias in biases], np.int64)
            batch.bias_token_ids = self._tensor([bias.token_id for bias in biases], np.int64)
            batch.bias_values = self._tensor([bias.value for bias in biases], np.float32)
            if any(bias.after >= 0 for bias in biases):
                after = self._tensor([bias.after for bias in biases], np.int64)
                last = self._last_tokens[places][batch.bias_rows]
                batch.bias_values = torch.where((after < 0) | (after == last), batch.bias_values, 0.0)
        return batch

    def _counts_of(self, sequences: list[Sequence], places: Tensor) -> Tensor:
        """The counts, with a row made for each sequence that is new to its place.

        Such a one has nothing in flight, so the host knows all of its tokens.
        """
        if self._counts is None:
            shape = (len(self._last_tokens), self._vocab_size)
            self._counts = torch.empty(shape, dtype=torch.int32, device=self._device)
        for i, sequence in enumerate(sequences):
            if sequence.params.has_penalties and sequence not in self._counted:
                at, token_ids = sequence.num_prompt_tokens, sequence.token_ids
                row = row_of(token_ids[:at], token_ids[at:], self._vocab_size)
                self._counts.index_copy_(0, places[i : i + 1], upload(row[None].numpy(), self._device))
                self._counted.add(sequence)
        return self._counts

    def _lasting_batch(self, sequences: list[Sequence], rows: list[RowParams]) -> SamplingBatch:
        params = [sequence.params for sequence in sequences]
        batch = SamplingBatch(
            temperature=self._tensor([0.0 if p.is_greedy else p.temperature for p in params], np.float32),
            top_k=self._tensor([p.top_k for p in params], np.int32),
            top_p=self._tensor([p.top_p for p in params], np.float32),
            min_p=self._tensor([p.min_p for p in params], np.float32),
            keys=torch.empty(0),
            all_greedy=all(p.is_greedy for p in params),
            any_top_k=any(p.top_k > 0 for p in params),
            any_top_p=any(p.top_p < 1.0 for p in params),
            any_min_p=any(p.min_p > 0.0 for p in params),
            allowed=self._allowed(rows),
        )
        if any(p.has_penalties for p in params):
            batch.repetition_penalty = self._tensor([p.repetition_penalty for p in params], np.float32)
            batch.presence_penalty = self._tensor([p.presence_penalty for p in params], np.float32)
            batch.frequency_penalty = self._tensor([p.frequency_penalty for p in params], np.float32)
        return batch

    def _allowed(self, rows: list[RowParams]) -> Tensor | None:
        if all(row.allowed is None for row in rows):
            return None
        everything = torch.ones(self._vocab_size, dtype=torch.bool)
        return torch.stack([everything if row.allowed is None else row.allowed for row in rows]).to(self._device)

    def _tensor(self, values: Any, dtype: type) -> Tensor:
        return upload(np.array(values, dtype=dtype), self._device)


def seed_of(request_id: str, engine_seed: int) -> int:
    """Derive the seed of a request that brings none: its own, and the same in every run."""
    digest = hashlib.blake2b(f"{engine_seed}/{request_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _forbidden(masks: Tensor, vocab_size: int) -> Tensor:
    """Turn 32 tokens a word into [rows, vocab_size] bool: those that may not be. Byte by byte: a logit takes 2 of them."""
    bits = torch.arange(8, dtype=torch.uint8, device=masks.device)
    allowed = masks.view(torch.uint8)[:, :, None] & (1 << bits).to(torch.uint8)
    return (allowed == 0).flatten(1)[:, :vocab_size]


def _is_plain(params: SamplingParams) -> bool:
    return (
        params.is_greedy
        and not params.has_penalties
        and not params.min_tokens
        and params.allowed_token_ids is None
        and not params.logit_bias
        and not params.bad_words_ids
    )


def _biases(sequences: list[Sequence], rows: list[RowParams], positions: list[int]) -> list[Bias]:
    """List logit_bias, and -inf for what may not come now."""
    biases: list[Bias] = []
    for i, (sequence, row, position) in enumerate(zip(sequences, rows, positions, strict=True)):
        biases.extend(Bias(i, token_id, value) for token_id, value in row.bias)
        if position - sequence.num_prompt_tokens < sequence.params.min_tokens:
            biases.extend(Bias(i, token_id, -math.inf) for token_id in row.stop_ids)
        if sequence.params.bad_words_ids:
            biases.extend(_banned_now(i, sequence, position))
    return biases


def _banned_now(row: int, sequence: Sequence, position: int) -> Iterator[Bias]:
    """Find the tokens that would complete a bad word, or would if the token that the host does not know is its last but one."""
    known = sequence.token_ids
    num_unknown = position - len(known)
    assert num_unknown <= 1, sequence
    for *before, token_id in sequence.params.bad_words_ids:
        after = before.pop() if num_unknown and before else -1
        start = len(known) - len(before)
        if start >= sequence.num_prompt_tokens and known[start:] == before:
            yield Bias(row, token_id, -math.inf, after)
