"""Steps in padded shapes give the answers of steps as they are; here without a capture, on a GPU or in the interpreter."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from baton.engine.batch import HostBatch
from baton.engine.cuda_graphs import StepGraphs
from baton.engine.padded_step import MAX_CHUNKS, StepShape, StepShapes, forward, pack
from baton.engine.upload import upload
from baton.kernels.launch import ON_TRITON
from baton.llm import LLM, SamplingParams

PARAMS = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, detokenize=False, logprobs=2, prompt_logprobs=0)


class Uncaptured(StepGraphs):
    """Compute each padded step when it is asked for, and note its shape."""

    def __init__(self, llm: LLM, shapes: StepShapes) -> None:
        runner = llm.engine.runner
        super().__init__(runner.model, runner.caches, runner._batches, shapes)
        self.ran: list[StepShape | None] = []

    def run(self, batch: HostBatch) -> Tensor | None:
        shape = self._shapes.fit(batch)
        self.ran.append(shape)
        if shape is None:
            return None
        packed = upload(pack(batch, shape), self._model.device)
        return forward(self._model, self._caches, self._batches, shape, packed)[: len(batch.token_ids)]


@pytest.mark.skipif(not ON_TRITON, reason="the reference reads lengths on the host")
def test_answers_are_those_of_steps_as_they_are(tiny_checkpoint: Callable[[str], Path]) -> None:
    rng = random.Random(3)
    prompts = [[rng.randrange(4, 200) for _ in range(length)] for length in (1, 26, 2, 5)]

    llm = LLM(
        tiny_checkpoint("gemma2"),
        skip_tokenizer_init=True,
        use_tqdm=False,
        dtype="float32",
        kv_cache_memory_bytes=2**22,
        max_num_seqs=3,
        max_num_batched_tokens=20,
        max_model_len=64,
        enable_prefix_caching=False,
        enforce_eager=True,
    )

    def answers() -> list[tuple[list[int], list[float]]]:
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], PARAMS, use_tqdm=False)
        found = []
        for output in outputs:
            choice = output.outputs[0]
            rows = [*(output.prompt_logprobs or [])[1:], *(choice.logprobs or [])]
            found.append((choice.token_ids, [entry.logprob for row in rows for entry in (row or {}).values()]))
        return found

    as_they_are = answers()
    runner = llm.engine.runner
    for cache in runner.caches:
        cache.fill_(math.nan)  # nothing of what the first steps wrote may serve the next ones
    num_groups = len(runner.kv_spec.groups)
    graphs = Uncaptured(llm, StepShapes(1, max_num_seqs=3, max_num_tokens=64, num_groups=num_groups))
    runner._graphs = graphs
    for found, expected in zip(answers(), as_they_are, strict=True):
        assert found[0] == expected[0]
        assert found[1] == pytest.approx(expected[1], abs=1e-4)
    assert None not in graphs.ran
    assert {shape.num_chunks for shape in graphs.ran if shape} == {0, MAX_CHUNKS}


def test_mixed_steps_are_captured_as_far_as_launches_bound_them() -> None:
    def largest(num_parameters: int, max_num_tokens: int) -> int:
        shapes = StepShapes(num_parameters, max_num_seqs=256, max_num_tokens=max_num_tokens).all
        assert [shape.num_tokens for shape in shapes] == sorted((s.num_tokens for s in shapes), reverse=True)
        assert len(set(shapes)) == len(shapes)
        return max((shape.num_tokens for shape in shapes if shape.num_chunks), default=0)

    assert largest(600_000_000, 8192) == 2048
    assert largest(8_000_000_000, 8192) == 1024
    assert largest(8_000_000_000, 300) == 300
    assert largest(400_000_000_000, 8192) == 0


@pytest.mark.parametrize(
    ("num_decodes", "chunks", "shape"),
    [
        (5, [], StepShape(8, 8, 0)),
        (256, [], StepShape(256, 256, 0)),
        (257, [], None),
        (0, [3, 40], StepShape(64, 64, MAX_CHUNKS)),
        (9, [400], StepShape(416, 256, MAX_CHUNKS)),
        (1, [2] * MAX_CHUNKS, StepShape(64, 64, MAX_CHUNKS)),
        (1, [2] * (MAX_CHUNKS + 1), None),
        (0, [1024], StepShape(1024, 256, MAX_CHUNKS)),
        (1, [1024], None),
    ],
)
def test_a_step_takes_the_smallest_shape_with_room(
    num_decodes: int, chunks: list[int], shape: StepShape | None
) -> None:
    shapes = StepShapes(8_000_000_000, max_num_seqs=256, max_num_tokens=8192)
    assert shapes.fit(_batch(num_decodes, chunks)) == shape
    assert shape is None or shape in shapes.all


def test_padding_reads_nothing_and_writes_to_the_scratch_block() -> None:
    batch, shape = _batch(2, [3, 4]), StepShape(16, 5, 4)
    packed = torch.from_numpy(pack(batch, shape))
    token_ids, sources, positions, slots, seq_lens, rows, query_start = packed.split_with_sizes(shape.lens)
    assert token_ids[:9].tolist() == sources[:9].tolist() == positions[:9].tolist() == list(range(1, 10))
    assert slots.tolist() == [*range(1, 10), *[0] * 7]
    assert sources[9:].tolist() == [-1] * 7
    assert seq_lens.tolist() == [1, 1, 0, 0, 0, 3, 4, 0, 0]
    assert rows.tolist() == [10, 11, 0, 0, 0, 12, 13, 0, 0]
    assert query_start.tolist() == [0, 1, 2, 2, 2, 2, 5, 9, 9, 9]


def _batch(num_decodes: int, chunks: list[int]) -> HostBatch:
    query_lens = np.array([1] * num_decodes + chunks)
    tokens = np.arange(1, query_lens.sum() + 1)
    return HostBatch(
        token_ids=tokens,
        sources=tokens,
        positions=tokens,
        slots=tokens,
        rows=np.arange(10, 10 + len(query_lens)),
        seq_lens=query_lens,
        query_start=np.concatenate(([0], query_lens.cumsum())),
        query_lens=query_lens,
        num_decodes=num_decodes,
        sampled=[],
        sampled_rows=tokens[:0],
        sampled_at=tokens[:0],
        prompt_tokens=[],
        prompt_targets=[],
    )
