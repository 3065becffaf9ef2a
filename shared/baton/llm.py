"""Offline generation: engine and text in one process, no sockets.

from baton.llm import LLM, SamplingParams
llm = LLM()                                   # the bundled demo model
print(llm.generate(["2+2="])[0].outputs[0].text)
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from baton.config import EngineConfig
from baton.engine.engine import Engine, TokenOutput
from baton.engine.sampler import TokenLogprobs
from baton.errors import InvalidRequest, UnsupportedFeature, refuse
from baton.models.config import read_json
from baton.models.hub import locate
from baton.protocol import FinishReason, Logprob, SamplingParams, check_prompt
from baton.text import Detokenizer, StopMatcher, Tokenizer

__all__ = ["LLM", "CompletionOutput", "RequestOutput", "SamplingParams", "demo_model_path"]

Prompt = str | Mapping[str, Any]
"""Text, {"prompt": text} or {"prompt_token_ids": ids}; "cache_salt" may stand beside either."""


def demo_model_path() -> Path:
    """Give the folder of the bundled demo model, which `transformers` loads as it is."""
    return Path(__file__).parent / "demo" / "model"


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


class LLM:
    """A model that answers prompts, many at once, results in order.

    Not for use from several threads at once. The keyword arguments beside those named here are
    `EngineConfig`'s: max_model_len, max_num_seqs, kv_cache_memory_bytes, and so on.

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
        use_tqdm: bool = True,
        **engine_settings: Any,
    ) -> None:
        model_path = demo_model_path() if model is None else model
        config = _engine_config(
            model=str(model_path), tokenizer=None if tokenizer is None else str(tokenizer), **engine_settings
        )
        self.config = config
        self._tokenizer = None
        if not skip_tokenizer_init and (tokenizer is not None or config.load_format != "dummy"):
            self._tokenizer = Tokenizer(config.tokenizer or model_path, config.revision, chat_template)
        self.engine = Engine.load(config, progress=use_tqdm)
        self._default_sampling = default_sampling(locate(config.model or "", config.revision, weights=False))
        self._request_ids = itertools.count()

    def get_tokenizer(self) -> Any:
        """Give the `transformers` tokenizer."""
        return self._text().hf

    def get_default_sampling_params(self) -> SamplingParams:
        """Give what the checkpoint's generation_config.json asks for."""
        return SamplingParams(**self._default_sampling)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Answer each prompt; results in the order of the prompts.

        Everything is checked before anything runs. Ctrl-C ends every request and gives all blocks back.

        Raises:
            InvalidRequest: names the field, value, limit and way out (and which prompt).
        """
        single = isinstance(prompts, (str, Mapping))
        items: list[Prompt] = [prompts] if single else list(prompts)  # type: ignore[list-item]
        params = self._params_of(sampling_params, len(items))
        if priority is not None and len(priority) != len(items):
            raise refuse(
                "priority", f"{len(priority)} entries", f"there are {len(items)} prompts", "Give one each."
            )
        answers = [self._check(i, item, params[i]) for i, item in enumerate(items)]
        for i, answer in enumerate(answers):
            answer.priority = 0 if priority is None else priority[i]
        return self._run(answers, use_tqdm)

    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation, or a list of them, rendered by the model's chat template."""
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else list(messages)
        prompts: list[Prompt] = [
            {
                "prompt_token_ids": self._text().render_chat(
                    conversation,
                    tools=tools,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    **dict(chat_template_kwargs or {}),
                )
            }
            for conversation in conversations
        ]
        outputs = self.generate(prompts, sampling_params, use_tqdm=use_tqdm)
        for output in outputs:
            output.prompt = self._text().decode(output.prompt_token_ids, skip_special_tokens=False)
        return outputs

    def beam_search(self, *_: Any, **__: Any) -> list[RequestOutput]:
        """Refuse: not served by this build."""
        raise UnsupportedFeature(
            "beam_search is not served by this build. Use generate with n choices.", field="beam_search"
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

    def _params_of(
        self, given: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if given is None:
            given = self.get_default_sampling_params()
        if isinstance(given, SamplingParams):
            return [given] * count
        params = list(given)
        if len(params) != count:
            raise refuse(
                "sampling_params",
                f"{len(params)} entries",
                f"there are {count} prompts",
                "Give one, or one each.",
            )
        return params

    def _check(self, index: int, item: Prompt, params: SamplingParams) -> _Answer:
        try:
            text, token_ids, salt = self._prompt_of(item)
            if params.bad_words:
                params = self._with_bad_words(params)
            if params.stop:
                self._text()
            spec = self.engine.model.spec
            check_prompt(token_ids, spec.vocab_size, self.engine.max_model_len)
            params.check_vocab(spec.vocab_size)
        except InvalidRequest as error:
            raise type(error)(f"prompt {index}: {error}", field=error.field, code=error.code) from None
        return _Answer(str(next(self._request_ids)), text, token_ids, params, salt)

    def _prompt_of(self, item: Prompt) -> tuple[str | None, list[int], str]:
        if isinstance(item, str):
            item = {"prompt": item}
        if not isinstance(item, Mapping) or not ({"prompt", "prompt_token_ids"} & item.keys()):
            raise refuse(
                "prompts", item, "a prompt is a string, {'prompt': ...} or {'prompt_token_ids': ...}"
            )
        salt = item.get("cache_salt", "")
        if not isinstance(salt, str):
            raise refuse("cache_salt", salt, "it must be a string")
        if "prompt_token_ids" in item:
            ids = item["prompt_token_ids"]
            return item.get("prompt"), list(ids) if isinstance(ids, (list, tuple)) else ids, salt
        text = item["prompt"]
        if not isinstance(text, str):
            raise refuse("prompt", text, "it must be a string")
        return text, self._text().encode(text), salt

    def _with_bad_words(self, params: SamplingParams) -> SamplingParams:
        """Spell each bad word as tokens, at the start of a text and after a space."""
        spellings = {
            tuple(self._text().encode(prefix + word.lstrip(), add_special_tokens=False))
            for word in params.bad_words
            for prefix in ("", " ")
        }
        return params.replace(bad_words_ids=tuple(sorted(ids for ids in spellings if ids)))

    # -- running ------------------------------------------------------------------------------------------

    def _run(self, answers: list[_Answer], use_tqdm: bool) -> list[RequestOutput]:
        try:
            with tqdm(
                total=sum(answer.params.n for answer in answers),
                desc="Generating",
                unit="answer",
                disable=not use_tqdm,
                dynamic_ncols=True,
                file=sys.stderr,
            ) as bar:
                self._drain(answers, bar)
        except BaseException:
            for answer in answers:
                self.engine.abort(answer.output.request_id)
            raise
        return [answer.finish() for answer in answers]

    def _drain(self, answers: list[_Answer], bar: Any) -> None:
        """Run all answers, handing them to the engine as fast as its queue has room for their choices."""
        by_id = {answer.output.request_id: answer for answer in answers}
        waiting = deque(answers)
        num_tokens = 0
        while waiting or self.engine.has_work:
            # with nothing running it is handed over whatever its size: the engine says what is wrong with it
            while waiting and (self.engine.num_free_seats >= waiting[0].params.n or not self.engine.has_work):
                waiting.popleft().start(self.engine, self._tokenizer)
            for token in self.engine.step():
                num_tokens += 1
                if by_id[token.request_id].take(token, self.engine):
                    seconds = bar.format_dict["elapsed"]
                    bar.set_postfix_str(f"{num_tokens / max(seconds, 1e-9):.0f} tokens/s", refresh=False)
                    bar.update()


class _Answer:
    """One request on its way: its streams of text and what has come so far."""

    def __init__(
        self, request_id: str, prompt: str | None, token_ids: list[int], params: SamplingParams, salt: str
    ) -> None:
        self.output = RequestOutput(
            request_id, prompt, token_ids, [CompletionOutput(i) for i in range(params.n)]
        )
        self.params = params
        self.salt = salt
        self.priority = 0
        self.streams: list[_ChoiceStream] = []
        self._tokenizer: Tokenizer | None = None

    def start(self, engine: Engine, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer if self.params.detokenize else None
        self.streams = [
            _ChoiceStream(choice, self.params, self._tokenizer, self.output.prompt_token_ids)
            for choice in self.output.outputs
        ]
        engine.add(
            self.output.request_id,
            self.output.prompt_token_ids,
            self.params,
            priority=self.priority,
            salt=self.salt.encode(),
        )

    def take(self, token: TokenOutput, engine: Engine) -> bool:
        """Take one token; give whether its choice ended with it."""
        if token.prompt_logprobs is not None:
            self.output.prompt_logprobs = [self._named(row) for row in token.prompt_logprobs]
        self.output.num_cached_tokens = max(self.output.num_cached_tokens, token.num_cached_tokens)
        stream = self.streams[token.choice]
        if stream.choice.finish_reason is not None:
            return False
        if stream.push(token, self._named(token.logprobs)):
            engine.finish(token.request_id, token.choice)
        return stream.choice.finish_reason is not None

    def finish(self) -> RequestOutput:
        self.output.finished = True
        return self.output

    def _named(self, row: TokenLogprobs | None) -> dict[int, Logprob] | None:
        """Turn a row into {token id: Logprob}, the chosen token first."""
        if row is None:
            return None
        named: dict[int, Logprob] = {}
        for token_id, value, rank in zip(row.token_ids, row.logprobs, row.ranks, strict=True):
            text = None if self._tokenizer is None else self._tokenizer.token_text(token_id)
            named.setdefault(token_id, Logprob(value, rank, text))
        return named


class _ChoiceStream:
    """One choice's tokens becoming text, until something ends it."""

    def __init__(
        self,
        choice: CompletionOutput,
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        prompt_ids: list[int],
    ) -> None:
        self.choice = choice
        self._params = params
        self._text: Detokenizer | None = None
        if tokenizer is not None:
            self._text = tokenizer.new_stream(prompt_ids, skip_special_tokens=params.skip_special_tokens)
        self._stops = StopMatcher(params.stop, include_in_output=params.include_stop_str_in_output)
        if params.logprobs is not None:
            choice.logprobs, choice.cumulative_logprob = [], 0.0

    def push(self, token: TokenOutput, logprobs: dict[int, Logprob] | None) -> bool:
        """Take a token; give whether a stop string ended the choice, which the engine cannot know."""
        choice = self.choice
        choice.token_ids.append(token.token_id)
        if choice.logprobs is not None and logprobs is not None:
            choice.logprobs.append(logprobs)
            choice.cumulative_logprob = (choice.cumulative_logprob or 0.0) + logprobs[token.token_id].logprob
        ends_at_stop_token = token.finish_reason is FinishReason.STOP
        is_shown = not ends_at_stop_token or self._params.include_stop_str_in_output
        if self._text is not None and is_shown and self._take_text(self._text.push(token.token_id)):
            return token.finish_reason is None
        if token.finish_reason is None:
            return False
        if self._text is not None and self._take_text(self._text.flush()):
            return False
        choice.text += self._stops.flush()
        choice.finish_reason = token.finish_reason.value
        choice.stop_reason = token.stop_reason
        return False

    def _take_text(self, piece: str) -> bool:
        """Add text; give whether a stop string ended the choice (never before min_tokens)."""
        if len(self.choice.token_ids) < self._params.min_tokens:
            self.choice.text += piece
            return False
        text, stop = self._stops.push(piece)
        self.choice.text += text
        if stop is None:
            return False
        self.choice.finish_reason = FinishReason.STOP.value
        self.choice.stop_reason = stop
        return True


def default_sampling(folder: Path) -> dict[str, Any]:
    """Read what a checkpoint's generation_config.json says of sampling, as transformers and vLLM do."""
    file = folder / "generation_config.json"
    settings = read_json(file) if file.is_file() else {}
    if settings.get("do_sample") is False:
        return {"temperature": 0.0}
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return {name: settings[name] for name in names if settings.get(name) is not None}


def _engine_config(**settings: Any) -> EngineConfig:
    try:
        return EngineConfig(**settings)
    except TypeError:
        known = EngineConfig.__dataclass_fields__
        wrong = next(name for name in settings if name not in known)
        raise refuse(
            wrong, settings[wrong], "no such setting", f"Known: {', '.join(sorted(known))}."
        ) from None
