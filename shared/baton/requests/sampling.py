"""What all requests for answers share: how to sample, and OpenAI's fields without effect."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from baton.errors import refuse, unsupported
from baton.logits_processors import MAX_PROCESSORS, find_processor
from baton.protocol import MAX_N, MAX_PATTERN_SIZE, MAX_SCORED_IDS, SamplingParams
from baton.requests.closed import Closed
from baton.requests.fields import INT31, Finite, LogitBias, NumScores, Stop, TokenIds, Whole, Words
from baton.requests.limits import Limits
from baton.requests.structured import HasForm

Argument = str | bool | int | Finite | list[str | bool | int | Finite]
"""What a logits processor may be given."""
_PARAMS = frozenset(SamplingParams.__struct_fields__)


class StreamOptions(Closed):
    """What a stream carries beside text."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False
    include_obfuscation: bool | None = False


class RepetitionDetection(Closed):
    """Which repetition ends an answer, with the finish_reason repetition."""

    max_pattern_size: Annotated[int, Field(ge=0, le=MAX_PATTERN_SIZE), Whole] = 0
    min_pattern_size: Annotated[int, Field(ge=0, le=MAX_PATTERN_SIZE), Whole] = 0
    min_count: Annotated[int, Field(ge=0, le=INT31), Whole] = 0


class NamedProcessor(Closed):
    """An installed logits processor, and what it is given."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    args: dict[str, Argument] | None = None


class Ignored(Closed):
    """Fields that ask for nothing we could fail to do: taken, and without effect."""

    user: Annotated[str, Field(max_length=4096)] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Annotated[str, Field(max_length=64)] | None = None
    safety_identifier: Annotated[str, Field(max_length=4096)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=4096)] | None = None
    prompt_cache_retention: Annotated[str, Field(max_length=64)] | None = None
    prompt_cache_options: dict[str, Any] | None = None
    # vLLM's; the last is for routes that are not served here
    session_id: Annotated[str, Field(max_length=4096)] | None = None
    return_mm_kwargs: bool | None = None


class SamplingRequest(Ignored, HasForm):
    """What both kinds of request share. None is the same as leaving a field out, as clients do both.

    A field that `SamplingParams` has too goes there by its name.
    """

    model: Annotated[str, Field(max_length=1024)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N), Whole] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=INT31), Whole] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1), Whole] | None = None
    stop: Stop | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = None
    # vLLM's
    top_k: Annotated[int, Field(ge=-1, le=INT31), Whole] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0, le=100)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=INT31), Whole] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    prompt_logprobs: NumScores | None = None
    logprob_token_ids: Annotated[TokenIds, Field(min_length=1, max_length=MAX_SCORED_IDS)] | None = None
    return_tokens_as_token_ids: bool | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: Words | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=INT31), Whole] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=INT31), Whole] | None = None
    truncation_side: Literal["left", "right"] | None = None
    return_token_ids: bool | None = None
    repetition_detection: RepetitionDetection | None = None
    logits_processors: Annotated[list[str | NamedProcessor], Field(max_length=MAX_PROCESSORS)] | None = None
    vllm_xargs: dict[str, Argument] | None = None
    request_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Stands in the answer's id; what follows a request through logs is the header x-request-id."""
    use_beam_search: bool | None = None
    length_penalty: Annotated[Finite, Field(ge=-100, le=100)] | None = None
    early_stopping: bool | None = None
    store: bool | None = None

    @property
    def num_answers(self) -> int:
        """Answers that are given to each prompt."""
        return self.n or 1

    @property
    def num_made(self) -> int:
        """Answers that are made, of which those are the best."""
        return self.num_answers

    def check_unserved(self) -> None:
        """Refuse what is well-formed but not done here."""
        if self.store:
            raise unsupported("store", True, "nothing is stored", "Leave it out.")
        if self.vllm_xargs and not self.logits_processors:
            raise refuse("vllm_xargs", self.vllm_xargs, "logits_processors names none to take it", "Name one.")
        for named in self.logits_processors or ():
            find_processor(named if isinstance(named, str) else named.name)
        if self.logprob_token_ids and (getattr(self, "logprobs", None) in (None, False)):
            raise refuse("logprob_token_ids", self.logprob_token_ids, "logprobs is not set", "Set logprobs.")
        if self.truncate_prompt_tokens == 0:
            way_out = "Leave it out, or give -1 for as many tokens as the context holds."
            raise refuse("truncate_prompt_tokens", 0, "nothing would be left of the prompt", way_out)
        options = self.stream_options
        if options is not None and not self.stream and (options.include_usage or options.continuous_usage_stats):
            raise refuse("stream_options", "set", "stream is not set", "Set stream, or leave it out.")

    def check_limits(self, limits: Limits, num_prompts: int) -> None:
        """Refuse more than a router's flags allow."""
        limits.check(n=self.num_made, num_prompts=num_prompts, num_stop=len(self.stop or ()))
        limits.check_alternatives("prompt_logprobs", self.prompt_logprobs)

    def given_params(self, **others: Any) -> dict[str, Any]:
        """Return the fields that the engine takes; `others` are no fields of ours, or mean something else here."""
        names = type(self).model_fields.keys() & _PARAMS
        form = self.form()
        given = {name: getattr(self, name) for name in names}
        given |= {"structured_outputs": None if form is None else form[1]} | others
        if self.repetition_detection is not None:
            given["repetition_detection"] = self.repetition_detection.model_dump(exclude_unset=True)
        given["logits_processors"] = [
            each if isinstance(each, str) else each.model_dump() for each in self.logits_processors or ()
        ]
        given["extra_args"] = self.vllm_xargs or None
        return {name: value for name, value in given.items() if value is not None}
