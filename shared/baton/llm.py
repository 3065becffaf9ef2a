"""Offline generation: engine and text in one process, no sockets.

from baton.llm import LLM, SamplingParams
llm = LLM()                                   # the bundled demo model
print(llm.generate(["2+2="])[0].outputs[0].text)
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from baton.beam_answers import BeamAnswer, BeamSearchOutput, BeamSearchSequence, named
from baton.beam_search import BeamSearchParams
from baton.chat_template import ContentFormat
from baton.config import EngineConfig, demo_model_path
from baton.engine.engine import Engine, TokenOutput
from baton.engine.load import load_engine, tokenizer_of
from baton.engine.processors import Processors
from baton.errors import InvalidRequest, UnsupportedFeature, refuse
from baton.generation_defaults import generation_defaults
from baton.llm_pooling import PoolsPrompts
from baton.messages import TokenLogprobs
from baton.models.hub import locate
from baton.prompt import Prompt
from baton.protocol import (
    MAX_LOGPROBS,
    FinishReason,
    Logprob,
    SamplingParams,
    check_alternatives,
    check_answer_len,
    check_prompt,
)
from baton.requests.conversation import Conversation
from baton.requests.prompts import PromptMapping
from baton.requests.refusals import read_value
from baton.structured_outputs import StructuredOutputs
from baton.template_files import ChatTemplates
from baton.text import AnswerText, Tokenizer, bad_words_ids
from baton.vllm_names import ARGUMENTS, CALLS, METHODS, own_names

__all__ = [
    "LLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "CompletionOutput",
    "GuidedDecodingParams",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "demo_model_path",
]

PromptInput = str | Mapping[str, Any] | Sequence[int]
"""Text, token ids, {"prompt": text} or {"prompt_token_ids": ids}; "cache_salt" may stand beside either."""
StructuredOutputsParams = GuidedDecodingParams = StructuredOutputs
"""As vLLM's users name it, and named it."""
_GRAMMAR_S = 0.1
_PROMPT_FORMS = "a prompt is text, a list of token ids, {'prompt': ...} or {'prompt_token_ids': ...}"


@dataclass(slots=True)
class CompletionOutput:
    """One choice of an answer."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    """The stop token id or stop string that ended it; None for the model's own end of text."""


@dataclass(slots=True)
class RequestOutput:
    """The answer to one prompt."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int = 0
    finished: bool = False


_SETTINGS = tuple(EngineConfig.__dataclass_fields__)
LARGE_STEP = 16_384
"""Tokens of a step where nobody waits for the next token and a GPU has the memory (1.5 GiB more for an 8B model): long prompts in half
as many pieces take 1.3 % less time on an H100."""
LARGE_STEP_FROM = 64 * 2**30
"""Bytes of a GPU's memory."""


