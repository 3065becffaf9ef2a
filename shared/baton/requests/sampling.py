"""What all requests for answers share: how to sample, and OpenAI's fields without effect."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from baton.errors import UnsupportedFeature, refuse
from baton.protocol import MAX_LOGPROBS, MAX_N, SamplingParams
from baton.requests.closed import Closed
from baton.requests.fields import INT31, Finite, LogitBias, Stop, TokenIds, Words

_PARAMS = frozenset(SamplingParams.__struct_fields__)


class StreamOptions(Closed):
    """What a stream carries beside text."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False
    include_obfuscation: bool | None = False


class ResponseFormat(Closed):
    """Only plain text is served."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: dict[str, Any] | None = None


class Ignored(Closed):
    """OpenAI's fields that ask for nothing we could fail to do: taken, and without effect."""

    user: Annotated[str, Field(max_length=4096)] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Annotated[str, Field(max_length=64)] | None = None
    safety_identifier: Annotated[str, Field(max_length=4096)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=4096)] | None = None
    prompt_cache_retention: Annotated[str, Field(max_length=64)] | None = None


class SamplingRequest(Ignored):
    """What both kinds of request share. None is the same as leaving a field out, as clients do both.

    A field that `SamplingParams` has too goes there by its name.
    """

    model: Annotated[str, Field(max_length=1024)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=INT31)] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = None
    # vLLM's
    top_k: Annotated[int, Field(ge=-1, le=INT31)] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0, le=100)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=INT31)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: Words | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=INT31)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    response_format: ResponseFormat | None = None
    store: bool | None = None

    def check_unserved(self) -> None:
        """Refuse what is well-formed but not done here."""
        if self.store:
            raise UnsupportedFeature("store=True is not valid: nothing is stored. Leave it out.", field="store")
        if self.response_format is not None and self.response_format.type != "text":
            raise UnsupportedFeature(
                f"response_format={self.response_format.type!r} is not valid: only text is served by this build. "
                "Leave it out and ask for the format in the prompt.",
                field="response_format",
            )
        if self.stream_options is not None and not self.stream:
            raise refuse("stream_options", "set", "stream is not set", "Set stream, or leave it out.")

    def given_params(self, **others: Any) -> dict[str, Any]:
        """Return the fields that the engine takes; `others` are no fields of ours, or mean something else here."""
        names = type(self).model_fields.keys() & _PARAMS
        given = {name: getattr(self, name) for name in names} | others
        return {name: value for name, value in given.items() if value is not None}
