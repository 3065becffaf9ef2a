"""Run one step on the device: inputs and forward pass, then logits and draw, then the way back to the host.

Knows nothing of requests, text or who asked; the scheduler decided what to compute, this computes it. One path
serves prefill chunks, decodes and mixtures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, compress, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baton.engine.batch import BatchBuilder, HostBatch
from baton.engine.cuda_graphs import StepGraphs
from baton.engine.kv_cache import KVCacheSpec
from baton.engine.padded_step import StepShapes
from baton.engine.pooler import Pooled, Pooler
from baton.engine.sampler import Sampler
from baton.engine.sequence import Sequence
from baton.engine.step_plan import StepPlan
from baton.engine.upload import Download, upload
from baton.engine.wide_scores import is_wide, num_few, wide_scores, widened
from baton.kernels.sample import logprobs
from baton.messages import TokenLogprobs
from baton.models.causal_lm import CausalLM

NOTHING: Mapping[int, Callable[[Tensor], None]] = {}
SCORED_AT_ONCE = 256
"""Prompt tokens whose logits exist at the same time: as many as a full batch's, which memory is planned for."""


@dataclass(slots=True)
class ForwardedStep:
    """A step whose hidden states the device is computing."""

    plan: StepPlan
    batch: HostBatch
    hidden: Tensor  # [num_tokens, hidden_size], until the next `forward`


@dataclass(slots=True)
class LaunchedStep:
    """A step that the device is running to its end, or has run."""

    plan: StepPlan
    batch: HostBatch
    sampled: Download  # token ids; then what rows asked for, as `Sampler.draw` returns it
    prompt_logprobs: Download  # four as there, for prompt tokens, and ids and scores of those that want many
    shapes: list[tuple[int, ...]] | None = None  # of the rows' parts of the one tensor, where the model pools


@dataclass(slots=True)
class StepResult:
    """A finished step, on the host. The lists of samples are one for each row that samples, in row order."""

    sequences: list[Sequence]
    token_lists: list[list[int]]
    logprobs: list[list[TokenLogprobs | None]]
    prompt_logprobs: list[tuple[Sequence, int, TokenLogprobs]]  # (sequence, position, at that position)
    pooled: list[Pooled] | None = None  # in place of tokens, of which there is one without meaning a row


