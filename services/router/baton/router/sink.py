"""Sink: who takes an answer, a stream or a collector. What is shown of a token is made by a ChoiceText before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from baton.errors import BatonError
from baton.messages import Token

Shown_co = TypeVar("Shown_co", covariant=True)
Shown_contra = TypeVar("Shown_contra", contravariant=True)


@dataclass(slots=True)
class Usage:
    """Tokens of one prompt and its answers so far, however many workers took part."""

    num_prompt: int
    num_cached: int = 0
    """Prompt tokens that were not computed for this request, wherever they lay."""
    num_completion: int = 0
    """Tokens given to the client, over all choices."""
    num_restored: int = 0
    """Of `num_cached`, those whose KV came from the host's memory, or from disk."""

    def take_cached(self, num_cached: int, num_restored: int) -> None:
        """Note what a worker says that it found of the prompt, which is no more than there is."""
        self.num_cached = min(num_cached, self.num_prompt)
        self.num_restored = min(num_restored, self.num_cached)


class ChoiceText(Protocol[Shown_co]):
    """One choice's tokens becoming what its sink shows."""

    def push(self, token_id: int, finish_reason: str | None) -> tuple[Shown_co, str | None]:
        """Take a token; return what may be shown now, and the stop string if one has ended the choice."""


class Sink(Protocol[Shown_contra]):
    """Who takes an answer. Calls never block and never raise."""

    def push(
        self,
        choice: int,
        shown: Shown_contra,
        token: Token,
        finish_reason: str | None,
        stop_reason: int | str | None,
        /,
    ) -> None:
        """Take one token, what is shown of it, and the end of its choice if it is one."""

    def end(self, usage: Usage) -> None:
        """Every choice has ended."""

    def fail(self, error: BatonError) -> None:
        """The request has failed; nothing follows."""
