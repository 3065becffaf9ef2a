"""For a model, its devices and a traffic: which layout keeps its promises to most requests, and whether apart pays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from baton.bench.goodput import Search, Targets, at
from baton.doctor.figures import Figures
from baton.doctor.model_cost import ModelCost
from baton.doctor.prediction import fit, step_times
from baton.doctor.simulation import Chunks, Layout, gaps_of, simulate
from baton.doctor.traffic import Traffic

FIXED_CHUNKS = (512, 8192)
"""Tokens of a step of workers that keep to no target."""
_STALL = 20.0
"""Gap targets that a longest gap has from which streams are said to stall: a 99th percentile lets a few gaps of any length pass."""
_CLEARLY = 0.02
"""Shares that differ by less are equal: a drawn traffic says no more."""
_ANSWERS = 4.0
"""One after another that are simulated at least."""
_FASTER = 1.07
"""Times the other's highest rate that is clearly higher: the search is no finer."""
_HOLD = 0.9
"""Part of the TTFT target for which a first token may wait for the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What serves: a model on so many equal devices of one host."""

    model: ModelCost
    figures: Figures
    num_devices: int
    link_gbps: float
    """Of KV between two of them."""
    link: str
    """What this link is."""

    @property
    def kv_gbps(self) -> float:
        """GB/s of KV that a prefill worker makes when it does nothing else."""
        times = step_times(self.model, self.figures)
        return self.model.kv_token_nbytes * 2048 / times.prompt_seconds(2048) / 1e9

    def layout(self, num_prefill: int, chunks: Chunks, *, auto: bool = False, hold_s: float = 0.0) -> Layout:
        """Make a layout of all devices."""
        return Layout(
            times=step_times(self.model, self.figures),
            num_decode=self.num_devices - num_prefill,
            num_prefill=num_prefill,
            auto=auto,
            chunks=chunks,
            link_bytes_s=1e9 * self.link_gbps,
            kv_token_nbytes=self.model.kv_token_nbytes,
            kv_tokens=fit(self.model, self.figures).num_tokens,
            hold_s=hold_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One layout under one traffic."""

    name: str
    flags: str
    """Of `baton up`."""
    layout: Layout
    share: float
    """Of good requests."""
    ttft_p50_ms: float
    ttft_p99_ms: float
    gap_p99_ms: float
    gap_max_ms: float
    stalls: bool

    @property
    def is_apart(self) -> bool:
        """Whether it has prefill workers."""
        return self.layout.num_prefill > 0

    def as_json(self) -> dict[str, Any]:
        """Return what a program reads."""
        figures = ("share", "ttft_p50_ms", "ttft_p99_ms", "gap_p99_ms", "gap_max_ms")
        return {"name": self.name, "flags": self.flags, **{name: getattr(self, name) for name in figures}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What was found for one traffic."""

    site: Site
    traffic: Traffic
    targets: Targets
    options: Sequence[Option]
    """The best first."""
    highest: dict[str, float]
    """Requests a second at which 90 % are good, of options that are near the best of their kind; 0: at none."""

    @property
    def together(self) -> Option:
        """The best option without prefill workers."""
        return self._best(is_apart=False)

    @property
    def apart(self) -> Option | None:
        """The best option with them; None of one device."""
        return self._best(is_apart=True) if self.site.num_devices > 1 else None

    def _best(self, *, is_apart: bool) -> Option:
        those = [option for option in self.options if option.is_apart == is_apart]
        # of equal ones `auto`, which sees when the traffic changes
        return max(those, key=lambda option: (self.highest.get(option.name, -1.0), option.layout.auto))

    @property
    def needed_gbps(self) -> float:
        """GB/s of KV that the traffic's prompts are."""
        return self.traffic.rate * self.traffic.input_len * self.site.model.kv_token_nbytes / 1e9

    @property
    def pays(self) -> bool:
        """Whether prefill and decode apart keep more promises, or the same ones at a clearly higher rate."""
        if self.apart is None:
            return False
        if self.apart.stalls and self.needed_gbps > self.site.link_gbps:
            return False  # more waits for the link all the time: what is good of the first minute says nothing
        gain = self.apart.share - self.together.share
        if abs(gain) > _CLEARLY:
            return gain > 0
        if self.apart.stalls != self.together.stalls:
            return self.together.stalls
        return self.highest[self.apart.name] > _FASTER * self.highest[self.together.name]


def advise(site: Site, traffic: Traffic, targets: Targets, *, least_s: float = 30.0) -> Advice:
    """Simulate what may be chosen, for so many seconds at least."""
    lasts_s = max(least_s, _lasting(site, traffic))
    seen = traffic.at_rate(traffic.rate, lasts_s)
    options = sorted(
        (_judged(name, flags, layout, seen, targets) for name, flags, layout in _candidates(site, targets, traffic)),
        key=lambda option: (
            -round(option.share, 2),
            option.stalls,
            option.ttft_p99_ms > targets.ttft_ms,
            option.gap_p99_ms,
        ),
    )
    best = {option.is_apart: option for option in reversed(options)}
    near = [
        each
        for each in options
        if each.share >= best[each.is_apart].share - _CLEARLY and each.stalls <= best[each.is_apart].stalls
    ]
    highest = {option.name: _highest(option.layout, traffic, targets, lasts_s) for option in near}
    return Advice(site=site, traffic=traffic, targets=targets, options=options, highest=highest)


def _lasting(site: Site, traffic: Traffic) -> float:
    """Return the seconds to simulate: several answers one after another, so that as many run at once as ever will."""
    times, rows = step_times(site.model, site.figures), 32
    return _ANSWERS * traffic.output_len * times.seconds(rows, int(rows * traffic.input_len))


def _candidates(site: Site, targets: Targets, traffic: Traffic) -> Iterator[tuple[str, str, Layout]]:
    count, itl_s = site.num_devices, targets.itl_ms / 1e3
    timed = Chunks.within(itl_s, step_times(site.model, site.figures))
    flag = f"--itl-target-ms {targets.itl_ms:g}"
    workers = f"{count} decode"
    yield (
        f"{workers}, steps within {targets.itl_ms:g} ms",
        f"--prefill 0 --decode {count} {flag}",
        site.layout(0, timed),
    )
    for size in FIXED_CHUNKS:
        flags = f"--prefill 0 --decode {count} --itl-target-ms 0 --max-num-batched-tokens {size}"
        yield f"{workers}, steps of {size} tokens", flags, site.layout(0, Chunks(size))
    hold_s = _HOLD * targets.ttft_ms / 1e3
    for num_prefill in _splits(site, traffic, targets.itl_ms):
        name, flags = f"{num_prefill} prefill + {count - num_prefill} decode", f"--prefill {num_prefill} --decode"
        flags = f"{flags} {count - num_prefill} {flag}"
        yield f"{name}, always", f"{flags} --path remote", site.layout(num_prefill, timed, hold_s=hold_s)
        yield f"{name}, auto", flags, site.layout(num_prefill, timed, auto=True, hold_s=hold_s)


def _splits(site: Site, traffic: Traffic, itl_ms: float) -> Sequence[int]:
    """Say how many of the devices may be prefill workers: all numbers, or of many devices those near the work's ratio."""
    count = site.num_devices
    if count <= 4:
        return range(1, count)
    prefill_s, decode_s, _ = work(site, traffic, itl_ms)
    near = round(count * prefill_s / (prefill_s + decode_s))
    return [num for num in (near - 1, near, near + 1) if 0 < num < count]


def work(site: Site, traffic: Traffic, itl_ms: float) -> tuple[float, float, int]:
    """Return the seconds of a device that a mean request takes for its prompt and its answer, and the answers at once.

    As many answers run at once as keep steps within the gap target, or fit the memory.
    """
    times = step_times(site.model, site.figures)
    length = int(traffic.input_len)
    each = int(length + traffic.output_len / 2)
    most = max(1, min(256, fit(site.model, site.figures).num_tokens // int(length + traffic.output_len)))
    rows = max((num for num in range(1, most + 1) if times.seconds(num, num * each) <= itl_ms / 1e3), default=1)
    prompt_s = times.prompt_seconds(length, chunk=times.efficient_chunk())
    return prompt_s, traffic.output_len * times.seconds(rows, rows * each) / rows, rows


def rows_together(site: Site, traffic: Traffic, itl_ms: float) -> int:
    """Say how many answers run at once on a device that computes prompts too, and keeps to the target if it can.

    By Little's law; 256 where it falls behind.
    """
    times, rate = step_times(site.model, site.figures), traffic.rate / site.num_devices
    for_prompts = rate * traffic.input_len * (times.token + times.full)
    rows = 1.0
    for _ in range(50):
        step_s = times.seconds(int(rows), int(rows * (traffic.input_len + traffic.output_len / 2)))
        mixed_s = max(step_s, min(step_s / max(1 - for_prompts, 0.01), itl_ms / 1e3))
        rows = min(256.0, rate * traffic.output_len * mixed_s)
    return max(1, round(rows))


def _judged(name: str, flags: str, layout: Layout, traffic: Traffic, targets: Targets) -> Option:
    outcomes = simulate(layout, traffic)
    firsts, gaps = sorted(outcome.first_s for outcome in outcomes), gaps_of(outcomes) or [0.0]
    return Option(
        name=name,
        flags=flags,
        layout=layout,
        share=targets.share(outcomes),
        ttft_p50_ms=1e3 * at(firsts, 0.5),
        ttft_p99_ms=1e3 * at(firsts, 0.99),
        gap_p99_ms=1e3 * at(gaps, 0.99),
        gap_max_ms=1e3 * gaps[-1],
        stalls=1e3 * gaps[-1] > _STALL * targets.itl_ms,
    )


def _highest(layout: Layout, traffic: Traffic, targets: Targets, lasts_s: float, num_runs: int = 8) -> float:
    """Search the highest rate at which 90 % are good; 0: not at a quarter of this one."""
    search, shares = Search(low=traffic.rate / 4, high=traffic.rate * 4, precision=1.08), dict[float, float]()
    for _ in range(num_runs):
        if (rate := search.next_rate(shares)) is None:
            break
        shares[rate] = targets.share(simulate(layout, traffic.at_rate(rate, lasts_s)))
    return search.held(shares) or 0.0
