"""A request to go on from prompts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from baton.errors import refuse
from baton.protocol import MAX_LOGPROBS, MAX_N, SamplingParams
from baton.requests.fields import Prompt
from baton.requests.sampling import SamplingRequest

MAX_CHOICES = 128
"""Prompts times n: fan-out is charged before admission."""


class CompletionRequest(SamplingRequest):
    """POST /v1/completions."""

    prompt: Prompt
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_N)] | None = None

    @property
    def answers_nothing(self) -> bool:
        """Whether only the prompt is asked back, with its scores: max_tokens=0 with echo."""
        return self.max_tokens == 0

    def sampling_params(self) -> SamplingParams:
        """Return what the engine is asked for."""
        self.check_unserved()
        if self.answers_nothing and not self.echo:
            raise refuse("max_tokens", 0, "it must be at least 1, or 0 with echo")
        if len(self.prompt) * (self.n or 1) > MAX_CHOICES:
            raise refuse("n", self.n, f"prompts times n may be at most {MAX_CHOICES}", "Send several requests.")
        prompt_logprobs = self.prompt_logprobs
        if self.echo and self.logprobs is not None and prompt_logprobs is None:
            prompt_logprobs = self.logprobs
        max_tokens = None if self.max_tokens is None else max(self.max_tokens, 1)
        return SamplingParams(**self.given_params(prompt_logprobs=prompt_logprobs, max_tokens=max_tokens))
