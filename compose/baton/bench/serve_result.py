"""What `baton bench serve` found at one rate: a block of lines for people, and the form of `vllm bench serve` for programs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from baton.bench.loads import Load

LATENCIES = {
    "ttft": "first token (TTFT)",
    "tpot": "each further token (TPOT)",
    "itl": "gap between tokens (ITL)",
    "e2el": "whole answer (E2EL)",
}


@dataclass(slots=True)
class Outcome:
    """What a client saw of one request."""

    sent_s: float = 0.0
    """Since the load began."""
    first_s: float = math.nan
    gaps_s: list[float] = field(default_factory=list)
    total_s: float = math.nan
    num_tokens: int = 0
    num_cached: int | None = None
    """Prompt tokens that the server had in its prefix cache; None: it does not say."""
    error: str | None = None


class Result:
    """The numbers of one load."""

    def __init__(self, load: Load, outcomes: Sequence[Outcome], seconds: float) -> None:
        self.load, self.outcomes, self.seconds = load, outcomes, seconds
        self.good = [outcome for outcome in outcomes if outcome.error is None]
        answered = [arrival for arrival, seen in zip(load.arrivals, outcomes, strict=True) if seen.error is None]
        self.num_input = sum(len(arrival.prompt) for arrival in answered)
        self.num_output = sum(outcome.num_tokens for outcome in self.good)
        cached = [outcome.num_cached for outcome in self.good if outcome.num_cached is not None]
        self.num_cached = sum(cached) if cached else None
        self._seconds = {
            "ttft": [each.first_s for each in self.good],
            "tpot": [
                (each.total_s - each.first_s) / (each.num_tokens - 1) for each in self.good if each.num_tokens > 1
            ],
            "itl": [gap for each in self.good for gap in each.gaps_s],
            "e2el": [each.total_s for each in self.good],
        }

    @property
    def num_failed(self) -> int:
        """Requests that did not end with the tokens asked for."""
        return len(self.outcomes) - len(self.good)

    def lines(self) -> Iterator[str]:
        """Write the block, at most 80 columns wide."""
        total = self.num_input + self.num_output
        cached = "the server does not say what it had cached"
        if self.num_cached is not None:
            share = self.num_cached / max(1, self.num_input)
            cached = f"{self.num_cached:,} of them ({share:.1%}) from the prefix cache"
        yield f"{self.load.name}: {len(self.good)} answered, {self.num_failed} failed, in {self.seconds:.2f} s"
        yield f"  prompts     {self.num_input:,} tokens; {cached}"
        yield f"  answers     {self.num_output:,} tokens"
        yield (
            f"  throughput  {len(self.good) / self.seconds:.2f} requests/s, {self.num_output / self.seconds:,.1f} answer "
            f"tokens/s, {total / self.seconds:,.1f} in all"
        )
        yield f"  {'ms':<26}{'mean':>10}{'median':>10}{'p99':>10}"
        for name, title in LATENCIES.items():
            spread = _spread(self._seconds[name])
            yield f"  {title:<26}" + "".join(f"{spread[which]:>10,.2f}" for which in ("mean", "median", "p99"))
        for error in sorted({outcome.error for outcome in self.outcomes if outcome.error})[:5]:
            yield f"  failed: {error}"

    def numbers(self) -> dict[str, Any]:
        """Return the figures under the names that `vllm bench serve` gives them, and what was cached."""
        total = self.num_input + self.num_output
        latencies = {
            f"{which}_{name}_ms": None if math.isnan(value) else value
            for name, seconds in self._seconds.items()
            for which, value in _spread(seconds).items()
        }
        return {
            "duration": self.seconds,
            "completed": len(self.good),
            "failed": self.num_failed,
            "total_input_tokens": self.num_input,
            "total_output_tokens": self.num_output,
            "total_cached_tokens": self.num_cached,
            "request_throughput": len(self.good) / self.seconds,
            "request_goodput": None,
            "output_throughput": self.num_output / self.seconds,
            "total_token_throughput": total / self.seconds,
            **latencies,
        }

    def details(self) -> dict[str, Any]:
        """Return a list entry a request, as `vllm bench serve --save-detailed` does."""
        return {
            "input_lens": [len(arrival.prompt) for arrival in self.load.arrivals],
            "output_lens": [outcome.num_tokens for outcome in self.outcomes],
            "start_times": [outcome.sent_s for outcome in self.outcomes],
            "ttfts": [None if math.isnan(outcome.first_s) else outcome.first_s for outcome in self.outcomes],
            "itls": [outcome.gaps_s for outcome in self.outcomes],
            "errors": [outcome.error or "" for outcome in self.outcomes],
        }

    def vllm_form(self, model: str, *, max_concurrency: int | None, seed: str, now: datetime) -> dict[str, Any]:
        """Return the whole as `vllm bench serve --save-result` writes it."""
        return {
            "date": now.strftime("%Y%m%d-%H%M%S"),
            "endpoint_type": "openai",
            "backend": "openai",
            "label": "baton",
            "model_id": model,
            "tokenizer_id": model,
            "num_prompts": len(self.outcomes),
            "request_rate": "inf" if math.isinf(self.load.rate) else self.load.rate,
            "burstiness": 1.0,
            "max_concurrency": max_concurrency,
            "seed": seed,
            **self.numbers(),
        }


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    """Return mean, median, standard deviation and 99th percentile in ms; NaN of nothing."""
    if not seconds:
        return dict.fromkeys(("mean", "median", "std", "p99"), math.nan)
    ordered = sorted(seconds)
    return {
        "mean": 1e3 * statistics.fmean(ordered),
        "median": 1e3 * statistics.median(ordered),
        "std": 1e3 * statistics.pstdev(ordered),
        "p99": 1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
    }
