"""Run one step on the device: inputs, forward pass, logits, draw.

Knows nothing of requests, text or who asked; the scheduler decided what to compute, this computes it. One path
serves prefill chunks, decodes and mixtures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baton.engine.batch import BatchBuilder, BatchInputs
from baton.engine.kv_cache import KVLayout
from baton.engine.sampler import Sampled, Sampler, TokenLogprobs
from baton.engine.scheduler import StepPlan
from baton.engine.sequence import Sequence
from baton.kernels.sample import logprobs
from baton.models.causal_lm import CausalLM


@dataclass(slots=True)
class LaunchedStep:
    """A step that the device is running, or has run."""

    plan: StepPlan
    sampled_sequences: list[Sequence]
    sampled: Sampled | None
    prompt_targets: list[tuple[Sequence, int]]
    prompt_logprobs: tuple[Tensor, Tensor, Tensor, Tensor] | None


@dataclass(slots=True)
class StepResult:
    """What a finished step gave, on the host."""

    sequences: list[Sequence]
    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]
    prompt_logprobs: list[tuple[Sequence, int, TokenLogprobs]]  # (sequence, position, at that position)


class ModelRunner:
    """Owns the model, the KV tensor and the device's side of a batch."""

    def __init__(
        self, model: CausalLM, layout: KVLayout, num_blocks: int, *, max_num_seqs: int, max_model_len: int
    ) -> None:
        self.model = model
        self.device = model.device
        self.layout = layout
        self.kv = layout.allocate(num_blocks, self.device)
        self.sampler = Sampler(
            vocab_size=model.spec.vocab_size, eos_token_ids=model.spec.eos_token_ids, device=self.device
        )
        self._batches = BatchBuilder(
            num_rows=max_num_seqs,
            max_blocks=-(-max_model_len // layout.block_size),
            block_size=layout.block_size,
            device=self.device,
        )

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Start a step. On a GPU this returns while it runs; `collect` waits for it."""
        for sequence in plan.preempted:
            self._batches.release(sequence)
        inputs = self._batches.build(plan)
        hidden = self.model.forward(inputs.token_ids, inputs.positions, self.kv, inputs.attention)
        sampled = self._draw(hidden, inputs) if inputs.sampled else None
        prompt = None
        if inputs.prompt_tokens is not None:
            prompt = self._score_prompt(hidden, inputs)
        return LaunchedStep(plan, inputs.sampled, sampled, inputs.prompt_targets, prompt)

    def collect(self, step: LaunchedStep) -> StepResult:
        """Wait for a step and bring its tokens to the host."""
        token_ids: list[int] = []
        token_logprobs: list[TokenLogprobs | None] = []
        if step.sampled is not None:
            token_ids = step.sampled.token_ids.tolist()
            token_logprobs = [None] * len(token_ids)
            if step.sampled.logprobs is not None:
                rows = _rows_of(token_ids, step.sampled.logprobs)
                for i, sequence in enumerate(step.sampled_sequences):
                    if sequence.params.logprobs is not None:
                        token_logprobs[i] = _first(rows[i], sequence.params.logprobs)
        prompt: list[tuple[Sequence, int, TokenLogprobs]] = []
        if step.prompt_logprobs is not None:
            targets = [sequence.token_ids[position] for sequence, position in step.prompt_targets]
            rows = _rows_of(targets, step.prompt_logprobs)
            for (sequence, position), row in zip(step.prompt_targets, rows, strict=True):
                prompt.append((sequence, position, _first(row, sequence.params.prompt_logprobs or 0)))
        return StepResult(step.sampled_sequences, token_ids, token_logprobs, prompt)

    @property
    def num_sequences(self) -> int:
        """Sequences that the device's side keeps anything of."""
        return max(self._batches.num_rows_used, self.sampler.num_sequences)

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence that ended."""
        self._batches.release(sequence)
        self.sampler.release(sequence)

    def _draw(self, hidden: Tensor, inputs: BatchInputs) -> Sampled:
        rows = hidden if len(inputs.sampled) == len(hidden) else hidden[inputs.sample_tokens]
        sampled = self.sampler.draw(self.model.logits(rows), inputs.sampled, inputs.sampled_positions)
        self._batches.keep_last_tokens(inputs, sampled.token_ids)
        return sampled

    def _score_prompt(self, hidden: Tensor, inputs: BatchInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        targets = [sequence.token_ids[position] for sequence, position in inputs.prompt_targets]
        num_top = max(sequence.params.prompt_logprobs or 0 for sequence, _ in inputs.prompt_targets)
        logits = self.model.logits(hidden[inputs.prompt_tokens])
        return logprobs(logits, torch.tensor(targets, device=self.device), num_top)


def _rows_of(token_ids: list[int], found: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[TokenLogprobs]:
    chosen, ranks, top_ids, top_logprobs = (part.tolist() for part in found)
    return [
        TokenLogprobs([token_id, *ids], [value, *values], [rank, *range(1, len(ids) + 1)])
        for token_id, value, rank, ids, values in zip(
            token_ids, chosen, ranks, top_ids, top_logprobs, strict=True
        )
    ]


def _first(row: TokenLogprobs, num_top: int) -> TokenLogprobs:
    """Cut a row to what its request asked for; the batch computed the largest number anyone wants."""
    return TokenLogprobs(row.token_ids[: num_top + 1], row.logprobs[: num_top + 1], row.ranks[: num_top + 1])
