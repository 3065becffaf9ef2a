"""Tally: the tokens of one HTTP request, of however many prompts."""

from __future__ import annotations

from baton.messages import Token
from baton.router.flow import Usage


class Tally:
    """Counts tokens, and prompts whose answers have not ended."""

    def __init__(self, num_prompt: int, num_open: int, *, hides_completion: bool) -> None:
        self._num_prompt = num_prompt
        """Tokens of all prompts."""
        self._num_open = num_open
        self._hides_completion = hides_completion
        self._num_cached = 0
        self._num_completion = 0

    def count(self, token: Token, first_of: int) -> None:
        """Count one token; with a prompt's first one its length, else 0."""
        self._num_completion += 1
        self._num_cached += min(token.num_cached, first_of)

    def end(self, usage: Usage) -> bool:
        """Count a prompt whose answer has ended; whether all have."""
        self._num_cached += usage.num_cached
        self._num_completion += usage.num_completion
        self._num_open -= 1
        return self._num_open == 0

    def usage(self) -> dict[str, object]:
        """Return OpenAI's usage object."""
        completion = 0 if self._hides_completion else self._num_completion
        return {
            "prompt_tokens": self._num_prompt,
            "total_tokens": self._num_prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": self._num_cached},
        }
