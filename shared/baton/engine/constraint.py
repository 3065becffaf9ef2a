"""GrammarConstraint: a grammar at one sequence.

What it knows is a function of the form and the answer's tokens alone. So it takes those that it has not seen from the
sequence, whoever sampled them: here, on the worker that computed the prompt, or before a replay.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future

import numpy as np
from llguidance import LLMatcher

from baton.errors import BatonError, InvalidRequest
from baton.protocol import SamplingParams

ALL = np.int32(-1)
"""A word of a mask that allows each of its tokens."""


class ConstraintFailed(BatonError):
    """A grammar came to its limits in the middle of an answer, or does not allow what has come."""


class GrammarConstraint:
    """Masks by a grammar, which begin after the thinking, if the form says what ends that."""

    def __init__(self, compiled: Future[LLMatcher], params: SamplingParams, eos_token_ids: tuple[int, ...]) -> None:
        assert params.structured_outputs is not None
        self._compiled = compiled
        self._params = params
        self._eos = eos_token_ids
        self._begins_after = list(params.structured_outputs.begins_after)
        self._is_narrowed = bool(params.allowed_token_ids or params.bad_words_ids or params.min_tokens)
        self._matcher: LLMatcher | None = None
        self._answer: list[int] = []  # what was taken
        self._has_begun = not self._begins_after

    @property
    def is_ready(self) -> bool:
        """Whether the grammar is made, or cannot be."""
        return self._compiled.done()

    @property
    def num_taken(self) -> int:
        """Tokens of the answer that were taken."""
        return len(self._answer)

    @property
    def is_over(self) -> bool:
        """Whether nothing may follow what was taken: its end was drawn, or the model knows none and the form is complete."""
        is_complete = self._has_begun and self._matcher is not None and self._matcher.is_stopped()
        return is_complete and (not self._eos or (bool(self._answer) and self._answer[-1] in self._eos))

    def take(self, token_ids: Iterable[int]) -> None:
        """Go on by the answer's next tokens.

        Raises:
            InvalidRequest: the grammar could not be made. ConstraintFailed: a token is not of it, or it is too much work.
        """
        if self._matcher is None:
            self._matcher = self._compiled.result().deep_copy()
        for token_id in token_ids:
            if self._has_begun and not self._matcher.consume_token(token_id):
                raise self._failure()
            self._answer.append(token_id)
            if not self._has_begun:
                self._has_begun = self._answer[-len(self._begins_after) :] == self._begins_after

    def restart(self) -> None:
        """Forget what was taken; it will be given again."""
        self._matcher, self._answer, self._has_begun = None, [], not self._begins_after

    def mask(self, row: np.ndarray) -> None:
        """Write which tokens may come after what was taken.

        row: [ceil(vocab_size / 32)] int32, token t at bit t % 32 of word t // 32.

        Raises:
            InvalidRequest: what else was asked for leaves no token. ConstraintFailed: it is too much work.
        """
        matcher = self._matcher
        assert matcher is not None
        if not self._has_begun:
            row[:] = ALL
            return
        words = np.frombuffer(matcher.compute_bitmask(), dtype=np.int32)
        if matcher.is_error():
            raise self._failure()
        row[:] = words[: len(row)]
        if self._is_narrowed:
            self._check_narrowed(row)

    def _check_narrowed(self, row: np.ndarray) -> None:
        """See that the sampler, which takes away what else was asked for, is left with a token."""
        params, answer, field = self._params, self._answer, "min_tokens"
        left = np.unpackbits(row.view(np.uint8), bitorder="little").astype(bool)
        if len(answer) < params.min_tokens:
            left[[*self._eos, *params.stop_token_ids]] = False
        if params.bad_words_ids:
            field = "bad_words"
            left[
                [word[-1] for word in params.bad_words_ids if answer[len(answer) + 1 - len(word) :] == [*word[:-1]]]
            ] = False
        if params.allowed_token_ids is not None:
            field = "allowed_token_ids"
            left = left[list(params.allowed_token_ids)]
        if not left.any():
            raise InvalidRequest(
                f"{field} is not valid: after {len(answer)} tokens of the answer it leaves none of those that "
                f"structured_outputs allows. Leave one of the two out.",
                field=field,
            )

    def _failure(self) -> ConstraintFailed:
        assert self._matcher is not None
        reason = " ".join(self._matcher.get_error().split())[:200]
        return ConstraintFailed(
            f"structured_outputs: after {len(self._answer)} tokens the answer cannot go on: {reason}"
        )
