"""A step plan becomes device tensors.

Each running sequence owns a row: of the block table kept here, and of the buffer where the device keeps its
last token. Rows change only where blocks were added, so a step's host work grows with sequences, not with
their lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from baton.engine.scheduler import StepPlan
from baton.engine.sequence import Sequence
from baton.kernels.attention import AttentionBatch


@dataclass(slots=True)
class BatchInputs:
    """One step's inputs on the device."""

    token_ids: Tensor  # [num_tokens] int64
    positions: Tensor  # [num_tokens] int64
    attention: AttentionBatch
    sample_tokens: Tensor  # [num_samples] int64: which tokens' hidden states are sampled from
    sampled: list[Sequence]  # the sequences they belong to, in that order
    sampled_positions: list[int]  # the position of the token that each of them gets
    rows: Tensor | None  # [num_samples] int64: where their tokens are kept on the device; None: nowhere
    prompt_tokens: Tensor | None  # [n] int64: tokens whose next prompt token wants a log-probability
    prompt_targets: list[tuple[Sequence, int]]  # for each of them, the sequence and the target's position


class BatchBuilder:
    """Turn plans into `BatchInputs`; owns the rows and the block table."""

    def __init__(self, *, num_rows: int, max_blocks: int, block_size: int, device: torch.device) -> None:
        self._block_size = block_size
        self._device = device
        self._table = np.zeros((num_rows, max_blocks), dtype=np.int32)
        self._filled = np.zeros(num_rows, dtype=np.int32)
        self._rows: dict[Sequence, int] = {}
        self._free_rows = list(range(num_rows - 1, -1, -1))
        self._last_tokens = torch.zeros(num_rows, dtype=torch.int64, device=device)

    @property
    def num_rows_used(self) -> int:
        """Rows in use: as many as there are sequences between first plan and release."""
        return len(self._rows)

    def release(self, sequence: Sequence) -> None:
        """Give a sequence's row back; it was preempted, finished or never planned."""
        row = self._rows.pop(sequence, None)
        if row is not None:
            self._filled[row] = 0
            self._free_rows.append(row)

    def build(self, plan: StepPlan) -> BatchInputs:
        """Lay out a plan's tokens, decodes first, and send them to the device."""
        sequences = plan.sequences
        rows = np.array([self._row(sequence) for sequence in sequences])
        starts = np.array(plan.starts)
        query_lens = np.array(plan.num_new)
        query_start = np.zeros(len(sequences) + 1, dtype=np.int32)
        np.cumsum(query_lens, out=query_start[1:])
        num_tokens = int(query_start[-1])
        seq_lens = starts + query_lens

        if num_tokens == len(sequences):
            positions, token_rows = starts, rows
        else:
            positions = np.arange(num_tokens) + np.repeat(starts - query_start[:-1], query_lens)
            token_rows = np.repeat(rows, query_lens)
        block_ids = self._table[token_rows, positions // self._block_size].astype(np.int64)
        slots = block_ids * self._block_size + positions % self._block_size
        max_blocks = -(-int(seq_lens.max()) // self._block_size)

        token_ids, pending = self._token_ids(plan)
        inputs = self._to_device(np.array(token_ids))
        if pending:
            where = self._to_device(np.array([at for at, _ in pending]))
            inputs[where] = self._last_tokens[self._to_device(np.array([row for _, row in pending]))]

        sampling = [i for i, samples in enumerate(plan.samples) if samples]
        prompt_tokens, prompt_targets = _prompt_logprob_targets(plan, query_start)
        return BatchInputs(
            token_ids=inputs,
            positions=self._to_device(positions),
            attention=AttentionBatch(
                block_table=self._to_device(self._table[rows, :max_blocks]),
                query_start=self._to_device(query_start),
                seq_lens=self._to_device(seq_lens.astype(np.int32)),
                slots=self._to_device(slots),
                num_decodes=int((query_lens == 1).sum()),
                query_lens_host=query_lens.tolist(),
                seq_lens_host=seq_lens.tolist(),
            ),
            sample_tokens=self._to_device(query_start[1:][sampling].astype(np.int64) - 1),
            sampled=[sequences[i] for i in sampling],
            sampled_positions=seq_lens[sampling].tolist(),
            rows=self._to_device(rows[sampling]),
            prompt_tokens=self._to_device(np.array(prompt_tokens)) if prompt_tokens else None,
            prompt_targets=prompt_targets,
        )

    def keep_last_tokens(self, inputs: BatchInputs, token_ids: Tensor) -> None:
        """Remember sampled tokens on the device, where the next step finds them before the host does."""
        self._last_tokens[inputs.rows] = token_ids

    def _row(self, sequence: Sequence) -> int:
        row = self._rows.get(sequence)
        if row is None:
            row = self._rows[sequence] = self._free_rows.pop()
        filled = self._filled[row]
        block_ids = sequence.block_ids
        if filled < len(block_ids):
            self._table[row, filled : len(block_ids)] = block_ids[filled:]
            self._filled[row] = len(block_ids)
        return row

    def _token_ids(self, plan: StepPlan) -> tuple[list[int], list[tuple[int, int]]]:
        """Give the step's token ids, and (index, row) of those that only the device knows yet."""
        token_ids: list[int] = []
        pending: list[tuple[int, int]] = []
        for sequence, start, count in zip(plan.sequences, plan.starts, plan.num_new, strict=True):
            known = sequence.token_ids
            if start + count > len(known):
                token_ids.extend(known[start:])
                pending.append((len(token_ids), self._rows[sequence]))
                token_ids.append(0)
            elif count == 1:
                token_ids.append(known[start])
            else:
                token_ids.extend(known[start : start + count])
        return token_ids, pending

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self._device.type == "cpu" else tensor.to(self._device, non_blocking=True)


def _prompt_logprob_targets(
    plan: StepPlan, query_start: np.ndarray
) -> tuple[list[int], list[tuple[Sequence, int]]]:
    """Find the tokens of this step whose successor is a prompt token that wants its log-probability."""
    tokens: list[int] = []
    targets: list[tuple[Sequence, int]] = []
    for i, sequence in enumerate(plan.sequences):
        if sequence.params.prompt_logprobs is None:
            continue
        start = plan.starts[i]
        for offset in range(min(plan.num_new[i], sequence.num_prompt_tokens - 1 - start)):
            tokens.append(int(query_start[i]) + offset)
            targets.append((sequence, start + offset + 1))
    return tokens, targets
