"""A request to go on from prompts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from baton.errors import refuse
from baton.protocol import MAX_N, SamplingParams
from baton.requests.beams import check_beams
from baton.requests.fields import NumScores, Prompt, Whole
from baton.requests.limits import DEFAULT_LIMITS, Limits
from baton.requests.sampling import SamplingRequest
from baton.requests.unserved import COMPLETION


class CompletionRequest(SamplingRequest):
    """POST /v1/completions."""

    unserved = COMPLETION
    prompt: Prompt
    echo: bool | None = False
    logprobs: NumScores | None = None
    suffix: str | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_N), Whole] | None = None

    @property
    def answers_nothing(self) -> bool:
        """Whether only the prompt is asked back, with its scores: max_tokens=0 with echo."""
        return self.max_tokens == 0

    @property
    def num_made(self) -> int:
        """Answers that are made, of which n are the best."""
        return max(self.best_of or 1, self.num_answers)

    def sampling_params(self, limits: Limits = DEFAULT_LIMITS) -> SamplingParams:
        """Return what the engine is asked for."""
        self.check_unserved()
        check_beams(self, self.num_made)
        self._check_best_of()
        self._check_suffix()
        if self.answers_nothing and not self.echo:
            raise refuse("max_tokens", 0, "it must be at least 1, or 0 with echo")
        self.check_limits(limits, len(self.prompt))
        limits.check_alternatives("logprobs", self.logprobs)
        prompt_logprobs = self.prompt_logprobs
        if self.echo and self.logprobs is not None and prompt_logprobs is None:
            prompt_logprobs = self.logprobs
        max_tokens = None if self.max_tokens is None else max(self.max_tokens, 1)
        others = {"prompt_logprobs": prompt_logprobs, "max_tokens": max_tokens, "n": self.num_made, "best_of": None}
        if self.num_made > self.num_answers and self.logprobs is None and self.logprob_token_ids is None:
            others["logprobs"] = 0  # by which they are compared
        return SamplingParams(**self.given_params(**others))

    def _check_suffix(self) -> None:
        if not self.suffix:
            return
        if any(not isinstance(prompt, str) for prompt in self.prompt):
            raise refuse("suffix", self.suffix, "prompt is token ids", "Send text, or put the suffix into the ids.")
        for name in ("echo", "truncate_prompt_tokens"):
            if getattr(self, name):
                raise refuse(name, getattr(self, name), "it excludes suffix", "Leave one of the two out.")

    def _check_best_of(self) -> None:
        if self.best_of is None or self.best_of == self.num_answers:
            return
        if self.best_of < self.num_answers:
            raise refuse("best_of", self.best_of, f"it must be at least n, which is {self.num_answers}")
        if self.stream:
            raise refuse("best_of", self.best_of, "the best are known at the end only", "Ask without stream.")
