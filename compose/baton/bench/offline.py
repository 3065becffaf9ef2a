"""`baton bench offline`: the engine without a server, beside its peer.

On a CPU the peer runs in the same process, turn by turn with ours, on the same token ids; on a GPU the peer's
figures were recorded on one H200 (gpu_figures.py), and the physical floors of both devices stand beside them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from baton.bench.report import Report
from baton.bench.transformers_peer import TransformersPeer
from baton.bench.workloads import Generate, Workload, crowd, one_stream, time_of
from baton.llm import LLM, SamplingParams


def as_generate(llm: LLM) -> Generate:
    """Adapt an `LLM` to what workloads call."""

    def generate(prompts: Sequence[list[int]], max_tokens: Sequence[int], temperature: float) -> list[list[int]]:
        params = [
            SamplingParams(temperature=temperature, max_tokens=count, ignore_eos=True, detokenize=False, seed=i)
            for i, count in enumerate(max_tokens)
        ]
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]

    return generate


def run_cpu(llm: LLM, *, compare: bool, repeats: int, json_file: Path | None) -> None:
    """Measure a crowd and one stream on this CPU; with `compare`, beside transformers in its best static batch."""
    vocab = llm.engine.model.spec.vocab_size - 1
    peer = TransformersPeer(str(llm.config.model)) if compare else None
    report = Report("baton bench offline")
    for workload in (crowd(vocab), one_stream(vocab)):
        _compare(report, workload, as_generate(llm), peer, repeats)
    report.show(json_file)


def _compare(report: Report, workload: Workload, ours: Generate, peer: TransformersPeer | None, repeats: int) -> None:
    """Add a workload's row: medians of interleaved runs, and how many answers have the same ids."""
    same = None
    if peer is not None:
        peer.batch_size = 1
        if len(workload.prompts) > 1:
            peer.tune(workload)
        theirs = peer.generate(workload.prompts, workload.max_tokens, 0.0)
        answers = ours(workload.prompts, workload.max_tokens, 0.0)
        same = sum(a == b for a, b in zip(answers, theirs, strict=True))
    else:
        ours(workload.prompts[:1], [2], 0.0)
    our_times, peer_times = [], []
    for _ in range(repeats):
        our_times.append(time_of(ours, workload))
        if peer is not None:
            peer_times.append(time_of(peer.generate, workload))
    tokens = workload.num_output_tokens
    our_rate = tokens / statistics.median(our_times)
    peer_rate = tokens / statistics.median(peer_times) if peer_times else None
    report.add(
        workload=workload.name,
        output_tokens=tokens,
        baton_tok_s=our_rate,
        transformers_tok_s=peer_rate,
        ratio=our_rate / peer_rate if peer_rate else None,
        same_answers=None if same is None else f"{same} of {len(workload.prompts)}",
        transformers_batch=None if peer is None else _describe(peer),
    )


def _describe(peer: TransformersPeer) -> str:
    return "1" if peer.batch_size == 1 else f"{peer.batch_size}, sorted by {peer.sort_key}"
