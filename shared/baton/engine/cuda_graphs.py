"""Steps as CUDA graphs: one launch instead of hundreds.

A graph is captured for each shape of padded_step.py; its inputs are one packed array at a fixed address.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baton.engine.batch import BatchBuilder, HostBatch
from baton.engine.padded_step import StepShape, StepShapes, forward, pack
from baton.engine.upload import upload
from baton.models.causal_lm import CausalLM
from baton.progress import Bar, tell


@dataclass(slots=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    packed: Tensor  # [num_words] int64, the inputs
    hidden: Tensor  # [num_tokens, hidden_size]


class StepGraphs:
    """Captured steps of one model."""

    def __init__(self, model: CausalLM, caches: Sequence[Tensor], batches: BatchBuilder, shapes: StepShapes) -> None:
        self._model = model
        self._caches = caches
        self._batches = batches
        self._shapes = shapes
        self.most_mixed = shapes.most_mixed
        self._graphs: dict[StepShape, _Graph] = {}

    def capture(self, *, progress: bool) -> None:
        """Capture all shapes, the largest first, whose memory the smaller ones then share."""
        start, free = time.perf_counter(), torch.cuda.mem_get_info()[0]
        pool: Any = None
        shapes = self._shapes.all
        for shape in Bar(shapes, desc="Capturing steps", unit=" steps", disable=not progress):
            self._graphs[shape] = self._capture_one(shape, pool)
            pool = self._graphs[shape].graph.pool()
        if progress:
            seconds, nbytes = time.perf_counter() - start, free - torch.cuda.mem_get_info()[0]
            tell(
                f"captured {len(shapes)} steps of up to {shapes[0].num_tokens} tokens in {seconds:.1f} s, "
                f"{nbytes / 2**20:.0f} MiB"
            )

    def run(self, batch: HostBatch) -> Tensor | None:
        """Run a step; its hidden states [num_tokens, hidden_size] are valid until the next run. None: no shape fits it."""
        shape = self._shapes.fit(batch)
        if shape is None:
            return None
        captured = self._graphs[shape]
        captured.packed.copy_(upload(pack(batch, shape), self._model.device), non_blocking=True)
        captured.graph.replay()
        return captured.hidden[: len(batch.token_ids)]

    def _capture_one(self, shape: StepShape, pool: Any) -> _Graph:
        device = self._model.device
        packed = torch.zeros(sum(shape.lens), dtype=torch.int64, device=device)
        step = self._model, self._caches, self._batches, shape, packed
        forward(*step)  # compiles what is not compiled, which a capture cannot
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            hidden = forward(*step)
        return _Graph(graph, packed, hidden)
