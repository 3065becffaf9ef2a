"""AnswerConstraint: what one sequence is held to: a budget of thoughts, and behind them a grammar.

What it knows is a function of the parameters and the answer's tokens alone. So it takes those that it has not seen from the
sequence, whoever sampled them: here, on the worker that computed the prompt, or before a replay.

Where the model may open thoughts itself, nobody knows with the first tokens which of the two begins: so long, what opens
thoughts may come and what the grammar allows, and the grammar begins anew behind thoughts.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future

import numpy as np
from llguidance import LLMatcher

from baton.engine.grammar_compiler import Held
from baton.engine.thoughts import Thoughts, allow, clear
from baton.errors import BatonError, InvalidRequest
from baton.protocol import SamplingParams

ALL = np.int32(-1)
"""A word of a mask that allows each of its tokens."""


class ConstraintFailed(BatonError):
    """A grammar came to its limits in the middle of an answer, or does not allow what has come."""


class AnswerConstraint:
    """Masks by a budget of thoughts and by a grammar."""

    def __init__(self, compiled: Future[Held], params: SamplingParams, eos_token_ids: tuple[int, ...]) -> None:
        self._compiled = compiled
        self._params = params
        self._eos = eos_token_ids
        self._is_narrowed = bool(params.allowed_token_ids or params.bad_words_ids or params.min_tokens)
        self.restart()

    def restart(self) -> None:
        """Forget what was taken; it will be given again."""
        self._answer: list[int] = []  # what was taken
        self._has_begun = False
        self._matcher: LLMatcher | None = None
        self._thoughts: Thoughts | None = None
        self._is_of_form = True
        """Whether what has come, thoughts left out, can be the beginning of the form."""

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
        is_complete = self._matcher is not None and not self._thinks and self._matcher.is_stopped()
        return is_complete and (not self._eos or (bool(self._answer) and self._answer[-1] in self._eos))

    @property
    def _thinks(self) -> bool:
        return self._thoughts is not None and self._thoughts.place == "inside"

    def is_free(self, num_tokens: int) -> bool:
        """Whether the answer's tokens up to its `num_tokens`th may be any, whatever those are that were not taken yet."""
        if not self._has_begun or self._matcher is not None or self._thoughts is None:
            return False
        return self._thoughts.is_free(num_tokens - len(self._answer))

    def take(self, token_ids: Iterable[int]) -> None:
        """Go on by the answer's next tokens.

        Raises:
            InvalidRequest: the grammar could not be made. ConstraintFailed: a token is not of it, or it is too much work.
        """
        if not self._has_begun:
            self._begin()
        for token_id in token_ids:
            if self._thoughts is None or self._thoughts.place == "behind":
                self._take_form(token_id)
            else:
                self._take_thought(self._thoughts, token_id)
            if not self._is_of_form and not (self._thoughts is not None and self._thoughts.place == "before"):
                raise self._failure()
            self._answer.append(token_id)

    def mask(self, row: np.ndarray) -> None:
        """Write which tokens may come after what was taken.

        row: [ceil(vocab_size / 32)] int32, token t at bit t % 32 of word t // 32.

        Raises:
            InvalidRequest: what else was asked for leaves no token. ConstraintFailed: it is too much work.
        """
        thoughts, field = self._thoughts, "structured_outputs"
        forced = None if thoughts is None else thoughts.forced(self._answer)
        if forced is not None:
            field = "thinking_token_budget"
            row[:] = 0
            allow(row, [forced])
        elif self._matcher is None:
            row[:] = ALL
            return
        elif thoughts is not None and thoughts.place == "inside":
            self._mask_thoughts(row, thoughts, self._matcher)
        else:
            self._mask_form(row, self._matcher)
            if thoughts is not None and thoughts.place == "before":
                allow(row, thoughts.opening(self._answer))
        if self._is_narrowed:
            self._check_narrowed(row, field)

    def _begin(self) -> None:
        held = self._compiled.result()
        self._matcher = None if held.matcher is None else held.matcher.deep_copy()
        if held.marks is not None and self._params.thinking is not None:
            self._thoughts = Thoughts(self._params.thinking, held.marks)
        self._has_begun = True

    def _take_form(self, token_id: int) -> None:
        if self._matcher is not None and self._is_of_form:
            self._is_of_form = self._matcher.consume_token(token_id)

    def _take_thought(self, thoughts: Thoughts, token_id: int) -> None:
        """Go on before or inside of thoughts; what comes before them may be the form's beginning all the same."""
        was_before = thoughts.place == "before"
        thoughts.take(token_id)
        if thoughts.place == "inside":
            if was_before and self._matcher is not None:
                held = self._compiled.result().matcher
                self._matcher, self._is_of_form = None if held is None else held.deep_copy(), True
        elif was_before or token_id in thoughts.marks.ends_before:
            self._take_form(token_id)

    def _mask_form(self, row: np.ndarray, matcher: LLMatcher) -> None:
        if not self._is_of_form:
            row[:] = 0
            return
        words = np.frombuffer(matcher.compute_bitmask(), dtype=np.int32)
        if matcher.is_error():
            raise self._failure()
        row[:] = words[: len(row)]

    def _mask_thoughts(self, row: np.ndarray, thoughts: Thoughts, matcher: LLMatcher) -> None:
        """Allow what leads to the form in the end: no end of the answer, and nothing that the form cannot begin with."""
        row[:] = ALL
        clear(row, self._eos)
        clear(row, [each for each in thoughts.marks.ends_before if not matcher.validate_tokens([each])])
        clear(row, thoughts.overruns)

    def _check_narrowed(self, row: np.ndarray, what: str) -> None:
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
                f"{what} allows. Leave one of the two out.",
                field=field,
            )

    def _failure(self) -> ConstraintFailed:
        reason = "" if self._matcher is None else " ".join(self._matcher.get_error().split())[:200]
        return ConstraintFailed(
            f"structured_outputs: after {len(self._answer)} tokens the answer cannot go on: {reason}"
        )
