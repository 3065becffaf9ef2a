"""What `baton bench serve` found at one rate: a block of lines for people, and the form of `vllm bench serve` for programs."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from baton.bench.completion_stream import Outcome
from baton.bench.goodput import Targets, at
from baton.bench.loads import Load

LATENCIES = {
    "ttft": "first token (TTFT)",
    "tpot": "each further token (TPOT)",
    "itl": "gap between tokens (ITL)",
    "e2el": "whole answer (E2EL)",
}


@dataclass(frozen=True, slots=True)
class Client:
    """What the measuring itself cost, warm-ups and all servers that were asked at the same time."""

    cpu_s: float = 0.0
    num_tokens: int = 0
    late_s: float = 0.0
    """The most by which a request was sent too late."""

    @property
    def us_per_token(self) -> float:
        """Microseconds of CPU for each token that came."""
        return 1e6 * self.cpu_s / max(1, self.num_tokens)


@dataclass(slots=True)
class Result:
    """The numbers of one load; requests of its warm-up are in none of them."""

    load: Load
    outcomes: Sequence[Outcome]
    seconds: float
    """From the end of the warm-up to the last answer's end."""
    client: Client = field(default_factory=Client)
    targets: Sequence[Targets] = ()
    counted: Mapping[str, int] = field(default_factory=dict)
    """What the server counted meanwhile, if it is Baton: replays, refusals, paths."""
    transfers: Mapping[str, float] = field(default_factory=dict)
    """What it tells of the KV of the last requests."""

    @property
    def good(self) -> list[Outcome]:
        """Requests that ended with the tokens asked for."""
        return [outcome for outcome in self.outcomes if outcome.error is None]

    @property
    def num_failed(self) -> int:
        """All others."""
        return len(self.outcomes) - len(self.good)

    @property
    def num_output(self) -> int:
        """Tokens of all answers."""
        return sum(outcome.num_tokens for outcome in self.good)

    @property
    def num_input(self) -> int:
        """Tokens of all prompts that were answered."""
        return sum(outcome.input_len for outcome in self.good)

    @property
    def num_cached(self) -> int | None:
        """Of these, in the server's prefix cache; None: it does not say."""
        cached = [outcome.num_cached for outcome in self.good if outcome.num_cached is not None]
        return sum(cached) if cached else None

    def latencies(self) -> dict[str, list[float]]:
        """Return each latency's values in seconds, in order."""
        good = self.good
        values = {
            "ttft": [each.first_s for each in good],
            "tpot": [(each.total_s - each.first_s) / (each.num_tokens - 1) for each in good if each.num_tokens > 1],
            "itl": [gap for each in good for gap in each.gaps_s],
            "e2el": [each.total_s for each in good],
        }
        return {name: sorted(seconds) for name, seconds in values.items()}

    def lines(self) -> Iterator[str]:
        """Write the block, at most 80 columns wide."""
        total = self.num_input + self.num_output
        cached = "the server does not say what it had cached"
        if self.num_cached is not None:
            share = self.num_cached / max(1, self.num_input)
            cached = f"{self.num_cached:,} of them ({share:.1%}) from the prefix cache"
        yield f"{self.load.name}: {len(self.good)} answered, {self.num_failed} failed, in {self.seconds:.2f} s"
        yield f"  prompts     {self.num_input:,} tokens; {cached}"
        yield f"  answers     {self.num_output:,} tokens{self._bunched()}"
        yield (
            f"  throughput  {len(self.good) / self.seconds:.2f} requests/s, {self.num_output / self.seconds:,.1f} answer "
            f"tokens/s, {total / self.seconds:,.1f} in all"
        )
        yield from self._latency_lines()
        yield from self._turn_lines()
        for targets in self.targets:
            share = targets.share(self.outcomes)
            yield f"  good        {share:.1%}, {self.good_rate(share):.2f} requests/s ({targets})"
        if counted := [f"{name} {count}" for name, count in self.counted.items() if count]:
            yield f"  server      {', '.join(counted)}"
        if sent := self.transfers:
            times = ", ".join(
                f"{name} {sent[f'{name}_exposed_ms']:.1f}" for name in ("median", "p99", "max") if len(sent) > 3
            )
            again = f"{sent['computed_again']:.0f} of {sent['seen']:.0f} prompts computed again"
            yield f"  KV          {again}; waited for{f' {times} ms' if times else ' none'}"
        client = self.client
        late_ms = 1e3 * client.late_s
        yield f"  client      {client.us_per_token:.1f} us of CPU a token, a request sent at most {late_ms:.1f} ms late"
        yield from self._failure_lines()

    def _failure_lines(self) -> Iterator[str]:
        """Name each kind of failure, with one of its messages: numbers in them differ."""
        errors = [outcome.error for outcome in self.outcomes if outcome.error]
        kinds = Counter(re.sub(r"[\d.]+", "0", error) for error in errors)
        example = {re.sub(r"[\d.]+", "0", error): error for error in errors}
        for kind, count in kinds.most_common(5):
            yield f"  failed      {count}: {example[kind][:240]}"

    def _bunched(self) -> str:
        num_events = sum(outcome.num_events for outcome in self.good)
        if num_events in (0, self.num_output):
            return ""
        return f" in {num_events:,} events; tokens of one event count as gaps of 0"

    def _latency_lines(self) -> Iterator[str]:
        yield f"  {'ms':<26}{'mean':>10}{'median':>10}{'p99':>10}{'p99.9':>10}{'longest':>10}"
        for name, seconds in self.latencies().items():
            spread = _spread(seconds)
            yield f"  {LATENCIES[name]:<26}" + "".join(
                f"{spread[which]:>10,.2f}" for which in ("mean", "median", "p99", "p99_9", "max")
            )

    def _turn_lines(self) -> Iterator[str]:
        for row in self.by_turn():
            yield (
                f"  turn {row['turn']:<3}    TTFT median {row['median_ttft_ms']:,.1f}, p99 {row['p99_ttft_ms']:,.1f} ms; "
                f"prompt {row['mean_input_len']:,.0f}, {row['cached_share']:.1%} cached"
            )

    @property
    def drain_s(self) -> float:
        """How long answers went on after the last request was sent: long where a server has fallen behind."""
        return self.load.warm_up_s + self.seconds - max((outcome.sent_s for outcome in self.outcomes), default=0.0)

    def good_rate(self, share: float) -> float:
        """Return good requests a second of those that were sent, whatever their answers took."""
        sent_s = max((outcome.sent_s for outcome in self.outcomes), default=0.0) - self.load.warm_up_s
        return share * len(self.outcomes) / max(sent_s if math.isfinite(self.load.rate) else self.seconds, 1e-9)

    def by_turn(self) -> list[dict[str, Any]]:
        """Return what each turn of conversations took; nothing for single requests."""
        num_turns = 1 + max((outcome.turn for outcome in self.good), default=0)
        rows = []
        for turn in range(num_turns if num_turns > 1 else 0):
            those = [outcome for outcome in self.good if outcome.turn == turn]
            spread = _spread(sorted(outcome.first_s for outcome in those))
            num_input = sum(outcome.input_len for outcome in those)
            rows.append(
                {
                    "turn": turn + 1,
                    "requests": len(those),
                    "median_ttft_ms": spread["median"],
                    "p99_ttft_ms": spread["p99"],
                    "mean_input_len": num_input / max(1, len(those)),
                    "cached_share": sum(outcome.num_cached or 0 for outcome in those) / max(1, num_input),
                }
            )
        return rows

    def goodput(self) -> list[dict[str, float]]:
        """Return share and rate of good requests for each pair of targets."""
        rows = []
        for targets in self.targets:
            share = targets.share(self.outcomes)
            rate = self.good_rate(share)
            rows.append(
                {"ttft_target_ms": targets.ttft_ms, "itl_target_ms": targets.itl_ms, "share": share, "good_per_s": rate}
            )
        return rows

    def numbers(self) -> dict[str, Any]:
        """Return the figures under the names that `vllm bench serve` gives them, and what it does not have."""
        total = self.num_input + self.num_output
        latencies = {
            f"{which}_{name}_ms": None if math.isnan(value) else value
            for name, seconds in self.latencies().items()
            for which, value in _spread(seconds).items()
        }
        num_good = sum(map(self.targets[0].holds, self.outcomes)) if self.targets else None
        return {
            "duration": self.seconds,
            "drain_s": self.drain_s,
            "completed": len(self.good),
            "failed": self.num_failed,
            "total_input_tokens": self.num_input,
            "total_output_tokens": self.num_output,
            "total_cached_tokens": self.num_cached,
            "request_throughput": len(self.good) / self.seconds,
            "request_goodput": None if num_good is None else num_good / self.seconds,
            "output_throughput": self.num_output / self.seconds,
            "total_token_throughput": total / self.seconds,
            **latencies,
            "goodput": self.goodput(),
            "turns": self.by_turn(),
            "server_counts": dict(self.counted),
            "transfers": dict(self.transfers),
            "client_cpu_us_per_token": self.client.us_per_token,
            "client_late_ms": 1e3 * self.client.late_s,
            "errors_seen": sorted({outcome.error for outcome in self.outcomes if outcome.error})[:20],
        }

    def details(self) -> dict[str, Any]:
        """Return a list entry a request, as `vllm bench serve --save-detailed` does."""
        return {
            "input_lens": [outcome.input_len for outcome in self.outcomes],
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


def _spread(ordered: Sequence[float]) -> dict[str, float]:
    """Return mean, median, standard deviation, upper quantiles and the most in ms, of seconds in order; NaN of nothing."""
    if not ordered:
        return dict.fromkeys(("mean", "median", "std", "p90", "p99", "p99_9", "max"), math.nan)
    mean = statistics.fmean(ordered)
    return {
        "mean": 1e3 * mean,
        "median": 1e3 * statistics.median(ordered),
        "std": 1e3 * math.sqrt(statistics.fmean((value - mean) ** 2 for value in ordered)),
        "p90": 1e3 * at(ordered, 0.90),
        "p99": 1e3 * at(ordered, 0.99),
        "p99_9": 1e3 * at(ordered, 0.999),
        "max": 1e3 * ordered[-1],
    }
