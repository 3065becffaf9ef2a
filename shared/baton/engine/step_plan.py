"""What one step computes, row by row: what the scheduler decides and the runner carries out."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.engine.sequence import Sequence


@dataclass(slots=True)
class StepPlan:
    """One step's rows, those with exactly one new token first. Lists have one entry a row, but `admitted` and `preempted`."""

    sequences: list[Sequence] = field(default_factory=list)
    num_new: list[int] = field(default_factory=list)
    """Tokens that the row computes."""
    starts: list[int] = field(default_factory=list)
    """Tokens computed before: the position of the row's first new token."""
    num_samples: list[int] = field(default_factory=list)
    """Tokens sampled after the last ones that the row computes: 1 where it reaches the sequence's last token, else 0;
    with n guessed tokens behind that one, n + 1."""
    admitted: list[Sequence] = field(default_factory=list)
    """Sequences that left the queue for this step."""
    preempted: list[Sequence] = field(default_factory=list)
    """Sequences that lost their blocks before this step; one may be among its rows again, with other blocks."""
    num_tokens: int = 0
    num_decodes: int = 0
    """Rows with exactly one new token."""
    num_chunk_pairs: int = 0
    """Of the other rows: new tokens times the tokens up to their end, which bounds what attention does."""

    def add(self, sequence: Sequence, num_new: int, num_samples: int) -> None:
        """Add a row and count its tokens as computed; the blocks are there already."""
        start = sequence.num_computed
        sequence.num_computed = start + num_new
        at = len(self.sequences)
        if num_new == 1:
            at = self.num_decodes
            self.num_decodes += 1
        else:
            self.num_chunk_pairs += num_new * (start + num_new)
        self.sequences.insert(at, sequence)
        self.num_new.insert(at, num_new)
        self.starts.insert(at, start)
        self.num_samples.insert(at, num_samples)
        self.num_tokens += num_new
        sequence.num_in_flight += 1
        sequence.num_pending += num_samples > 0
