"""A request to answer a conversation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from baton.errors import InvalidRequest, refuse, unsupported
from baton.protocol import SamplingParams
from baton.requests.beams import check_beams
from baton.requests.conversation import MAX_MESSAGES, Conversation
from baton.requests.fields import INT31, FirstError, NumScores, TextOrObject, Whole
from baton.requests.limits import DEFAULT_LIMITS, Limits
from baton.requests.messages import Message
from baton.requests.sampling import SamplingRequest
from baton.requests.structured import in_field
from baton.requests.tool_choice import ForcedCalls, forced_calls
from baton.requests.unserved import CHAT
from baton.structured_outputs import StructuredOutputs

_THINKING = frozenset(("enable_thinking", "thinking"))
"""What templates call the switch of thoughts."""


class ChatRequest(SamplingRequest, Conversation):
    """POST /v1/chat/completions."""

    unserved = CHAT
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES), FirstError()]
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT31), Whole] | None = None
    logprobs: bool | None = False
    top_logprobs: NumScores | None = None
    tool_choice: TextOrObject | None = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Field(max_length=2)] | None = None
    include_reasoning: bool | None = None
    echo: bool | None = False
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    thinking_token_budget: Annotated[int, Field(ge=-1, le=INT31), Whole] | None = None
    """Tokens of thoughts, after which the answer begins; -1: as many as there are."""
    _echoed: str | None = PrivateAttr(default=None)

    def sampling_params(self, limits: Limits = DEFAULT_LIMITS) -> SamplingParams:
        """Return what the engine is asked for."""
        self.check_unserved()
        check_beams(self, self.num_made)
        self.check_limits(limits, 1)
        limits.check_alternatives("top_logprobs", self.top_logprobs)
        if self.modalities and "audio" in self.modalities:
            raise unsupported("modalities", "audio", "only text is served")
        if self.top_logprobs and not self.logprobs:
            raise refuse("top_logprobs", self.top_logprobs, "logprobs is not set", "Set logprobs.")
        if self.max_tokens == 0:
            raise refuse("max_tokens", 0, "it must be at least 1", "Leave it out to run to the end of the context.")
        max_tokens = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        prompt_logprobs = logprobs if self.echo and self.prompt_logprobs is None else self.prompt_logprobs
        params = self.given_params(logprobs=logprobs, prompt_logprobs=prompt_logprobs, max_tokens=None)
        return SamplingParams(**params, max_tokens=max_tokens)

    @property
    def shows_tools(self) -> bool:
        return super().shows_tools and self.tool_choice != "none"

    @property
    def echoed(self) -> str:
        """What stands before each answer: with echo the last message's text, if the answer has its role."""
        if self._echoed is not None or not self.echo:
            return self._echoed or ""
        last = self.messages[-1]
        continues = self.continue_final_message or self.add_generation_prompt is False
        return last.text if continues or last.role == "assistant" else ""

    def with_echo(self, echoed: str) -> None:
        """Take what stands before answers in place of the messages that it was found in."""
        self._echoed = echoed

    def for_template(self) -> dict[str, Any]:
        """Return what `TextPool.render_chat` takes."""
        arguments = super().for_template()
        if not self.shows_tools:
            arguments["tools"] = None
        if self.reasoning_effort is not None:
            kwargs = arguments["kwargs"]
            kwargs.setdefault("reasoning_effort", self.reasoning_effort)
            if self.reasoning_effort == "none" and not _THINKING & kwargs.keys():
                kwargs |= dict.fromkeys(_THINKING, False)
        return arguments

    @property
    def forced_calls(self) -> ForcedCalls | None:
        """What the model must call; None where it decides."""
        return forced_calls(self.tool_choice, self.tools or ())

    @property
    def thinking_budget(self) -> int | None:
        """Tokens that thoughts may have; None: as many as there are."""
        return None if self.thinking_token_budget == -1 else self.thinking_token_budget

    @property
    def names_function(self) -> bool:
        """Whether one function must be called, and nothing else."""
        return isinstance(self.tool_choice, dict) and self.tool_choice.get("type") == "function"

    def form(self) -> tuple[str, StructuredOutputs] | None:
        """Return what says how the answer must be: calls that are forced leave no text that `response_format` is about."""
        forced = self.forced_calls
        given = super().form()
        if forced is None:
            return given
        if given is not None and given[0] != "response_format":
            raise InvalidRequest(
                f"{given[0]} and tool_choice both say what form the answer has. Give one.", field=given[0]
            )
        try:
            return "tools", forced.form(one_call=self.parallel_tool_calls is False)
        except InvalidRequest as error:
            raise in_field("tools", error) from None
