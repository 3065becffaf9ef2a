"""The peer on a CPU: `transformers` generate, at its best static batch."""

from __future__ import annotations

from pathlib import Path

import torch

from baton.bench.workloads import Workload, time_of


class TransformersPeer:
    """Answer prompts in static batches, left-padded, each batch until its longest answer is done."""

    def __init__(self, model: str | Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self._model.generation_config.eos_token_id = None  # every answer has its full length, on both sides
        self.batch_size = 1
        self.sort_key: str = "output"

    def generate(self, prompts: list[list[int]], max_tokens: list[int], temperature: float) -> list[list[int]]:
        """Answer greedily; returns each request's own number of tokens."""
        assert temperature == 0.0, "compared greedily, so that ids can be compared too"
        lens = max_tokens if self.sort_key == "output" else [len(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda i: lens[i])
        answers: list[list[int]] = [[] for _ in prompts]
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            rows = self._batch([prompts[i] for i in chosen], max(max_tokens[i] for i in chosen))
            for i, row in zip(chosen, rows, strict=True):
                answers[i] = row[: max_tokens[i]]
        return answers

    @torch.inference_mode()
    def _batch(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        found = self._model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=num_tokens, pad_token_id=0
        )
        rows: list[list[int]] = found[:, width:].tolist()
        return rows

    def tune(self, workload: Workload, batch_sizes: tuple[int, ...] = (8, 16, 32, 64)) -> float:
        """Find the batch size and order that serve a workload fastest, and keep them; return the seconds."""
        found = []
        for sort_key in ("output", "prompt"):
            for batch_size in batch_sizes:
                self.batch_size, self.sort_key = batch_size, sort_key
                found.append((time_of(self.generate, workload), batch_size, sort_key))
        seconds, self.batch_size, self.sort_key = min(found)
        return seconds
