"""One round of `baton chaos`: a fault, and what became of the streams under it."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.comparison import compare
from baton.recording import Answer, Question
from baton.stack_processes import Role


@dataclass(slots=True)
class Round:
    """One fault, and what became of the streams."""

    role: Role | None = None
    """None: nothing is disturbed."""
    fault: str = ""
    moment: str = ""
    num_streams: int = 0
    lost: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    num_cut: int = 0
    """Streams of a router that was killed."""
    longest_pause_s: float = 0.0
    is_late: bool = False
    """The answers had come before the moment was seen."""

    @property
    def ends_streams(self) -> bool:
        """Whether streams may break off: nobody is left to tell their clients anything."""
        return (self.role, self.fault) == ("router", "kill")

    def count(self, i: int, question: Question, answer: Answer, wanted: Answer, bound: float) -> None:
        """Judge one stream."""
        self.num_streams += 1
        self.longest_pause_s = max(self.longest_pause_s, answer.longest_pause_s)
        if answer.is_cut and self.ends_streams:
            self.num_cut += 1
            question = Question(question.prompt, {**question.settings, "max_tokens": len(answer.token_ids)})
        elif answer.error is not None:
            self.lost.append(f"stream {i} after {len(answer.token_ids)} tokens: {answer.error}")
            return
        if difference := compare(question, answer, wanted, bound).difference:
            self.changed.append(f"stream {i}: {difference}")
