"""Thinking: where in an answer the model thinks, by the marks that it writes, and for how many tokens it may. No torch.

    before ── an opening mark ──▶ inside ── a closing mark ──▶ behind
       └──────── anything else but white space ──────────────────▲

The form that an answer must have, if there is one, begins behind.
"""

from __future__ import annotations

import msgspec

from baton.errors import refuse

MAX_MARKS, MAX_MARK_LEN = 8, 64


class Thinking(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an answer's thoughts are told from the rest. Construction raises `InvalidRequest` naming the field."""

    opens: tuple[str, ...] = ("<think>",)
    closes: tuple[str, ...] = ("</think>",)
    """The first is the one that is written when the budget is spent."""
    ends_before: tuple[str, ...] = ()
    """Tokens that end thoughts too, and belong to what follows."""
    is_open: bool = False
    """Whether the prompt ends inside of thoughts."""
    budget: int | None = None
    """Tokens of the answer that may be thoughts, marks not counted; None: as many as it has."""

    def __post_init__(self) -> None:
        for field in ("opens", "closes", "ends_before"):
            marks = tuple(getattr(self, field))
            msgspec.structs.force_setattr(self, field, marks)
            if len(marks) > MAX_MARKS or not all(isinstance(m, str) and 0 < len(m) <= MAX_MARK_LEN for m in marks):
                limit = f"it must be at most {MAX_MARKS} strings of 1 to {MAX_MARK_LEN} characters"
                raise refuse(f"thinking.{field}", list(marks), limit)
        if not self.closes or not self.opens:
            raise refuse("thinking", "given", "it needs marks that open thoughts, and such that close them")
        if self.budget is not None and (isinstance(self.budget, bool) or self.budget < 0):
            raise refuse("thinking.budget", self.budget, "it must be a whole number, at least 0")
