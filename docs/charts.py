"""Charts of what was measured, as SVG, from the result files in `results/`.

A chart takes its colours from the reader's theme: as a file from what the system prefers, inside a page of the site from the
scheme chosen there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

RESULTS = Path(__file__).parent / "results/h100"
WIDTH, ROW, LABELS, RIGHT = 820, 24, 270, 140
STYLE = """<style>
  .chart { --ink: #1d2330; --soft: #667085; --line: #d5d9e2; --ours: #3f73d8; --peer: #d98a2b; --third: #2b9a73; --fourth: #9b6fc4 }
  @media (prefers-color-scheme: dark) { .chart { --ink: #e6e9f0; --soft: #9aa4b5; --line: #3a4252; --ours: #7aa2f0; --peer: #e8a95a; --third: #5cc49d; --fourth: #bd9be0 } }
  [data-md-color-scheme="default"] .chart { --ink: #1d2330; --soft: #667085; --line: #d5d9e2; --ours: #3f73d8; --peer: #d98a2b; --third: #2b9a73; --fourth: #9b6fc4 }
  [data-md-color-scheme="slate"] .chart { --ink: #e6e9f0; --soft: #9aa4b5; --line: #3a4252; --ours: #7aa2f0; --peer: #e8a95a; --third: #5cc49d; --fourth: #bd9be0 }
  .chart text { font: 13px system-ui, sans-serif; fill: var(--ink) } .chart .soft { fill: var(--soft) } .chart .title { font-weight: 600; font-size: 15px }
  .chart .ours { fill: var(--ours) } .chart .peer { fill: var(--peer) } .chart .third { fill: var(--third) } .chart .fourth { fill: var(--fourth) }
  .chart line { stroke: var(--line) } .chart line.one { stroke: var(--soft); stroke-dasharray: 3 3 }
</style>"""


@dataclass(frozen=True, slots=True)
class Row:
    """One workload on one card: both engines and the floor, in `unit`."""

    name: str
    unit: str
    ours: float
    peer: float
    floor: float

    @property
    def times_as_fast(self) -> float:
        """How many times as fast as the peer."""
        return self.peer / self.ours if self.unit == "ms" else self.ours / self.peer

    def of_floor(self, value: float) -> float:
        """Which part of the physical floor a value reaches."""
        return self.floor / value if self.unit == "ms" else value / self.floor


def charts() -> dict[str, str]:
    """Return each chart by its file's name."""
    return {
        "beside-vllm.svg": _beside_peer(offline_rows()),
        "of-the-floor.svg": _of_floor(offline_rows()),
        "serving.svg": _serving(),
    }


@cache
def read(name: str) -> Any:
    """Return a result file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


_PEERS = {
    "decode, batch 1": ("decode1", "step_ms"),
    "decode, batch 8": ("decode8", "step_ms"),
    "decode, batch 32": ("decode32", "step_ms"),
    "decode, batch 128": ("decode128", "step_ms"),
    "decode, batch 256": ("decode256", "step_ms"),
    "prefill 1 x 512": ("prefill1x512", "seconds"),
    "prefill 1 x 2048": ("prefill1x2048", "seconds"),
    "prefill 1 x 8192": ("prefill1x8192", "seconds"),
    "prefill 1 x 32000": ("prefill1x32000", "seconds"),
    "prefill 32 x 2048": ("prefill32x2048", "tok_s"),
    "offline 512 x (1024, 256)": ("throughput", "out_tok_s"),
    "mix of 256": ("mixed", "out_tok_s"),
}


def offline_rows() -> list[Row]:
    """Return the offline workloads of one H100, both engines on it on the same day."""
    found = []
    for row in read("baton_suite")["rows"]:
        part, key = _PEERS[row["workload"]]
        peers = read("vllm_llama8b" if row["model"] == "llama8b" else "vllm_qwen06b")
        if row["model"] == "qwen06b" and part == "mixed":
            part = "mixed_again"  # the better of its two
        peer = peers[part][key] * (1000 if key == "seconds" else 1)
        name = row["workload"] + (", Qwen3-0.6B" if row["model"] == "qwen06b" else "")
        found.append(Row(name, row["unit"], row["baton"], peer, row["floor"]))
    return found


def _beside_peer(rows: Sequence[Row]) -> str:
    """One bar a workload: how many times as fast as vLLM."""
    scale = (WIDTH - LABELS - RIGHT) / max(row.times_as_fast for row in rows)
    top, parts = 46, [_text(0, 18, "Speed on one H100, vLLM 0.25.0 on the same card = 1", "title")]
    for i, row in enumerate(rows):
        y = top + i * ROW
        parts += [
            _text(LABELS - 10, y + 15, row.name, anchor="end"),
            _bar(LABELS, y + 3, row.times_as_fast * scale, ROW - 7, "ours"),
            _text(LABELS + row.times_as_fast * scale + 6, y + 15, f"{row.times_as_fast:.2f}"),
            _text(WIDTH, y + 15, f"{_shown(row.ours)} : {_shown(row.peer)} {row.unit}", "soft", anchor="end"),
        ]
    height = top + len(rows) * ROW + 4
    one = LABELS + scale
    parts.append(f'<line class="one" x1="{one:.1f}" y1="{top - 4}" x2="{one:.1f}" y2="{height}"/>')
    parts.append(_text(one, top - 9, "vLLM", "soft", anchor="middle"))
    parts.append(_text(WIDTH, top - 9, "Baton : vLLM", "soft", anchor="end"))
    return _svg("Baton beside vLLM on one H100", height, parts)


def _of_floor(rows: Sequence[Row]) -> str:
    """Two bars a workload: which part of the physical floor each engine reached."""
    scale, step = WIDTH - LABELS - 60, ROW + 8
    title = "Part of the physical floor that each reached, on one H100"
    top, parts = 58, [_text(0, 18, title, "title"), *_legend(34, [("ours", "Baton"), ("peer", "vLLM 0.25.0")])]
    height = top + len(rows) * step + 4
    for share in (0.25, 0.5, 0.75, 1):
        x = LABELS + share * scale
        parts.append(f'<line x1="{x:.1f}" y1="{top - 4}" x2="{x:.1f}" y2="{height}"/>')
        parts.append(_text(x, top - 8, f"{share:.0%}", "soft", anchor="middle"))
    for i, row in enumerate(rows):
        y = top + i * step
        parts.append(_text(LABELS - 10, y + 18, row.name, anchor="end"))
        for j, (kind, value) in enumerate((("ours", row.ours), ("peer", row.peer))):
            share = row.of_floor(value)
            parts.append(_bar(LABELS, y + 3 + j * 13, share * scale, 11, kind))
            parts.append(_text(LABELS + share * scale + 5, y + 13 + j * 13, f"{share:.0%}", "soft"))
    return _svg("Part of the physical floor reached by Baton and vLLM", height, parts)


_SERVED = (
    ("ours", "two Baton workers that do both", "baton_agg2x512", 1),
    ("third", "prefill and decode apart, always", "baton_pdremote", 1),
    ("fourth", "prefill and decode apart, auto", "baton_pdauto", 1),
    ("peer", "vLLM, two of it", "vllm_512", 2),
)
"""Colour, name, result file, and how many such servers share the rate."""


def _serving() -> str:
    """A group of bars for each rate: the share of requests that met the targets."""
    title = "Share of requests in time, by rate: two H100s, Llama-3.1-8B"
    parts = [_text(0, 18, title, "title"), *_legend(36, [(kind, name) for kind, name, _, _ in _SERVED], columns=2)]
    top, high, left = 90, 200, 46
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = top + high * (1 - share)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{WIDTH}" y2="{y:.1f}"/>')
        parts.append(_text(left - 8, y + 4, f"{share:.0%}", "soft", anchor="end"))
    rates = (8, 16, 24)
    group = (WIDTH - left) / len(rates)
    for i, rate in enumerate(rates):
        for j, (kind, _, name, servers) in enumerate(_SERVED):
            (share,) = (run["good_share"] for run in read(name)["runs"] if run["rate"] * servers == rate)
            x = left + i * group + 34 + j * 50
            parts.append(_bar(x, top + high * (1 - share), 40, high * share, kind))
            parts.append(_text(x + 20, top + high * (1 - share) - 5, f"{share:.0%}", anchor="middle"))
        parts.append(_text(left + i * group + 129, top + high + 20, f"{rate} requests/s", anchor="middle"))
    return _svg("Share of requests in time at three rates", top + high + 30, parts)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    head = f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _bar(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2"/>'


def _legend(y: float, entries: Sequence[tuple[str, str]], columns: int = 4) -> list[str]:
    parts = []
    for i, (kind, name) in enumerate(entries):
        x, down = (i % columns) * WIDTH / columns if columns < 4 else i * 120, y + i // columns * 20
        parts += [_bar(x, down - 9, 10, 10, kind), _text(x + 16, down, name)]
    return parts
