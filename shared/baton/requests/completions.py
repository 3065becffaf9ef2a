"""A request to go on from prompts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from baton.errors import refuse
from baton.protocol import MAX_LOGPROBS, MAX_N, SamplingParams
from baton.requests.fields import Prompt, Whole
from baton.requests.limits import DEFAULT_LIMITS, Limits
from baton.requests.sampling import SamplingRequest
from baton.requests.unserved import COMPLETION


class CompletionRequest(SamplingRequest):
    """POST /v1/completions."""

    unserved = COMPLETION
    prompt: Prompt
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), Whole] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_N), Whole] | None = None

    @property
    def answers_nothing(self) -> bool:
        """Whether only the prompt is asked back, with its scores: max_tokens=0 with echo."""
        return self.max_tokens == 0

    def sampling_params(self, limits: Limits = DEFAULT_LIMITS) -> SamplingParams:
        """Return what the engine is asked for."""
        self.check_unserved()
        if self.answers_nothing and not self.echo:
            raise refuse("max_tokens", 0, "it must be at least 1, or 0 with echo")
        self.check_limits(limits, len(self.prompt))
        prompt_logprobs = self.prompt_logprobs
        if self.echo and self.logprobs is not None and prompt_logprobs is None:
            prompt_logprobs = self.logprobs
        max_tokens = None if self.max_tokens is None else max(self.max_tokens, 1)
        return SamplingParams(**self.given_params(prompt_logprobs=prompt_logprobs, max_tokens=max_tokens))
