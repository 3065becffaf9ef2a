"""What callers, router and workers say to one another about a generation: parameters in, tokens out.

Token ids only, never text: the router (or `LLM`) owns the tokenizer. No torch here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from itertools import chain
from numbers import Integral, Real
from typing import Any

import msgspec

from baton.errors import ContextTooLong, InvalidRequest, UnsupportedFeature, refuse
from baton.logits_processors import ProcessorCall, calls_of
from baton.prompt import Prompt
from baton.structured_outputs import StructuredOutputs
from baton.thinking import Thinking
from baton.vllm_names import SAMPLING, own_names

MAX_N = 1024
"""Choices per request. A router's own bound is lower: fan-out is charged before admission."""
MAX_LOGPROBS = 20
"""Alternatives per position, as in the OpenAI API, unless --max-logprobs says otherwise."""
SMALLEST_TEMPERATURE = 1e-5
"""Below it the likeliest token is taken, as in vLLM: dividing by it would leave the range of 32-bit floats."""
MAX_TOP_K = 2**31 - 1
MAX_LIST = 1024
"""Entries of stop, logit_bias, bad_words and stop_token_ids."""
MAX_BEAM_WIDTH = 32
"""Beams of a search; each is scored with twice as many tokens."""
MAX_SCORED_IDS = 128
"""Entries of logprob_token_ids, as in vLLM."""
MAX_PATTERN_SIZE = 256
"""Tokens of a pattern that repetition_detection looks for: each length is looked for after each token."""


