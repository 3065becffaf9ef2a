"""Decode steps as CUDA graphs: one launch instead of hundreds.

A graph is captured for each padded batch size. Its inputs are one packed array at a fixed address; lengths and block
tables are read on the device, so the same graph serves any lengths. Padding rows have length 0 and write to the scratch
block. The graph takes each row's last token from the device's own buffer, so a step can be launched before the host
has seen the tokens of the one before it.
"""

from __future__ import annotations

import bisect
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from baton.engine.batch import BatchBuilder, HostBatch, known_tokens
from baton.engine.upload import upload
from baton.kernels.attention import AttentionBatch
from baton.models.causal_lm import CausalLM

_FIELDS = ("token_ids", "sources", "positions", "slots", "seq_lens", "rows")
_PADDING = {"sources": -1}


@dataclass(slots=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    packed: Tensor  # [6, size] int64, the inputs
    hidden: Tensor  # [size, hidden_size]


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Give the batch sizes to capture: close together where a padded row costs most."""
    sizes = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16), *range(544, max_num_seqs + 32, 32)]
    return [*(size for size in sizes if size < max_num_seqs), max_num_seqs]


class DecodeGraphs:
    """Captured decode steps of one model."""

    def __init__(self, model: CausalLM, kv: Tensor, batches: BatchBuilder, *, max_num_seqs: int) -> None:
        self._model = model
        self._kv = kv
        self._batches = batches
        self._sizes = graph_sizes(max_num_seqs)
        self._graphs: dict[int, _Graph] = {}

    def capture(self, *, progress: bool) -> None:
        """Capture all sizes, the largest first, whose memory the smaller ones then share."""
        start, free = time.perf_counter(), torch.cuda.mem_get_info()[0]
        pool: Any = None
        sizes = track(
            self._sizes[::-1], "Capturing decode steps", console=Console(stderr=True), disable=not progress
        )
        for size in sizes:
            self._graphs[size] = self._capture_one(size, pool)
            pool = self._graphs[size].graph.pool()
        if progress:
            seconds, nbytes = time.perf_counter() - start, free - torch.cuda.mem_get_info()[0]
            print(
                f"captured {len(self._sizes)} decode steps in {seconds:.1f} s, {nbytes / 2**20:.0f} MiB",
                file=sys.stderr,
            )

    def run(self, batch: HostBatch) -> Tensor | None:
        """Run a decode step; gives hidden states [num_seqs, hidden_size], valid until the next run. None: too large."""
        num_seqs = len(batch.rows)
        at = bisect.bisect_left(self._sizes, num_seqs)
        if at == len(self._sizes):
            return None
        size = self._sizes[at]
        packed = np.zeros((len(_FIELDS), size), dtype=np.int64)
        for i, name in enumerate(_FIELDS):
            packed[i, :num_seqs] = getattr(batch, name)
            packed[i, num_seqs:] = _PADDING.get(name, 0)
        captured = self._graphs[size]
        captured.packed.copy_(upload(packed, captured.packed.device), non_blocking=True)
        captured.graph.replay()
        return captured.hidden[:num_seqs]

    def _capture_one(self, size: int, pool: Any) -> _Graph:
        device = self._model.device
        packed = torch.zeros((len(_FIELDS), size), dtype=torch.int64, device=device)
        packed[_FIELDS.index("sources")] = -1
        query_start = torch.arange(size + 1, dtype=torch.int32, device=device)
        self._forward(packed, query_start)  # compiles what is not compiled, which a capture cannot
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            hidden = self._forward(packed, query_start)
        return _Graph(graph, packed, hidden)

    def _forward(self, packed: Tensor, query_start: Tensor) -> Tensor:
        token_ids, sources, positions, slots, seq_lens, rows = packed.unbind(0)
        size = len(token_ids)
        attention = AttentionBatch(
            block_table=self._batches.table.index_select(0, rows),
            query_start=query_start,
            seq_lens=seq_lens.to(torch.int32),
            slots=slots,
            num_decodes=size,
            query_lens_host=[1] * size,
            seq_lens_host=[],
        )
        token_ids = known_tokens(token_ids, sources, self._batches.last_tokens)
        return self._model.forward(token_ids, positions, self._kv, attention)
