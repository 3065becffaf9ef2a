"""The workloads on which engines are compared: the same token ids and lengths for every engine.

An engine here is a callable `generate(prompts, max_tokens, temperature)` that returns when every request has
given exactly `max_tokens` tokens, the end of text ignored.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

Generate = Callable[[list[list[int]], list[int], float], list[list[int]]]


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts and how many tokens each is answered with."""

    name: str
    prompts: list[list[int]]
    max_tokens: list[int]
    temperature: float = 0.0

    @property
    def num_output_tokens(self) -> int:
        """Tokens that all answers have together."""
        return sum(self.max_tokens)


def random_prompts(rng: random.Random, count: int, low: int, high: int, vocab: int = 10_000) -> list[list[int]]:
    """Draw prompts of low..high tokens from ids 10..vocab."""
    return [[rng.randint(10, vocab) for _ in range(rng.randint(low, high))] for _ in range(count)]


def crowd(vocab: int, count: int = 64) -> Workload:
    """64 requests of mixed lengths: 50..1000 tokens in, 20..200 out."""
    rng = random.Random(0)
    prompts = random_prompts(rng, count, 50, 1000, vocab)
    return Workload(f"{count} mixed requests", prompts, [rng.randint(20, 200) for _ in range(count)])


def one_stream(vocab: int, prompt_len: int = 128, output_len: int = 256) -> Workload:
    """One request: what a single user waits for."""
    rng = random.Random(1)
    return Workload("one stream", random_prompts(rng, 1, prompt_len, prompt_len, vocab), [output_len])


def mixed(count: int = 256) -> Workload:
    """256 requests, prompt and output lengths uniform in 100..1024."""
    rng = random.Random(0)
    prompts = random_prompts(rng, count, 100, 1024)
    return Workload("mix", prompts, [rng.randint(100, 1024) for _ in range(count)], temperature=0.6)


def throughput(count: int = 512, prompt_len: int = 1024, output_len: int = 256) -> Workload:
    """512 requests of 1024 tokens in, 256 out."""
    prompts = random_prompts(random.Random(1), count, prompt_len, prompt_len)
    return Workload("offline", prompts, [output_len] * count)


def time_of(generate: Generate, workload: Workload) -> float:
    """Return the seconds that a workload takes."""
    start = time.perf_counter()
    generate(workload.prompts, workload.max_tokens, workload.temperature)
    return time.perf_counter() - start


def decode_step_ms(generate: Generate, batch: int, context: int = 1024, steps: int = 128, repeats: int = 3) -> float:
    """Return the milliseconds of one decode step: (time of 1 + steps tokens - time of 1 token) / steps; the median."""
    found = []
    for repeat in range(repeats):
        times = []
        for seed, tokens in ((100, 1), (200, 1 + steps)):
            rng = random.Random(seed + repeat * 7 + batch)
            prompts = random_prompts(rng, batch, context, context)
            times.append(time_of(generate, Workload("decode", prompts, [tokens] * batch)))
        found.append((times[1] - times[0]) / steps * 1e3)
    return statistics.median(found)


def prefill_seconds(generate: Generate, count: int, prompt_len: int, repeats: int = 3) -> float:
    """Return the seconds until `count` prompts have their first token; the median."""
    found = []
    for repeat in range(repeats):
        prompts = random_prompts(random.Random(300 + repeat + prompt_len), count, prompt_len, prompt_len)
        found.append(time_of(generate, Workload("prefill", prompts, [1] * count)))
    return statistics.median(found)
