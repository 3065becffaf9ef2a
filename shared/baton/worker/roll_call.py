"""Roll call, a worker's side: a router names its open legs; what it does not name is nobody's, what runs is named back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from baton.messages import OpenLeg
from baton.worker.mailbox import Peer
from baton.worker.runs import Run


def strays(runs: Iterable[Run], peer: Peer, called: Sequence[OpenLeg]) -> Iterator[tuple[Run, int | None]]:
    """Yield the peer's runs that it did not call, each with None, and choices that it did not call of those it did."""
    named = {(leg.request_id, leg.epoch): set(leg.choices) for leg in called}
    for run in runs:
        if run.peer is not peer:
            continue
        choices = named.get((run.asked.request_id, run.asked.epoch))
        if choices is None:
            yield run, None
        elif run.asked.leg == "decode" and not run.is_over:  # a prompt's KV is for all choices
            for choice in run.open_choices - choices:
                yield run, choice


def open_legs(runs: Iterable[Run], peer: Peer) -> list[OpenLeg]:
    """Name what runs for a peer."""
    return [
        OpenLeg(run.asked.request_id, run.asked.epoch, sorted(run.open_choices))
        for run in runs
        if run.peer is peer and not run.is_over
    ]