class ModelRunner:
    """Owns the model, the KV tensor and the device's side of a batch."""

    def __init__(
        self, model: CausalLM, kv_spec: KVCacheSpec, num_blocks: int, *, max_num_seqs: int, max_model_len: int
    ) -> None:
        self.model = model
        self.device = model.device
        self.kv_spec = kv_spec
        self.use_kv(kv_spec.allocate(num_blocks, self.device))
        self._max_num_seqs = max_num_seqs
        self._batches = BatchBuilder(kv_spec, num_rows=max_num_seqs, max_model_len=max_model_len, device=self.device)
        self.sampler = Sampler(
            vocab_size=model.spec.vocab_size,
            num_tokens=model.spec.num_tokens,
            eos_token_ids=model.spec.eos_token_ids,
            last_tokens=self._batches.last_tokens,
            device=self.device,
        )
        self._graphs: StepGraphs | None = None
        self.pooler: Pooler | None = None
        """What takes the place of sampling in a model that pools."""

    def use_kv(self, kv: Tensor) -> None:
        """Keep KV in this tensor from now on, as `KVCacheSpec.allocate` makes it; before any step."""
        self.kv = kv
        self.caches = self.kv_spec.caches(kv)

    @torch.inference_mode()
    def capture_graphs(self, *, max_num_tokens: int, progress: bool) -> None:
        """Capture steps; from then on those that fit run as CUDA graphs."""
        num_parameters = self.model.nbytes // self.model.dtype.itemsize
        shapes = StepShapes(
            num_parameters,
            max_num_seqs=self._max_num_seqs,
            max_num_tokens=max_num_tokens,
            num_groups=len(self.kv_spec.groups),
        )
        graphs = StepGraphs(self.model, self.caches, self._batches, shapes)
        graphs.capture(progress=progress)
        self._graphs = graphs

    @property
    def most_mixed(self) -> int:
        """Tokens up to which a step with chunks beside decodes is one launch; 0: none is."""
        return 0 if self._graphs is None else self._graphs.most_mixed

    @torch.inference_mode()
    def forward(self, plan: StepPlan) -> ForwardedStep:
        """Start a step's forward pass. On a GPU this returns while it runs."""
        for sequence in plan.preempted:
            self._batches.release(sequence)
            self.sampler.preempt(sequence)
        batch = self._batches.lay_out(plan)
        hidden = None if self._graphs is None else self._graphs.run(batch)
        if hidden is None:
            sent = self._batches.send(batch, self.caches)
            if self.pooler is not None:
                sent.second = _second_texts(batch, plan, self.device)
            hidden = self.model.forward(sent)
        return ForwardedStep(plan, batch, hidden)

    @torch.inference_mode()
    def sample(
        self, step: ForwardedStep, masks: Tensor | None = None, edits: Mapping[int, Callable[[Tensor], None]] = NOTHING
    ) -> LaunchedStep:
        """Start the draw of a step's tokens and their way to the host; `collect` waits for them.

        masks: [num_samples, ceil(vocab_size / 32)] int32 on the device: the tokens that each sample may be, token t
        at bit t % 32 of word t // 32. None: all may be any.
        edits: by sample, what changes its logits [vocab] in place, before masks.
        """
        batch, hidden = step.batch, step.hidden
        if self.pooler is not None:
            return self._pool(self.pooler, step)
        wanted = self._batches.send_wanted(batch)
        prompt = Download()
        if batch.prompt_targets:
            prompt = self._score_prompt(hidden[wanted.scored], batch.prompt_targets)
        if batch.sampled:
            rows = hidden if len(batch.sampled) == len(hidden) else hidden[wanted.sampled]
            sampled = self._draw(rows, batch, wanted.kept_by, masks, edits)
        else:  # something to wait for: who hears that a step was collected may read its KV
            sampled = Download(hidden[:0])
        return LaunchedStep(step.plan, batch, sampled, prompt)

    def _pool(self, pooler: Pooler, step: ForwardedStep) -> LaunchedStep:
        shapes: list[tuple[int, ...]] = []
        made = step.hidden[:0]
        if step.batch.sampled:
            made, shapes = pooler.pool(step.hidden, step.batch)
        return LaunchedStep(step.plan, step.batch, Download(made), Download(), shapes)

    def _score_prompt(self, hidden: Tensor, targets: list[tuple[Sequence, int]]) -> Download:
        """Score prompt tokens, a few at a time: a whole chunk's logits would be the largest tensor there is."""
        token_ids = upload(np.array([sequence.token_ids[at] for sequence, at in targets]), self.device)
        tops = [sequence.params.prompt_logprobs or 0 for sequence, _ in targets]
        most = max(tops)
        few, pieces = num_few(tops), []
        for at in range(0, len(targets), SCORED_AT_ONCE):
            part = slice(at, at + SCORED_AT_ONCE)
            logits, ids = self.model.logits(hidden[part]), token_ids[part]
            found: tuple[Tensor, ...] = logprobs(logits, ids, few)
            if is_wide(most):
                normalizers = logits.gather(1, ids[:, None])[:, 0] - found[0]
                wide = [row for row, num_top in enumerate(tops[part]) if is_wide(num_top)]
                found = (*found, *wide_scores(logits, normalizers, wide, most))
            pieces.append(found)
        return Download(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))

    def _draw(
        self,
        hidden: Tensor,
        batch: HostBatch,
        rows: Tensor,
        masks: Tensor | None,
        edits: Mapping[int, Callable[[Tensor], None]],
    ) -> Download:
        """Draw from hidden states, one a sample, and keep the tokens where the next step finds them.

        Of a row with several samples any may be kept: the host knows its tokens before its next step.
        """
        logits = self.model.logits(hidden)
        sampled = self.sampler.draw(logits, batch.sampled, batch.sampled_positions, rows, masks, edits)
        self._batches.last_tokens[rows] = sampled[0]
        return Download(*sampled)

    def collect(self, step: LaunchedStep) -> StepResult:
        """Wait for a step and bring its tokens to the host."""
        batch = step.batch
        if step.shapes is not None:
            return _collect_pooled(step, step.shapes)
        token_ids, *found = step.sampled.wait()
        logprobs: list[TokenLogprobs | None] = [None] * len(batch.sampled)
        if found:
            rows = _rows_of(token_ids, found[:4])
            named, *wide = map(iter, found[4:] or ((), (), ()))
            for i, sequence in enumerate(batch.sampled):
                params = sequence.params
                if params.logprob_token_ids is not None:
                    logprobs[i] = _named(rows[i], params.logprob_token_ids, next(named))
                elif params.logprobs is not None and is_wide(params.logprobs):
                    logprobs[i] = widened(rows[i], next(wide[0]), next(wide[1]), params.logprobs)
                elif params.logprobs is not None:
                    logprobs[i] = _first(rows[i], params.logprobs)
        prompt: list[tuple[Sequence, int, TokenLogprobs]] = []
        if batch.prompt_targets:
            targets = [sequence.token_ids[position] for sequence, position in batch.prompt_targets]
            scores = step.prompt_logprobs.wait()
            wide = [iter(each) for each in scores[4:]]
            for (sequence, position), row in zip(batch.prompt_targets, _rows_of(targets, scores[:4]), strict=True):
                num_top = sequence.params.prompt_logprobs or 0
                if is_wide(num_top):
                    prompt.append((sequence, position, widened(row, next(wide[0]), next(wide[1]), num_top)))
                else:
                    prompt.append((sequence, position, _first(row, num_top)))
        plan = step.plan
        cuts = [slice(*cut) for cut in pairwise(accumulate(filter(None, plan.num_samples), initial=0))]
        sampling = list(compress(plan.sequences, plan.num_samples))
        return StepResult(sampling, [token_ids[cut] for cut in cuts], [logprobs[cut] for cut in cuts], prompt)

    def wait(self) -> None:
        """Wait until the device has done all that was launched."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence that ended."""
        self._batches.release(sequence)
        self.sampler.release(sequence)


