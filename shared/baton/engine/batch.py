"""A step plan becomes device tensors.

Each running sequence owns a row: of the block tables, which live on the device and get only what was added, and of the
buffer where the device keeps its last token. So a step's host work grows with sequences, not with their lengths,
and a step's inputs cross to the device in one copy.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequences
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baton.engine.kv_cache import KVCacheSpec
from baton.engine.sequence import Sequence
from baton.engine.step_plan import StepPlan
from baton.engine.upload import upload
from baton.kernels.attention_batch import AttentionBatch
from baton.models.step import Step


@dataclass(slots=True)
class HostBatch:
    """One step's inputs as the host lays them out; arrays are int64."""

    token_ids: np.ndarray  # [num_tokens]
    sources: np.ndarray  # [num_tokens] row whose last token, which only the device knows, it is; -1: token_ids has it
    positions: np.ndarray  # [num_tokens]
    slots: np.ndarray  # [num_groups, num_tokens] where each token's K and V go
    rows: np.ndarray  # [num_seqs] of the block table
    seq_lens: np.ndarray  # [num_seqs] context with this step's tokens
    query_start: np.ndarray  # [num_seqs + 1]
    query_lens: np.ndarray  # [num_seqs]
    num_decodes: int
    sampled: list[Sequence]  # [num_samples] whose token is sampled; a row with several samples is named as often
    sampled_rows: np.ndarray  # [num_samples] its row among the plan's
    sampled_at: np.ndarray  # [num_samples] the token after which it is sampled
    prompt_tokens: list[int]  # tokens whose successor is a prompt token that wants its log-probability
    prompt_targets: list[tuple[Sequence, int]]  # that prompt token: its sequence and position

    @property
    def sampled_positions(self) -> list[int]:
        """Position of each sampled token."""
        positions: list[int] = (self.positions[self.sampled_at] + 1).tolist()
        return positions


@dataclass(slots=True)
class WantedRows:
    """Which hidden states of a step are wanted, on the device."""

    sampled: Tensor  # [num_samples] int64: the tokens whose hidden states are sampled from
    kept_by: Tensor  # [num_samples] int64: the rows that keep what is drawn
    scored: Tensor  # [num_prompt_targets] int64: as in `HostBatch.prompt_tokens`


