"""What `baton chaos` prints: the rounds, what was lost, what the stack held, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from baton.chaos_round import Round
from baton.stack_resources import MIN_SAMPLES, Resources

_MOST_ROWS = 40
"""Of single rounds; more are added up by role and fault."""
_TEXT = ("role", "fault", "moment", "what", "verdict")


def report(title: str, rounds: Sequence[Round], resources: Resources | None = None) -> int:
    """Print what was done and what became of it; return the exit status."""
    console = Console()
    console.print(title, soft_wrap=True)
    console.print(_one_by_one(rounds) if len(rounds) <= _MOST_ROWS else _added_up(rounds))
    wrong = [(each, line) for each in rounds for line in (*each.lost, *each.changed)]
    for each, line in wrong[:10]:
        console.print(f"{each.role or 'none'}, {each.fault}, {each.moment}: {line}", soft_wrap=True, markup=False)
    grows = False
    if resources is not None:
        console.print(_held(resources))
        growing = [f"{each.kind} of {each.role}" for each in resources.series if each.grows]
        grows = bool(growing)
        num = min((len(each.values) for each in resources.series), default=0)
        if num < MIN_SAMPLES:
            console.print(f"{num} samples: too few to tell what grows.")
        else:
            console.print(f"These grow: {', '.join(growing)}." if grows else "Nothing grows.")
    if not wrong:
        console.print("Nothing was lost, nothing changed.")
    return 1 if wrong or grows else 0


def _one_by_one(rounds: Iterable[Round]) -> Table:
    table = _table("role", "fault", "moment", "streams", "lost", "changed", "cut", "pause")
    for each in rounds:
        moment = f"{each.moment}, late" if each.is_late else each.moment
        table.add_row(each.role or "none", each.fault, moment, *_counts([each]))
    return table


def _added_up(rounds: Iterable[Round]) -> Table:
    table = _table("role", "fault", "rounds", "streams", "lost", "changed", "cut", "pause")
    groups: dict[tuple[str, str], list[Round]] = {}
    for each in rounds:
        groups.setdefault((each.role or "none", each.fault), []).append(each)
    for (role, fault), its in groups.items():
        table.add_row(role, fault, str(len(its)), *_counts(its))
    return table


def _counts(rounds: Sequence[Round]) -> list[str]:
    streams, lost = sum(each.num_streams for each in rounds), sum(len(each.lost) for each in rounds)
    changed, cut = sum(len(each.changed) for each in rounds), sum(each.num_cut for each in rounds)
    longest_s = max(each.longest_pause_s for each in rounds)
    return [*map(str, (streams, lost, changed, cut)), f"{longest_s:.1f} s"]


def _held(resources: Resources) -> Table:
    table = _table("role", "what", "first third", "middle", "last", "verdict")
    for each in resources.series:
        thirds = (f"{value:,.0f}" for value in each.thirds())
        table.add_row(each.role, each.kind, *thirds, "grows" if each.grows else "flat")
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, justify="left" if name in _TEXT else "right")
    return table