class Share(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Whose request it is, and how much of a worker is theirs where others want it too."""

    tenant: bytes = b""
    """A keyed hash that stands for a key, never the key; empty: nobody is told apart."""
    weight: float = 1.0


NOBODY = Share()


class FinishReason(str, Enum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    REPETITION = "repetition"
    """Only with repetition_detection."""


REPETITION_DETECTED = "repetition_detected"
"""The stop_reason of such an end, as in vLLM."""


class RepetitionDetection(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """End an answer whose last tokens are one pattern, again and again. Names and meanings are vLLM's."""

    max_pattern_size: int = 0
    """Tokens of the longest pattern that is looked for; 0: none is."""
    min_pattern_size: int = 0
    """Of the shortest; 0 is 1."""
    min_count: int = 0
    """How often the pattern stands at the end, one after the other, when the answer ends."""

    def __post_init__(self) -> None:
        _check_int("max_pattern_size", self.max_pattern_size, 0, MAX_PATTERN_SIZE)
        _check_int("min_pattern_size", self.min_pattern_size, 0, self.max_pattern_size)
        _check_int("min_count", self.min_count, 2 if self.max_pattern_size else 0, 2**31 - 1)

    def ends(self, token_ids: Sequence[int], first: int, end: int) -> bool:
        """Whether the tokens from `first` up to `end` end in a pattern that has come so often."""
        count, last = self.min_count, token_ids[end - 1]
        longest = min(self.max_pattern_size, (end - first) // max(count, 1))
        for size in range(max(self.min_pattern_size, 1), longest + 1):
            # what repeats with a period equals itself, moved by the period
            if token_ids[end - 1 - size] == last:
                begin = end - size * count
                if token_ids[begin : end - size] == token_ids[begin + size : end]:
                    return True
        return False


class _NamedAsInVllm(msgspec.StructMeta):
    """Lets callers write vLLM's names that change nothing, and says of each other one why it is not taken."""

    def __call__(cls, *args: Any, **given: Any) -> Any:
        if args:
            limit, way_out = "values are given by name", f"Write {cls.__name__}(temperature=...) and so on."
            raise refuse(cls.__name__, args, limit, way_out)
        fields = cls.__struct_fields__
        if not all(map(fields.__contains__, given)):
            given = own_names(SAMPLING, given, own=fields)
        return super().__call__(**given)


class SamplingParams(msgspec.Struct, metaclass=_NamedAsInVllm, frozen=True, kw_only=True, omit_defaults=True):
    """How to sample one request's answer. Names and meanings are vLLM's.

    Frozen: what a user asked for is never rewritten. Construction raises `InvalidRequest` naming the field,
    its value and the limit. Limits that need the model (vocabulary, context) are checked by `check_vocab`
    and by the engine on admission.
    """

    n: int = 1
    best_of: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Keep the k likeliest tokens; 0 or -1 keeps all."""
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    """None: up to the end of the context."""
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] | None = None
    """Score these at each position of the answer, in place of the likeliest ones."""
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """bad_words as token ids; filled in by the owner of the tokenizer."""
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    """Either way none are added: only slow tokenizers did, and those are not served."""
    detokenize: bool = True
    structured_outputs: StructuredOutputs | None = None
    """The form that the answer must have; it begins behind the thoughts."""
    logits_processors: tuple[ProcessorCall, ...] = ()
    """Installed ones, by name."""
    extra_args: dict[str, Any] | None = None
    """What logits processors are given; vLLM's `vllm_xargs`."""
    thinking: Thinking | None = None
    """How thoughts are told from the answer, if it has a form or they a budget; None: there are none. Ours."""
    repetition_detection: RepetitionDetection | None = None

    def __post_init__(self) -> None:
        self._normalize()
        self._check_counts()
        self._check_ranges()
        self._check_lists()
        form = self.structured_outputs
        if form is not None and not isinstance(form, StructuredOutputs):
            limit = "it must be StructuredOutputsParams"
            raise refuse("structured_outputs", form, limit, "Write StructuredOutputsParams(json=...).")
        if self.thinking is not None and not isinstance(self.thinking, Thinking):
            raise refuse("thinking", self.thinking, "it must be Thinking, of baton.thinking", "Leave it out.")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken at every position."""
        return self.temperature < SMALLEST_TEMPERATURE

    @property
    def has_penalties(self) -> bool:
        """Whether earlier tokens change later logits."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0

    @property
    def is_held(self) -> bool:
        """Whether not every token may come at any place of the answer, by what came before."""
        return self.structured_outputs is not None or (self.thinking is not None and self.thinking.budget is not None)

    @property
    def num_top(self) -> int | None:
        """How many of the likeliest tokens are scored at each position of the answer; None: nothing is scored there."""
        return self.logprobs if self.logprob_token_ids is None else 0

    @property
    def has_logprobs(self) -> bool:
        """Whether an answer has log-probabilities, of its own tokens or the prompt's."""
        return self.num_top is not None or self.prompt_logprobs is not None

    def replace(self, **changes: Any) -> SamplingParams:
        """Copy with some fields changed, checked again."""
        return msgspec.structs.replace(self, **changes)

    def clone(self) -> SamplingParams:
        """Copy, sharing nothing, as vLLM's users do before they change one. This one does not change: see `replace`."""
        return copy.deepcopy(self)

    def with_vocab(self, vocab_size: int) -> SamplingParams:
        """Return the same with numbers for -1, where log-probabilities of all tokens are asked for."""
        given = {name: getattr(self, name) for name in ("logprobs", "prompt_logprobs")}
        all_of = {name: vocab_size for name, value in given.items() if value == -1}
        return self.replace(**all_of) if all_of else self

    def check_vocab(self, vocab_size: int, eos_token_ids: Sequence[int] = ()) -> None:
        """Refuse token ids outside the vocabulary, wherever they stand, and limits that leave no token at all.

        Raises:
            InvalidRequest: names the field and the first offending id.
        """
        fields = ("stop_token_ids", "allowed_token_ids", "logprob_token_ids", "logit_bias")
        named: list[tuple[str, Iterable[int]]] = [(field, getattr(self, field) or ()) for field in fields]
        for field, token_ids in [("bad_words_ids", chain(*self.bad_words_ids)), *named]:
            for token_id in token_ids:
                if not 0 <= token_id < vocab_size:
                    raise refuse(field, token_id, f"token ids of this model are 0 to {vocab_size - 1}")
        for field in ("logprobs", "prompt_logprobs"):
            if (getattr(self, field) or 0) > vocab_size:
                raise refuse(
                    field, getattr(self, field), f"this model has {vocab_size} tokens", "-1 gives all of them."
                )
        if self.allowed_token_ids is None:
            return
        banned = {word[0] for word in self.bad_words_ids if len(word) == 1}
        if banned.issuperset(self.allowed_token_ids):
            limit, way_out = "bad_words forbids each of them, so no token is left", "Allow one that is no bad word."
            raise refuse("allowed_token_ids", list(self.allowed_token_ids), limit, way_out)
        ends = banned | {*self.stop_token_ids, *eos_token_ids}
        if self.min_tokens and ends.issuperset(self.allowed_token_ids):
            limit = "every token of allowed_token_ids ends the answer or is a bad word, so none may come before"
            way_out = "Allow a token that does not, or set min_tokens to 0."
            raise refuse("min_tokens", self.min_tokens, limit, way_out)

    # -- checks -------------------------------------------------------------------------------------------

    def _normalize(self) -> None:
        """Accept a lone string for lists of strings, any sequence for tuples, and numbers of NumPy and JSON."""
        set_field = msgspec.structs.force_setattr
        for field, kind in _NUMBERS:
            value = getattr(self, field)
            if type(value) is not kind and value is not None:
                set_field(self, field, _plain_number(value))
        for field in ("stop", "bad_words"):
            value = getattr(self, field)
            if isinstance(value, str):
                value = (value,)
            set_field(self, field, _as_tuple(field, value or (), str))
        set_field(self, "stop_token_ids", _as_tuple("stop_token_ids", self.stop_token_ids or (), int))
        for field in ("allowed_token_ids", "logprob_token_ids"):
            if getattr(self, field) is not None:
                set_field(self, field, _as_tuple(field, getattr(self, field), int))
        if isinstance(self.repetition_detection, Mapping):
            set_field(self, "repetition_detection", _repetition_of(self.repetition_detection))
        words = _as_tuple("bad_words_ids", self.bad_words_ids or (), (list, tuple))
        set_field(self, "bad_words_ids", tuple(_as_tuple("bad_words_ids", word, int) for word in words if word))
        for field in ("logprobs", "prompt_logprobs"):
            if isinstance(getattr(self, field), bool):  # OpenAI's chat form
                set_field(self, field, 1 if getattr(self, field) else None)
        if self.top_k == -1:
            set_field(self, "top_k", 0)
        if self.logits_processors is None or self.logits_processors:
            set_field(self, "logits_processors", calls_of(self.logits_processors or ()))
        if self.extra_args is not None and not isinstance(self.extra_args, dict):
            raise refuse("extra_args", self.extra_args, "it must be an object")

    def _check_counts(self) -> None:
        _check_int("n", self.n, 1, MAX_N, "Send several requests for more choices.")
        if self.best_of is not None and (self.best_of != self.n or isinstance(self.best_of, bool)):
            raise refuse("best_of", self.best_of, f"only best_of = n (= {self.n}) is served", "Leave it out.")
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1, None, "Leave it None to run to the end of the context.")
        _check_int("min_tokens", self.min_tokens, 0, None)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            limit, way_out = f"it exceeds max_tokens={self.max_tokens}", "Lower min_tokens or raise max_tokens."
            raise refuse("min_tokens", self.min_tokens, limit, way_out)
        for field in ("logprobs", "prompt_logprobs"):
            if getattr(self, field) is not None:
                _check_int(field, getattr(self, field), -1, 2**31 - 1, "-1 gives all tokens.")
        if self.seed is not None:
            _check_int("seed", self.seed, -(2**63), 2**63 - 1)

    def _check_ranges(self) -> None:
        _check_float("temperature", self.temperature, 0.0, 100.0, "0 takes the likeliest token.")
        _check_float("top_p", self.top_p, 0.0, 1.0, "1 keeps all tokens.", low_open=True)
        _check_int("top_k", self.top_k, 0, MAX_TOP_K, "0 or -1 keeps all tokens.")
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, 100.0, "1 is neutral.", low_open=True)
        for field in _FLAGS:
            if not isinstance(getattr(self, field), bool):
                raise refuse(field, getattr(self, field), "it must be true or false")

    def _check_lists(self) -> None:
        _check_len("stop", self.stop, MAX_LIST)
        if any(not text for text in self.stop):
            raise refuse("stop", self.stop, "a stop string may not be empty", "Leave it out.")
        if self.stop and not self.detokenize:
            raise refuse("stop", self.stop, "stop strings need text, and detokenize is false", "Use stop_token_ids.")
        _check_len("stop_token_ids", self.stop_token_ids, MAX_LIST)
        _check_len("bad_words", self.bad_words, MAX_LIST)
        if any(not text for text in self.bad_words):
            raise refuse("bad_words", self.bad_words, "a bad word may not be empty", "Leave it out.")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise refuse("allowed_token_ids", [], "it allows no token at all", "Name at least one, or leave it out.")
        if self.logprob_token_ids is not None:
            _check_len("logprob_token_ids", self.logprob_token_ids, MAX_SCORED_IDS)
            if not self.logprob_token_ids:
                raise refuse("logprob_token_ids", [], "it names no token", "Name at least one, or leave it out.")
        if self.logit_bias is not None:
            self._check_logit_bias()

    def _check_logit_bias(self) -> None:
        if not isinstance(self.logit_bias, dict):
            raise refuse("logit_bias", self.logit_bias, "it must be an object of token id to bias")
        if any(isinstance(key, (bool, float)) for key in self.logit_bias):
            raise refuse("logit_bias", self.logit_bias, "its keys must be token ids")
        try:  # in JSON the keys are strings
            bias = {int(token_id): value for token_id, value in self.logit_bias.items()}
        except (TypeError, ValueError):
            raise refuse("logit_bias", self.logit_bias, "its keys must be token ids") from None
        _check_len("logit_bias", bias, MAX_LIST)
        for value in bias.values():
            _check_float("logit_bias", value, -100.0, 100.0)
        msgspec.structs.force_setattr(self, "logit_bias", bias)


