"""Requests to the tokenizer."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from baton.requests.closed import Closed
from baton.requests.conversation import Conversation
from baton.requests.fields import FirstError, TokenId
from baton.requests.unserved import TOKENIZE


class TokenizeRequest(Conversation):
    """POST /tokenize: a text, or messages."""

    unserved = TOKENIZE
    model: Annotated[str, Field(max_length=1024)] | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("exactly one of prompt and messages must be given")
        return self


class DetokenizeRequest(Closed):
    """POST /detokenize."""

    model: Annotated[str, Field(max_length=1024)] | None = None
    tokens: Annotated[list[TokenId], Field(max_length=2**20), FirstError()]