class LLM(PoolsPrompts):
    """A model that answers prompts, many at once, results in order.

    Not for use from several threads at once. The keyword arguments beside those named here are
    `EngineConfig`'s: max_model_len, max_num_seqs, kv_cache_memory_bytes, and so on; of vLLM's others, those whose value
    changes nothing are left out, and the rest are refused with the reason. On a GPU of 64 GiB or more
    max_num_batched_tokens is 16,384 unless given.

    Raises:
        ModelLoadError, OutOfMemory, ConfigError: the model cannot be served as asked, and what to change.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        tokenizer: str | Path | None = None,
        *,
        skip_tokenizer_init: bool = False,
        chat_template: str | None = None,
        generation_config: str = "auto",
        override_generation_config: Mapping[str, Any] | str | None = None,
        max_logprobs: int = MAX_LOGPROBS,
        logits_processors: Sequence[Any] | None = None,
        use_tqdm: bool = True,
        **engine_settings: Any,
    ) -> None:
        path = demo_model_path() if model is None else Path(model).expanduser()
        given = {name: value for name, value in engine_settings.items() if value is not None}  # None is vLLM's default
        engine_settings = own_names(ARGUMENTS, given, own=(*_SETTINGS, "use_tqdm"))
        use_tqdm = engine_settings.pop("use_tqdm", use_tqdm)
        if isinstance(engine_settings.get("dtype"), torch.dtype):
            engine_settings["dtype"] = str(engine_settings["dtype"]).removeprefix("torch.")
        if isinstance(overrides := engine_settings.get("hf_overrides"), Mapping):
            engine_settings["hf_overrides"] = json.dumps(overrides)
        if engine_settings.get("device") != "cpu" and _has_large_gpu():
            engine_settings.setdefault("max_num_batched_tokens", LARGE_STEP)
        config = EngineConfig(
            model=str(path if path.exists() or model is None else model),
            tokenizer=None if tokenizer is None else str(tokenizer),
            **engine_settings,
        )
        self.config = config
        self._max_logprobs = max_logprobs
        is_dummy = config.load_format == "dummy"
        folder = locate(config.model or "", config.revision, weights=not is_dummy, overrides=config.overrides)
        self._default_sampling = SamplingParams(
            **generation_defaults(folder, generation_config, override_generation_config)
        )
        self._tokenizer = None
        if not skip_tokenizer_init and (tokenizer is not None or not is_dummy):
            self._tokenizer = tokenizer_of(config, folder, chat_template)
        self.engine = load_engine(config, folder=folder, tokenizer=self._tokenizer, progress=use_tqdm)
        self.engine.processors = Processors(config, self.engine.runner.device, logits_processors or ())
        self._request_ids = itertools.count()

    def get_tokenizer(self) -> Any:
        """The `transformers` tokenizer."""
        return self._text().hf

    def get_default_sampling_params(self) -> SamplingParams:
        """What the checkpoint's generation_config.json asks for, or what was given in its place."""
        return self._default_sampling

    def generate(
        self,
        prompts: PromptInput | Sequence[PromptInput] | None = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        priority: Sequence[int] | None = None,
        **others: Any,
    ) -> list[RequestOutput]:
        """Answer each prompt; results in the order of the prompts.

        Everything is checked before anything runs. Ctrl-C ends every request and gives all blocks back. `use_tqdm` may
        be a class of progress bars. `others` are vLLM's, which are left out where they change nothing.

        Raises:
            InvalidRequest: names the field, value, limit and way out (and which prompt).
        """
        own_names(CALLS, others, own=())
        items = _prompts(prompts)
        params = self._params_of(sampling_params, len(items))
        priorities = [0] * len(items) if priority is None else _priorities(priority, len(items))
        answers = [self._check(i, item, params[i], priorities[i]) for i, item in enumerate(items)]
        self._run(answers, use_tqdm)
        for answer in answers:
            answer.output.finished = True
        return [answer.output for answer in answers]

    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        chat_template_content_format: ContentFormat = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        **others: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation, or a list of them, rendered by the model's chat template or the one given.

        Conversations are checked as over HTTP. Without `add_generation_prompt` one is added, unless the final message
        is to be continued.

        Raises:
            InvalidRequest: as `generate`; or `chat_template` is no template, no file and no name of one of the model's.
        """
        own_names(CALLS, others, own=())
        templates = self._text().chat_templates.changed(chat_template, chat_template_content_format)
        options: dict[str, Any] = {
            "tools": list(tools) if isinstance(tools, tuple) else tools,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "chat_template_kwargs": chat_template_kwargs,
        }
        prompts: list[PromptInput] = [
            {"prompt_token_ids": self._render(which, options | {"messages": conversation}, templates)}
            for which, conversation in _conversations(messages)
        ]
        outputs = self.generate(prompts, sampling_params, use_tqdm=use_tqdm)
        for output in outputs:
            output.prompt = self._text().decode(output.prompt_token_ids, skip_special_tokens=False)
        return outputs

    def _render(self, which: str, conversation: dict[str, Any], templates: ChatTemplates) -> list[int]:
        try:
            shown = read_value(Conversation, conversation).for_template()
            return self._text().render_chat(**shown, templates=templates)
        except InvalidRequest as error:
            raise (error.of(which) if which else error) from None

    def beam_search(
        self,
        prompts: PromptInput | Sequence[PromptInput],
        params: BeamSearchParams,
        *,
        use_tqdm: bool | Callable[..., Any] = False,
        concurrency_limit: int | None = None,
        **others: Any,
    ) -> list[BeamSearchOutput]:
        """Search for the likeliest answers to each prompt; results in the order of the prompts.

        At most `concurrency_limit` prompts are searched at once, or as many as the queue has room for.

        Raises:
            InvalidRequest: as `generate`.
        """
        own_names(CALLS, others, own=())
        if not isinstance(params, BeamSearchParams):
            raise refuse("params", params, "it must be BeamSearchParams")
        answers = [self._check_beams(i, item, params) for i, item in enumerate(_prompts(prompts))]
        at_once = max(1, min(concurrency_limit or len(answers), self.config.max_num_waiting // params.beam_width))
        for at in range(0, len(answers), at_once):
            self._run(answers[at : at + at_once], use_tqdm)
        return [answer.output(self._tokenizer) for answer in answers]

    def _check_beams(self, index: int, item: PromptInput, params: BeamSearchParams) -> BeamAnswer:
        spec = self.engine.model.spec
        if params.num_scored > spec.vocab_size:
            limit = f"this model has {spec.vocab_size} tokens, half of which may be beams"
            raise refuse("beam_width", params.beam_width, limit)
        try:
            self._check_generates()
            _, prompt, salt = self._prompt_of(item)
            check_prompt(prompt, spec.vocab_size, self.engine.max_model_len)
            check_answer_len(prompt, SamplingParams(max_tokens=params.max_tokens), self.engine.max_model_len)
        except InvalidRequest as error:
            raise error.of(f"prompt {index}") from None
        return BeamAnswer(str(next(self._request_ids)), prompt, params, salt, spec.eos_token_ids)

    def __getattr__(self, name: str) -> Any:
        """Say why a method of vLLM's is not here."""
        known = METHODS.get(name)
        raise AttributeError(
            f"LLM has no {name}. {known.says}" if known else f"LLM has no {name}.", name=name, obj=self
        )

    # -- checks -------------------------------------------------------------------------------------------

    def _text(self) -> Tokenizer:
        if self._tokenizer is None:
            raise InvalidRequest(
                "text needs a tokenizer, and this LLM has none. Send prompt_token_ids with detokenize=False, or "
                "name a tokenizer.",
                field="prompt",
            )
        return self._tokenizer

    def _params_of(self, given: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        if given is None:
            given = self.get_default_sampling_params()
        if isinstance(given, SamplingParams):
            return [given] * count
        if not isinstance(given, Sequence) or not all(isinstance(each, SamplingParams) for each in given):
            raise refuse("sampling_params", given, "it must be SamplingParams, or one for each prompt")
        if len(given) != count:
            limit, way_out = f"there are {count} prompts", "Give one, or one each."
            raise refuse("sampling_params", f"{len(given)} entries", limit, way_out)
        return list(given)

    def _check(self, index: int, item: PromptInput, params: SamplingParams, priority: int) -> _Answer:
        try:
            self._check_generates()
            text, prompt, salt = self._prompt_of(item)
            if params.bad_words:
                params = params.replace(bad_words_ids=bad_words_ids(self._text(), params.bad_words))
            if params.stop:
                self._text()
            spec = self.engine.model.spec
            for field in ("logprobs", "prompt_logprobs"):
                check_alternatives(field, getattr(params, field), self._max_logprobs, "LLM(max_logprobs=...)")
            params = params.with_vocab(spec.vocab_size)
            check_prompt(prompt, spec.vocab_size, self.engine.max_model_len)
            check_answer_len(prompt, params, self.engine.max_model_len)
            params.check_vocab(spec.vocab_size, spec.eos_token_ids)
            self.engine.processors.of(params)
            if params.is_held:
                self._check_held(params)
        except InvalidRequest as error:
            raise error.of(f"prompt {index}") from None
        return _Answer(str(next(self._request_ids)), text, prompt, params, salt, priority)

    def _check_held(self, params: SamplingParams) -> None:
        """Refuse a form that no grammar can be made of, or not for this model's tokenizer; and marks of thoughts."""
        assert self.engine.grammars is not None
        if params.structured_outputs is not None:
            self.engine.grammars.load()
        error = self.engine.grammars.compile(params, lambda: None).exception()
        if error is not None:
            raise error

    def _check_generates(self) -> None:
        if self.engine.pooling is not None:
            methods = "classify or score" if self.engine.pooling.labels else "embed"
            raise UnsupportedFeature(f"this model generates no text. Use {methods}.", field="model")

    def _items(self, prompts: Any) -> list[dict[str, Any]]:
        checked = [read_value(PromptMapping, _as_mapping(item)) for item in _prompts(prompts)]
        return [each.model_dump() for each in checked]

    def _prompt_of(self, item: PromptInput) -> tuple[str | None, Prompt, str]:
        given = read_value(PromptMapping, _as_mapping(item))
        salt = given.cache_salt or ""
        if given.prompt_token_ids is not None:
            return None, Prompt(given.prompt_token_ids), salt
        text = given.prompt or ""
        return text, Prompt(self._text().encode(text)), salt

    # -- running ------------------------------------------------------------------------------------------

    def _run(self, answers: Sequence[_Work], use_tqdm: bool | Callable[..., Any]) -> None:
        try:
            with (
                _interrupts_between_steps() as check_interrupt,
                (use_tqdm if callable(use_tqdm) else tqdm)(
                    total=sum(answer.num_ends for answer in answers),
                    desc="Generating",
                    unit="answer",
                    disable=not use_tqdm,
                    dynamic_ncols=True,
                    file=sys.stderr,
                ) as bar,
            ):
                self._drain(answers, bar, check_interrupt)
        except BaseException:
            self.engine.discard()
            for answer in answers:
                self.engine.abort(answer.request_id)
            raise

    def _drain(self, answers: Sequence[_Work], bar: Any, check_interrupt: Callable[[], None]) -> None:
        """Run all answers, handing them to the engine as fast as its queue has room for their choices."""
        by_id = {answer.request_id: answer for answer in answers}
        waiting = deque(answers)
        num_tokens = 0
        while waiting or self.engine.has_work:
            check_interrupt()
            # with nothing running it is handed over whatever its size: the engine says what is wrong with it
            while waiting and (self.engine.num_free_seats >= waiting[0].num_choices or not self.engine.has_work):
                waiting.popleft().start(self.engine, self._tokenizer)
            num_steps = self.engine.num_steps
            tokens = self.engine.step()
            for request_id, error in self.engine.take_refused():
                raise (
                    error.of(f"prompt {answers.index(by_id[request_id])}")
                    if isinstance(error, InvalidRequest)
                    else error
                )
            if not tokens and self.engine.num_steps == num_steps:
                self.engine.wait_for_grammar(_GRAMMAR_S)
            for token in tokens:
                num_tokens += 1
                if by_id[token.request_id].take(token, self.engine):
                    seconds = bar.format_dict["elapsed"]
                    bar.set_postfix_str(f"{num_tokens / max(seconds, 1e-9):.0f} tokens/s", refresh=False)
                    bar.update()


class _Work(Protocol):
    """What the engine is driven with: one prompt on its way."""

    request_id: str
    num_choices: int
    """Sequences that it has at once."""
    num_ends: int
    """How often `take` returns true."""

    def start(self, engine: Engine, tokenizer: Tokenizer | None) -> None:
        """Hand it to the engine."""

    def take(self, token: TokenOutput, engine: Engine) -> bool:
        """Take one token; return whether something ended with it."""


class _Answer:
    """One request on its way: its choices' text and what has come so far."""

    def __init__(
        self, request_id: str, text: str | None, prompt: Prompt, params: SamplingParams, salt: str, priority: int
    ) -> None:
        self.output = RequestOutput(request_id, text, prompt.token_ids, [CompletionOutput(i) for i in range(params.n)])
        self.request_id, self.num_choices, self.num_ends = request_id, params.n, params.n
        self._prompt = prompt
        self.params = params
        self.priority = priority
        self._salt = salt
        self._tokenizer: Tokenizer | None = None
        self._texts: list[AnswerText] = []

    def start(self, engine: Engine, tokenizer: Tokenizer | None) -> None:
        """Hand the request to the engine."""
        self._tokenizer = tokenizer if self.params.detokenize else None
        self._texts = [AnswerText(self._tokenizer, self._prompt.token_ids, self.params) for _ in self.output.outputs]
        if self.params.num_top is not None:
            for choice in self.output.outputs:
                choice.logprobs, choice.cumulative_logprob = [], 0.0
        engine.add(self.output.request_id, self._prompt, self.params, priority=self.priority, salt=self._salt.encode())

    def take(self, token: TokenOutput, engine: Engine) -> bool:
        """Take one token; return whether its choice ended with it."""
        choice = self.output.outputs[token.choice]
        if choice.finish_reason is not None:  # a stop string ended it while this token was on its way
            return False
        if token.choice == 0 and not choice.token_ids:
            self.output.num_cached_tokens = token.num_cached_tokens
        if token.prompt_logprobs is not None:
            self.output.prompt_logprobs = [self._named(row) for row in token.prompt_logprobs]
        choice.token_ids.append(token.token_id)
        logprobs = self._named(token.logprobs)
        if logprobs is not None and choice.logprobs is not None:
            choice.logprobs.append(logprobs)
            choice.cumulative_logprob = (choice.cumulative_logprob or 0.0) + logprobs[token.token_id].logprob
        reason = None if token.finish_reason is None else token.finish_reason.value
        text, stop = self._texts[token.choice].push(token.token_id, reason)
        choice.text += text
        if stop is not None:  # which the engine cannot know
            choice.finish_reason, choice.stop_reason = FinishReason.STOP.value, stop
            engine.finish(token.request_id, token.choice)
        elif reason is not None:
            choice.finish_reason, choice.stop_reason = reason, token.stop_reason
        return choice.finish_reason is not None

    def _named(self, row: TokenLogprobs | None) -> dict[int, Logprob] | None:
        return None if row is None else named(row, self._tokenizer)


@contextmanager
def _interrupts_between_steps() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until a step is whole; gives the function that lets it through. A second one comes at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    asked = False

    def hold(*_: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def _prompts(given: Any) -> list[Any]:
    """Take one prompt or a list of them; a list of whole numbers is one."""
    if isinstance(given, (str, Mapping)):
        return [given]
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise refuse("prompts", given, _PROMPT_FORMS)
    items = list(_as_list(given))
    return [items] if items and all(isinstance(item, Integral) for item in items) else items


def _as_mapping(prompt: Any) -> dict[str, Any]:
    """Return a prompt in its one form; arrays and tensors as lists."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if not isinstance(prompt, Mapping):
        prompt = {"prompt_token_ids": _as_list(prompt)}
        if not isinstance(prompt["prompt_token_ids"], list):
            raise refuse("prompts", prompt["prompt_token_ids"], _PROMPT_FORMS)
    return {name: _as_list(value) if name == "prompt_token_ids" else value for name, value in prompt.items()}


def _as_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else list(value) if isinstance(value, (tuple, range)) else value


def _priorities(given: Any, count: int) -> list[int]:
    if not isinstance(given, Sequence) or not all(type(each) is int for each in given):
        raise refuse("priority", given, "it must be a list of whole numbers", "Give one for each prompt.")
    if len(given) != count:
        raise refuse("priority", f"{len(given)} entries", f"there are {count} prompts", "Give one each.")
    return list(given)


def _conversations(given: Any) -> list[tuple[str, list[Any]]]:
    """Take one conversation or a list of them; with what to call each."""
    items = list(given) if isinstance(given, (list, tuple)) else None
    if items and isinstance(items[0], Mapping):
        items = [items]
    if items is None or not all(isinstance(conversation, (list, tuple)) for conversation in items):
        limit = "a conversation is a list of messages such as {'role': 'user', 'content': ...}"
        raise refuse("messages", given, limit)
    return [(f"conversation {i}" if len(items) > 1 else "", list(each)) for i, each in enumerate(items)]


def _has_large_gpu() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory >= LARGE_STEP_FROM
