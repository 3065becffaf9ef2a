"""A prompt of Python's callers, as a mapping."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from baton.errors import InvalidRequest
from baton.requests.closed import Closed, Unserved

_NO_MEDIA = Unserved("only text is served yet", ({},))
_NO_ENCODERS = Unserved("models with an encoder are not served")
_UNSERVED = {
    **dict.fromkeys(("multi_modal_data", "multi_modal_uuids", "mm_processor_kwargs"), _NO_MEDIA),
    "prompt_embeds": Unserved("prompts are text or token ids"),
    **dict.fromkeys(("encoder_prompt", "decoder_prompt"), _NO_ENCODERS),
}


class PromptMapping(Closed):
    """{"prompt": text} or {"prompt_token_ids": ids}, and a salt that keeps its cache apart."""

    unserved = _UNSERVED
    prompt: str | None = None
    prompt_token_ids: list[Any] | None = None
    """Looked at by `check_prompt`, which is faster with many."""
    cache_salt: Annotated[str, Field(max_length=1024)] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> PromptMapping:
        if (self.prompt is None) == (self.prompt_token_ids is None):
            which = "both are given, and only one can be the prompt" if self.prompt is not None else "none is given"
            message = f"prompt or prompt_token_ids must be there, and not both: {which}. Give one of the two."
            raise InvalidRequest(message, code="missing_required_parameter")
        return self