_NUMBERS: tuple[tuple[str, type], ...] = (
    *((name, int) for name in ("n", "best_of", "top_k", "seed", "max_tokens", "min_tokens")),
    *((name, float) for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty")),
    *(("logprobs", int), ("prompt_logprobs", int), ("repetition_penalty", float)),
)


def _plain_number(value: Any) -> Any:
    """Take 5.0 for 5, and NumPy's numbers for Python's; anything else stays, for the checks to refuse."""
    if not isinstance(value, bool) and isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        return int(number) if number.is_integer() else number
    return value


_FLAGS = tuple(field.name for field in msgspec.structs.fields(SamplingParams) if isinstance(field.default, bool))


def _repetition_of(given: Mapping[str, Any]) -> RepetitionDetection:
    known = RepetitionDetection.__struct_fields__
    for name in given:
        if name not in known:
            limit, way_out = "there is no such parameter", f"Known: {', '.join(known)}."
            raise refuse(f"repetition_detection.{name}", given[name], limit, way_out)
    try:
        return RepetitionDetection(**given)
    except InvalidRequest as error:
        name = "repetition_detection."
        raise InvalidRequest(f"{name}{error}", field=f"{name}{error.field}") from None


def _as_tuple(field: str, value: Any, kind: type | tuple[type, ...]) -> tuple[Any, ...]:
    names = {str: "strings", int: "whole numbers"}
    wanted = f"it must be a list of {names[kind] if isinstance(kind, type) else 'lists of token ids'}"
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise refuse(field, value, wanted)
    items = tuple(value)
    for item in items:
        if not isinstance(item, kind) or isinstance(item, bool):
            raise refuse(field, item, wanted)
    return items


def _check_len(field: str, value: Any, limit: int) -> None:
    if len(value) > limit:
        raise refuse(field, f"{len(value)} entries", f"at most {limit} are taken")


def _check_int(field: str, value: Any, low: int, high: int | None, way_out: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise refuse(field, value, "it must be a whole number", way_out)
    if value < low or (high is not None and value > high):
        limit = f"it must be at least {low}" if high is None else f"it must be {low} to {high}"
        raise refuse(field, value, limit, way_out)


def _check_float(field: str, value: Any, low: float, high: float, way_out: str = "", *, low_open: bool = False) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise refuse(field, value, "it must be a number", way_out)
    if not math.isfinite(value) or value > high or value < low or (low_open and value == low):
        edge = "above" if low_open else "at least"
        raise refuse(field, value, f"it must be finite, {edge} {low:g} and at most {high:g}", way_out)


def check_alternatives(field: str, value: int | None, most: int, flag: str) -> None:
    """Refuse more log-probabilities a position than `flag` allows; -1 there allows any number, and -1 for all tokens.

    Raises:
        InvalidRequest: with the limit.
    """
    if value is None or most == -1 or 0 <= value <= most:
        return
    raise refuse(field, value, f"it must be 0 to {most}", f"Raise {flag}; -1 allows any number, and -1 for all tokens.")


def check_prompt(prompt: Prompt, vocab_size: int, max_model_len: int) -> None:
    """Refuse a prompt that no model step could take.

    Raises:
        InvalidRequest: empty, ids outside the vocabulary, media, or no room left in the context for an answer.
    """
    token_ids = prompt.token_ids
    # `map`, not a generator: a prompt of 32k tokens is looked at in 0.3 ms, not 3, before anything else starts
    if not isinstance(token_ids, list) or not set(map(type, token_ids)) <= {int}:
        raise refuse("prompt_token_ids", token_ids, "it must be a list of whole numbers")
    if not token_ids:
        raise refuse("prompt", [], "it is empty", "Send at least one token.")
    if min(token_ids) < 0 or max(token_ids) >= vocab_size:
        wrong = next(t for t in token_ids if not 0 <= t < vocab_size)
        raise refuse("prompt_token_ids", wrong, f"token ids of this model are 0 to {vocab_size - 1}")
    if prompt.spans:
        first = prompt.spans[0]
        raise UnsupportedFeature(
            f"spans={first.at}..{first.end} is not served: this model reads token ids and no media. Send the prompt "
            f"without them, or ask a model that takes media.",
            field="spans",
        )
    if len(token_ids) >= max_model_len:
        raise prompt_too_long(str(len(token_ids)), max_model_len)


def prompt_too_long(num_tokens: str, max_model_len: int) -> ContextTooLong:
    """Make the error of a prompt that leaves no room for an answer; `num_tokens` is its length in words."""
    return _too_long(
        "prompt",
        f" of {num_tokens} tokens",
        max_model_len,
        f"the prompt has {num_tokens}, and an answer needs at least one. Shorten the prompt",
    )


def check_answer_len(
    prompt: Prompt, params: SamplingParams, max_model_len: int, *, max_tokens_field: str = "max_tokens"
) -> None:
    """Refuse an answer that the context does not hold after the prompt; `max_tokens_field` is what the user wrote.

    Raises:
        ContextTooLong: max_tokens or min_tokens is too many.
    """
    for field, asked in ((max_tokens_field, params.max_tokens), ("min_tokens", params.min_tokens)):
        total = len(prompt) + (asked or 0)
        if total > max_model_len:
            raise _too_long(
                field,
                f"={asked}",
                max_model_len,
                f"you requested {total} tokens ({len(prompt)} in the prompt, {asked} in the answer). Lower {field} or "
                "shorten the prompt",
            )


def _too_long(field: str, value: str, max_model_len: int, reason: str) -> ContextTooLong:
    """Say it in the words that clients look for, to shorten a conversation or to ask another model."""
    return ContextTooLong(
        f"{field}{value} is not valid: this model's maximum context length is {max_model_len} tokens. However, "
        f"{reason}, or raise --max-model-len if the model allows it.",
        field=field,
        code="context_length_exceeded",
    )


class Logprob(msgspec.Struct, frozen=True):
    """One token's log-probability under the model's raw distribution, with its rank (1 = likeliest; None: not known)."""

    logprob: float
    rank: int | None
    decoded_token: str | None = None
