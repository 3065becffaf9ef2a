"""How much one request may ask for: what a router's flags set."""

from __future__ import annotations

from typing import NamedTuple

from baton.errors import refuse
from baton.protocol import MAX_LOGPROBS, SamplingParams, check_alternatives


class Limits(NamedTuple):
    """Bounds of fan-out and of work a token."""

    max_choices: int = 128
    """n, and prompts times n: fan-out is charged before admission."""
    max_prompts: int = 64
    max_stop_strings: int = 16
    """Each costs time at every token."""
    max_prompt_scores: int = 400_000
    """Tokens of prompts times alternatives times n: each takes a microsecond, and 70 bytes of the answer."""
    max_answer_scores: int = 4_000_000
    """Tokens of whole answers times alternatives: kept until the last one is there."""
    max_logprobs: int = MAX_LOGPROBS
    """Alternatives a position; -1: any number."""

    def check(self, *, n: int, num_prompts: int, num_stop: int) -> None:
        """Refuse what exceeds a bound.

        Raises:
            InvalidRequest: names the field, its value, the limit and the flag that moves it.
        """
        self._check_one("prompt", num_prompts, "prompts", self.max_prompts, "max_prompts")
        self._check_one("stop", num_stop, "strings", self.max_stop_strings, "max_stop_strings")
        if n * num_prompts > self.max_choices:
            what = "n" if num_prompts == 1 else f"{num_prompts} prompts times n"
            way_out = f"Send several requests, or raise {_flag('max_choices')}."
            raise refuse("n", n, f"{what} may be at most {self.max_choices}", way_out)

    def check_alternatives(self, field: str, value: int | None) -> None:
        """Refuse more log-probabilities a position than are given."""
        check_alternatives(field, value, self.max_logprobs, _flag("max_logprobs"))

    def check_scores(self, params: SamplingParams, num_prompt_tokens: int) -> None:
        """Refuse more log-probabilities of prompts than one answer may hold.

        Raises:
            InvalidRequest: as `check`.
        """
        if params.prompt_logprobs is None:
            return
        count = num_prompt_tokens * (params.prompt_logprobs + 1) * params.n
        if count > self.max_prompt_scores:
            limit = (
                f"with {num_prompt_tokens} tokens of prompts and n={params.n} it makes {count} scores, and at most "
                f"{self.max_prompt_scores} are given at once"
            )
            way_out = f"Ask for fewer alternatives or choices, send less, or raise {_flag('max_prompt_scores')}."
            raise refuse("prompt_logprobs", params.prompt_logprobs, limit, way_out)

    def check_answer_scores(self, params: SamplingParams, room: int) -> None:
        """Refuse more log-probabilities of an answer's own tokens than one whole answer may hold.

        `room` is how many tokens the context holds after each prompt, all prompts together.

        Raises:
            InvalidRequest: as `check`.
        """
        if params.num_top is None:
            return
        num_tokens = room * params.n
        count = num_tokens * (params.num_top + len(params.logprob_token_ids or ()) + 1)
        if count > self.max_answer_scores:
            limit = (
                f"with n={params.n} and answers of up to {num_tokens} tokens together it makes {count} scores, and at "
                f"most {self.max_answer_scores} are kept for a whole answer"
            )
            way_out = f"Lower max_tokens or n, ask with stream, or raise {_flag('max_answer_scores')}."
            field = "logprobs" if params.logprob_token_ids is None else "logprob_token_ids"
            raise refuse(field, getattr(params, field), limit, way_out)

    @staticmethod
    def _check_one(field: str, count: int, noun: str, limit: int, name: str) -> None:
        if count > limit:
            way_out = f"Send fewer, or raise {_flag(name)}."
            raise refuse(field, f"{count} {noun}", f"at most {limit} are taken at once", way_out)


def _flag(name: str) -> str:
    """Name a setting as whoever runs `baton router`, and as whoever runs `baton up`, gives it."""
    return f"the router's --{name.replace('_', '-')} (BATON_{name.upper()})"


DEFAULT_LIMITS = Limits()