def _collect_pooled(step: LaunchedStep, shapes: list[tuple[int, ...]]) -> StepResult:
    """Cut what a step pooled into its rows' parts."""
    (flat,) = step.sampled.wait_tensors()
    data, at = flat.numpy().tobytes(), 0
    pooled = []
    for shape in shapes:
        nbytes = 4 * math.prod(shape)
        pooled.append(Pooled(data[at : at + nbytes], shape))
        at += nbytes
    sampled = step.batch.sampled
    return StepResult(sampled, [[0] for _ in sampled], [[None] for _ in sampled], [], pooled)


def _second_texts(batch: HostBatch, plan: StepPlan, device: torch.device) -> Tensor | None:
    """Say of each token whether it is of the second text of a pair; None: there are no pairs."""
    begins = [0 if each.pooling is None else each.pooling.second_at for each in plan.sequences]
    if not any(begins):
        return None
    begin = np.repeat(np.array(begins), batch.query_lens)
    return upload(((begin > 0) & (batch.positions >= begin)).astype(np.int64), device)


def _rows_of(token_ids: list[int], found: list[Any]) -> list[TokenLogprobs]:
    chosen, ranks, top_ids, top_logprobs = found
    return [
        TokenLogprobs([token_id, *ids], [value, *values], [rank, *range(1, len(ids) + 1)])
        for token_id, value, rank, ids, values in zip(token_ids, chosen, ranks, top_ids, top_logprobs, strict=True)
    ]


def _named(row: TokenLogprobs, token_ids: tuple[int, ...], scores: list[float]) -> TokenLogprobs:
    """Put the tokens that a request names behind the one that was drawn; their ranks are not looked for."""
    ids, values, ranks = row.token_ids[:1], row.logprobs[:1], row.ranks[:1]
    return TokenLogprobs(ids + list(token_ids), values + scores[: len(token_ids)], ranks + [0] * len(token_ids))


def _first(row: TokenLogprobs, num_top: int) -> TokenLogprobs:
    """Cut a row to what its request asked for; the batch computed the largest number anyone wants."""
    return TokenLogprobs(row.token_ids[: num_top + 1], row.logprobs[: num_top + 1], row.ranks[: num_top + 1])
