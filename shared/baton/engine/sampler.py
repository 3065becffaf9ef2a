"""From logits to tokens: each row's parameters, gathered from its request.

A draw is a pure function of (seed, choice, position): the noise is counter-based, so the same request gives
the same tokens alone or in a crowd, on one worker or across two. What the rows share is only the launch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baton.engine.sequence import Sequence
from baton.engine.upload import upload
from baton.kernels.sample import SamplingBatch, derive_keys, greedy, logprobs, sample
from baton.protocol import SamplingParams


@dataclass(slots=True)
class TokenLogprobs:
    """Log-probabilities at one position: the token itself first, then the likeliest ones in order."""

    token_ids: list[int]
    logprobs: list[float]
    ranks: list[int]


@dataclass(slots=True)
class RowParams:
    """One sequence's part of a sampling batch: what does not change from step to step."""

    seed: int
    choice: int
    is_plain: bool  # the likeliest token, nothing else to look at
    stop_ids: tuple[int, ...]  # not to be drawn before min_tokens
    bias: tuple[tuple[int, float], ...]
    allowed: Tensor | None  # [vocab] bool


class Sampler:
    """Draw the next tokens of a step's rows."""

    def __init__(self, *, vocab_size: int, eos_token_ids: tuple[int, ...], device: torch.device) -> None:
        self._vocab_size = vocab_size
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
        eos = () if params.ignore_eos else self._eos
        self._rows[sequence] = RowParams(
            seed=seed,
            choice=choice,
            is_plain=_is_plain(params),
            stop_ids=tuple({*eos, *params.stop_token_ids}),
            bias=tuple((params.logit_bias or {}).items()),
            allowed=allowed,
        )

    @property
    def num_sequences(self) -> int:
        """Sequences taken in and not released."""
        return len(self._rows)

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence."""
        if self._rows.pop(sequence, None) is not None:
            self._lasting = None

    def draw(self, logits: Tensor, sequences: list[Sequence], positions: list[int]) -> tuple[Tensor, ...]:
        """Sample one token a row; everything stays on the device.

        logits: [rows, vocab] fp32, not changed. sequences: one a row. positions: of the tokens to draw.
        Gives (token ids [rows],), and if any row asked for log-probabilities the four of `kernels.sample.logprobs`.
        """
        rows = [self._rows[sequence] for sequence in sequences]
        if all(row.is_plain for row in rows):
            token_ids = greedy(logits)
        else:
            token_ids = sample(logits, self._batch(sequences, rows, positions))
        num_top = max((s.params.logprobs for s in sequences if s.params.logprobs is not None), default=None)
        return (token_ids,) if num_top is None else (token_ids, *logprobs(logits, token_ids, num_top))

    def _batch(self, sequences: list[Sequence], rows: list[RowParams], positions: list[int]) -> SamplingBatch:
        """Gather the rows' parameters; what does not change while the same sequences run is sent once."""
        if self._lasting is None or self._lasting[0] != sequences:
            self._lasting = (list(sequences), self._lasting_batch(sequences, rows))
        words = [[row.seed for row in rows], [row.choice for row in rows], positions]
        keys = derive_keys(*torch.tensor(words, dtype=torch.int64))
        batch = dataclasses.replace(self._lasting[1], keys=upload(keys.numpy(), self._device))
        if any(s.params.has_penalties for s in sequences):
            batch.prompt_ids = self._padded(
                [
                    s.token_ids[: s.num_prompt_tokens] if s.params.repetition_penalty != 1.0 else []
                    for s in sequences
                ]
            )
            batch.output_ids = self._padded(
                [s.token_ids[s.num_prompt_tokens :] if s.params.has_penalties else [] for s in sequences]
            )
        if bias := self._sparse_bias(sequences, rows, positions):
            row_ids, token_ids, values = zip(*bias, strict=True)
            batch.bias_rows = self._tensor(row_ids, np.int64)
            batch.bias_token_ids = self._tensor(token_ids, np.int64)
            batch.bias_values = self._tensor(values, np.float32)
        return batch

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

    def _sparse_bias(
        self, sequences: list[Sequence], rows: list[RowParams], positions: list[int]
    ) -> list[tuple[int, int, float]]:
        """List (row, token id, value) to add to single logits: logit_bias, and -inf for what may not come now."""
        entries: list[tuple[int, int, float]] = []
        for i, (sequence, row) in enumerate(zip(sequences, rows, strict=True)):
            entries.extend((i, token_id, value) for token_id, value in row.bias)
            if positions[i] - sequence.num_prompt_tokens < sequence.params.min_tokens:
                entries.extend((i, token_id, -math.inf) for token_id in row.stop_ids)
            if sequence.params.bad_words_ids:
                entries.extend((i, token_id, -math.inf) for token_id in _banned_now(sequence))
        return entries

    def _allowed(self, rows: list[RowParams]) -> Tensor | None:
        if all(row.allowed is None for row in rows):
            return None
        everything = torch.ones(self._vocab_size, dtype=torch.bool)
        return torch.stack([everything if row.allowed is None else row.allowed for row in rows]).to(
            self._device
        )

    def _padded(self, lists: list[list[int]]) -> Tensor:
        """[rows, longest] int64, padded with vocab_size."""
        width = max(1, max(map(len, lists)))
        out = np.full((len(lists), width), self._vocab_size, dtype=np.int64)
        for row, ids in enumerate(lists):
            out[row, : len(ids)] = ids
        return upload(out, self._device)

    def _tensor(self, values: Any, dtype: type) -> Tensor:
        return upload(np.array(values, dtype=dtype), self._device)


def needs_known_tokens(params: SamplingParams) -> bool:
    """Whether sampling reads the tokens before it, so that the host cannot run one step ahead."""
    return params.has_penalties or bool(params.bad_words_ids)


def seed_of(request_id: str, engine_seed: int) -> int:
    """Give the seed of a request that brings none: its own, and the same in every run."""
    digest = hashlib.blake2b(f"{engine_seed}/{request_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _is_plain(params: SamplingParams) -> bool:
    return (
        params.is_greedy
        and not params.has_penalties
        and not params.min_tokens
        and params.allowed_token_ids is None
        and not params.logit_bias
        and not params.bad_words_ids
    )


def _banned_now(sequence: Sequence) -> list[int]:
    """Find the tokens that would complete a bad word."""
    output = sequence.token_ids[sequence.num_prompt_tokens :]
    return [
        ids[-1]
        for ids in sequence.params.bad_words_ids
        if len(ids) == 1 or tuple(output[len(output) - len(ids) + 1 :]) == ids[:-1]
    ]
