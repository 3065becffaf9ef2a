"""What the flags of `baton bench serve` mean: which loads, targets and servers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.bench.goodput import Search, Targets
from baton.bench.loads import Load, Shape, Span, poisson
from baton.bench.serve import Server
from baton.bench.traces import read_trace
from baton.errors import ConfigError

_USUAL_ITL_MS = 30.0
"""Of a search that was given no target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which requests."""

    shape: Shape
    span: Span
    seed: str
    trace: Path | None = None
    trace_speed: float = 1.0

    def load_at(self, rate: float, max_len: int) -> Load:
        """Make the load at a rate; of a trace the one that there is.

        Raises:
            ConfigError: what may be drawn does not fit the server's context.
        """
        shape = self.shape
        if self.trace is not None:
            speed, count = self.trace_speed, self.span.count
            return read_trace(self.trace, count, speed=speed, max_len=max_len, vocab=shape.vocab, seed=self.seed)
        if shape.longest > max_len:
            raise ConfigError(
                f"a prompt and its answer may have {shape.longest} tokens, but the server's context is {max_len}. Lower "
                f"--input-len, --output-len, --prefix-len or --turns."
            )
        return poisson(shape, rate, self.span, seed=self.seed)

    def described(self) -> dict[str, Any]:
        """Return what makes two loads of the same rate the same."""
        trace = None if self.trace is None else [self.trace.name, self.trace_speed]
        return {**dataclasses.asdict(self.shape), **dataclasses.asdict(self.span), "seed": self.seed, "trace": trace}


def targets(ttft_ms: float, itl_ms: Sequence[float] | None, *, sweep: bool) -> list[Targets]:
    """Return each pair of targets, the tightest last; none where none was named."""
    named = list(itl_ms or ()) or ([_USUAL_ITL_MS] if sweep else [])
    return [Targets(ttft_ms, each) for each in sorted(set(named), reverse=True)]


def search(rates: Sequence[float], good_share: float) -> Search:
    """Return a search between the least and the highest rate.

    Raises:
        ConfigError: these are not two finite rates.
    """
    low, high = min(rates), max(rates)
    if not low < high < float("inf"):
        raise ConfigError(
            f"rate={', '.join(f'{rate:g}' for rate in rates)} is not valid with --sweep: name two finite rates to search "
            "between, such as --rate 1,64."
        )
    return Search(low=low, high=high, good_share=good_share)


def servers(
    urls: tuple[str, str | None], labels: Sequence[str], model: str | None, api_key: str | None, limit: int | None
) -> list[Server]:
    """Return whom to ask: one, or two beside each other."""
    named = [url for url in urls if url is not None]
    labels = [*labels, "beside"]  # of the second, where only the first was named
    return [
        Server(url=url, api_key=api_key, model=model, max_concurrency=limit, label=label)
        for url, label in zip(named, labels, strict=False)
    ]