class BatchBuilder:
    """Turn plans into inputs; owns the rows and the block tables."""

    def __init__(self, spec: KVCacheSpec, *, num_rows: int, max_model_len: int, device: torch.device) -> None:
        self._block_size = spec.block_size
        self._device = device
        self._windowed = [group for group, window in enumerate(spec.windows) if window is not None]
        self._group_of = [group for group, _ in spec.places]  # by layer
        max_blocks = -(-max_model_len // spec.block_size)
        self._host_tables = np.zeros((len(spec.groups), num_rows, max_blocks), dtype=np.int32)
        self._host_flat = self._host_tables.reshape(len(spec.groups), -1)
        tables = upload(self._host_tables, device)  # [num_groups, num_rows, max_blocks]; on a CPU the same memory
        self._flat, self.tables = tables.view(-1), tables.unbind()
        self.last_tokens = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._filled = [0] * num_rows  # leading blocks that the tables have
        self._passed = np.zeros((len(spec.groups), num_rows), dtype=np.int64)  # leading blocks of them that are 0
        self._rows: dict[Sequence, int] = {}
        self._free_rows = list(range(num_rows - 1, -1, -1))
        self._added: list[tuple[int, list[int]]] = []  # (place in the flat tables, block ids) not yet on the device

    def release(self, sequence: Sequence) -> None:
        """Free the row of a sequence that was preempted or has finished, if it has one."""
        row = self._rows.pop(sequence, None)
        if row is not None:
            self._filled[row] = 0
            self._passed[:, row] = 0
            self._free_rows.append(row)

    def lay_out(self, plan: StepPlan) -> HostBatch:
        """Lay out a plan's tokens, decodes first, and bring the device's block tables up to date."""
        sequences = plan.sequences
        rows = np.array([self._row(sequence) for sequence in sequences])
        self._send_added()
        starts, query_lens = np.array(plan.starts), np.array(plan.num_new)
        query_start = np.zeros(len(sequences) + 1, dtype=np.int64)
        np.cumsum(query_lens, out=query_start[1:])
        num_tokens = int(query_start[-1])
        if num_tokens == len(sequences):
            positions, token_rows = starts, rows
        else:
            positions = np.arange(num_tokens) + np.repeat(starts - query_start[:-1], query_lens)
            token_rows = np.repeat(rows, query_lens)
        places = token_rows * self._host_tables.shape[2] + positions // self._block_size
        block_ids = self._host_flat.take(places, axis=1).astype(np.int64)
        token_ids, sources = self._tokens(plan)
        sampled_rows, sampled_at = _samples(plan.num_samples, query_start)
        prompt_tokens, prompt_targets = _prompt_logprob_targets(plan, query_start)
        return HostBatch(
            token_ids=np.array(token_ids),
            sources=np.array(sources),
            positions=positions,
            slots=block_ids * self._block_size + positions % self._block_size,
            rows=rows,
            seq_lens=starts + query_lens,
            query_start=query_start,
            query_lens=query_lens,
            num_decodes=plan.num_decodes,
            sampled=[sequences[i] for i in sampled_rows],
            sampled_rows=sampled_rows,
            sampled_at=sampled_at,
            prompt_tokens=prompt_tokens,
            prompt_targets=prompt_targets,
        )

    def send(self, batch: HostBatch, caches: Sequences[Tensor]) -> Step:
        """Send a step's inputs to the device, in one copy."""
        lens = batch.query_start, batch.seq_lens, batch.rows
        parts = self._sent((batch.token_ids, batch.sources, batch.positions, *lens, *batch.slots))
        token_ids, sources, positions, query_start, seq_lens, rows, *slots = parts
        max_blocks = -(-int(batch.seq_lens.max()) // self._block_size)
        by_layer = self.attention_batches(
            rows,
            slots,
            max_blocks=max_blocks,
            query_start=query_start.to(torch.int32),
            seq_lens=seq_lens.to(torch.int32),
            num_decodes=batch.num_decodes,
            query_lens_host=batch.query_lens.tolist(),
            seq_lens_host=batch.seq_lens.tolist(),
        )
        if (batch.sources >= 0).any():
            token_ids = known_tokens(token_ids, sources, self.last_tokens)
        return Step(token_ids, positions, caches, by_layer)

    def attention_batches(
        self, rows: Tensor, slots: Sequences[Tensor], *, max_blocks: int | None = None, **lens: Any
    ) -> list[AttentionBatch]:
        """Make each layer's batch, one for all layers of a KV group; `lens` are the fields that groups share.

        rows: [num_seqs] of the tables. slots: [num_tokens] each, by group.
        """
        by_group = [
            AttentionBatch(block_table=table.index_select(0, rows)[:, :max_blocks], slots=own, **lens)
            for table, own in zip(self.tables, slots, strict=True)
        ]
        return [by_group[group] for group in self._group_of]

    def send_wanted(self, batch: HostBatch) -> WantedRows:
        """Send where the wanted hidden states of a step are, in one copy."""
        kept_by = batch.rows[batch.sampled_rows]
        return WantedRows(*self._sent((batch.sampled_at, kept_by, np.array(batch.prompt_tokens, dtype=np.int64))))

    def _sent(self, parts: tuple[np.ndarray, ...]) -> tuple[Tensor, ...]:
        packed = upload(np.concatenate(parts), self._device)
        return packed.split_with_sizes([len(part) for part in parts])

    def _row(self, sequence: Sequence) -> int:
        row = self._rows.get(sequence)
        if row is None:
            row = self._rows[sequence] = self._free_rows.pop()
        filled, num_blocks = self._filled[row], len(sequence.tables[0])
        if filled < num_blocks:
            self._filled[row] = num_blocks
            for group, table in enumerate(sequence.tables):
                self._put(group, row, filled, table[filled:])
            for group in self._windowed:
                # what a window has passed, at the pace of what is added: until then nobody reads it either
                first, last = int(self._passed[group, row]), min(filled, sequence.num_passed[group])
                if first < last:
                    self._put(group, row, first, [0] * (last - first))
                    self._passed[group, row] = last
        return row

    def _put(self, group: int, row: int, at: int, block_ids: list[int]) -> None:
        self._host_tables[group, row, at : at + len(block_ids)] = block_ids
        if self._device.type != "cpu":
            _, num_rows, max_blocks = self._host_tables.shape
            self._added.append(((group * num_rows + row) * max_blocks + at, block_ids))

    def _send_added(self) -> None:
        if not self._added:
            return
        places = np.concatenate([np.arange(at, at + len(block_ids)) for at, block_ids in self._added])
        values = np.concatenate([block_ids for _, block_ids in self._added])
        sent = upload(np.stack((places, values)), self._device)
        self._flat[sent[0]] = sent[1].to(torch.int32)
        self._added.clear()

    def _tokens(self, plan: StepPlan) -> tuple[list[int], list[int]]:
        """List the step's token ids, and for each the row that has it if only the device knows it."""
        token_ids: list[int] = []
        sources: list[int] = []
        for sequence, start, count in zip(plan.sequences, plan.starts, plan.num_new, strict=True):
            known = sequence.token_ids
            if start + count <= len(known):
                token_ids += known[start : start + count] if count > 1 else (known[start],)
                sources += [-1] * count
            else:
                token_ids += [*known[start:], 0]
                sources += [-1] * (count - 1)
                sources.append(self._rows[sequence])
        return token_ids, sources


def known_tokens(token_ids: Tensor, sources: Tensor, last_tokens: Tensor) -> Tensor:
    """Put the rows' last tokens where the host did not know them."""
    return torch.where(sources >= 0, last_tokens[sources.clamp(min=0)], token_ids)


def _samples(num_samples: list[int], query_start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List the row of each sample, and the token whose hidden state it is drawn from."""
    if num_samples.count(1) == len(num_samples):
        return np.arange(len(num_samples)), query_start[1:] - 1
    counts = np.array(num_samples)
    rows = np.repeat(np.arange(len(counts)), counts)
    after = np.cumsum(counts)[rows] - np.arange(len(rows))  # of the row's samples, this one and those behind it
    return rows, query_start[1:][rows] - after


def _prompt_logprob_targets(plan: StepPlan, query_start: np.ndarray) -> tuple[list[int], list[tuple[Sequence, int]]]:
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
