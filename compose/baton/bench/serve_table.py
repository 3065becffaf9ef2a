"""Runs of `baton bench serve` as one table of plain lines: a row a server and rate, and beside the first server the ratio."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_FIGURES = (("median_ttft_ms", 8), ("p99_ttft_ms", 8), ("median_itl_ms", 6), ("p99_itl_ms", 7), ("max_itl_ms", 8))


def table_lines(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Write the table; rows of one rate stand together, servers in the order in which they are given."""
    width = max(6, *(len(label) for label in runs))
    targets = list(dict.fromkeys(pair for each in runs.values() for run in each for pair in _shares(run)))
    yield f"{'':{width}}{'':>7}{'':>5}{'TTFT ms':>16}{'gap ms':>21}" + ("  good, gap ms <=" if targets else "")
    heads = f"{'server':{width}}{'req/s':>7}{'lost':>5}{'p50':>8}{'p99':>8}{'p50':>6}{'p99':>7}{'longest':>8}"
    yield heads + "".join(f"{itl:>6g}" for _, itl in targets)
    for rate in sorted({float(run["rate"]) for each in runs.values() for run in each}):
        rows = [(label, run) for label, each in runs.items() for run in each if float(run["rate"]) == rate]
        for number, (label, run) in enumerate(rows):
            figures = "".join(_figure(run.get(name), of) for name, of in _FIGURES)
            shares = "".join(_share(_shares(run).get(pair)) for pair in targets)
            yield f"{label:{width}}{rate:>7g}{run['failed']:>5}{figures}{shares}"
            if number:
                yield _ratio(width, rows[0][1], run, targets)
    for ttft in sorted({ttft for ttft, _ in targets}):
        yield f"good: the first token within {ttft:g} ms, and the request's own p99 gap within what the column says"


def _ratio(width: int, first: Mapping[str, Any], run: Mapping[str, Any], targets: Sequence[tuple[float, float]]) -> str:
    figures = "".join(_times(run.get(name), first.get(name), of) for name, of in _FIGURES)
    theirs, ours = _shares(first), _shares(run)
    shares = "".join(_times(ours.get(pair), theirs.get(pair), 6) for pair in targets)
    return f"{'ratio':>{width}}{'':>12}{figures}{shares}"


def _shares(run: Mapping[str, Any]) -> dict[tuple[float, float], float]:
    return {(each["ttft_target_ms"], each["itl_target_ms"]): each["share"] for each in run.get("goodput", ())}


def _figure(value: float | None, width: int) -> str:
    if value is None:
        return f"{'-':>{width}}"
    return f"{value:>{width},.0f}" if value >= 1000 else f"{value:>{width}.1f}"


def _share(value: float | None) -> str:
    return f"{'-':>6}" if value is None else f"{value:>6.2f}"


def _times(value: float | None, first: float | None, width: int) -> str:
    if value is None or not first:
        return f"{'-':>{width}}"
    return f"{f'x{value / first:.2f}':>{width}}"
