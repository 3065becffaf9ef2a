"""Text to tokens and back: tokenizer, chat template, incremental detokenization, stop strings.

Owned by whoever talks to users (`LLM`, the router); workers and the engine see token ids only. No torch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from baton.chat_template import ContentFormat
from baton.detokenizer import Detokenizer, Pieces
from baton.errors import InvalidRequest, ModelLoadError
from baton.protocol import SamplingParams
from baton.template_files import ChatTemplates
from baton.tokenizer_files import TokenizerFiles, first_line


class TooManyTokens(Exception):
    """A text makes more tokens than are wanted."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


_PATHS = ("vocab_file", "merges_file", "tokenizer_file", "name_or_path")
"""Of a tokenizer's settings: where somebody's files lie."""


class Tokenizer:
    """A model's own tokenizer and chat template, without torch and without remote code."""

    def __init__(
        self,
        path: str | Path,
        revision: str | None = None,
        chat_template: str | None = None,
        content_format: ContentFormat = "auto",
    ) -> None:
        """Load from a folder or a hub id; `chat_template` is a name among the model's own, a file or a template.

        Raises:
            ModelLoadError: no tokenizer there, or one that only remote code could load.
            ConfigError: `chat_template` is none.
        """
        # threads of ours call it; a pool of its own would only take their cores
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._path, self._revision = str(path), revision
        self._hf: Any = None
        found = TokenizerFiles.find(path, revision)
        self._is_converted = found.is_converted
        if found.tokenizer is not None:
            self._backend: Any
            self._backend, self.special_tokens = found.backend()
            templates = found.chat_templates()
            self._settings = found.settings()
        else:  # older checkpoints have vocabulary and merges only, which transformers converts
            self._backend = self.hf.backend_tokenizer
            self.special_tokens = {
                name: str(token) for name, token in self.hf.special_tokens_map.items() if isinstance(token, str)
            }
            templates = self.hf.chat_template or {}
            self._settings = dict(self.hf.init_kwargs)
            if isinstance(templates, str):
                templates = {"default": templates}
        # fine-tunes often keep their training's cut and padding in tokenizer.json, which would change prompts
        self._backend.no_truncation()
        self._backend.no_padding()
        self.chat_templates = ChatTemplates(
            templates, self.special_tokens, chosen=chat_template, content_format=content_format
        )
        self._shown = Pieces(self._backend, skip_special_tokens=True)
        self._all = Pieces(self._backend, skip_special_tokens=False)
        self._shown_with: dict[tuple[str, ...], Pieces] = {}

    @property
    def hf(self) -> Any:
        """The same tokenizer as `transformers` loads it; imports transformers, and torch where it is installed."""
        if self._hf is None and self._is_converted:
            from transformers import PreTrainedTokenizerFast

            self._hf = PreTrainedTokenizerFast(tokenizer_object=self._backend, **self.special_tokens)
        if self._hf is None:
            self._hf = _load_hf(self._path, self._revision)
        return self._hf

    def info(self) -> dict[str, Any]:
        """Return tokenizer_config.json with the chat template that is in use; no paths, and tokens as their text."""
        told = {name: _plain(value) for name, value in self._settings.items() if name not in _PATHS}
        told.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
        sources = self.chat_templates.sources
        if sources:
            told["chat_template"] = sources.get("default") or next(iter(sources.values()))
        return told

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's own end of text."""
        eos = self.special_tokens.get("eos_token")
        return None if eos is None else cast(int | None, self._backend.token_to_id(eos))

    def end_token_ids(self, named: Sequence[int] = ()) -> tuple[int, ...]:
        """Return what ends an answer: the ids that a model's configs name, and the tokenizer's own end.

        Where the configs name none, also the special token that the chat template writes after an assistant's message.
        """
        ends = [*named, self.eos_token_id, None if named else self._end_of_turn()]
        return tuple(dict.fromkeys(token_id for token_id in ends if token_id is not None))

    def special_token_id(self, text: str) -> int | None:
        """Return the id of the special token that `text` is, if it is one."""
        token_id: int | None = self._backend.token_to_id(text)
        return token_id if token_id is not None and self.is_special(token_id) else None

    def added_tokens(self) -> dict[str, int]:
        """Return the tokens that stand beside the vocabulary, special ones and others, with their ids."""
        return {added.content: token_id for token_id, added in self._backend.get_added_tokens_decoder().items()}

    def is_special(self, token_id: int) -> bool:
        """Whether a token is left out of text unless it is asked for."""
        return self._shown[token_id] != self._all[token_id]

    def _end_of_turn(self) -> int | None:
        said = "quartz7zebra"
        with contextlib.suppress(InvalidRequest):  # no template, or one that refuses
            template = self.chat_templates.compiled(with_tools=False)
            turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": said}]
            after = template.render(turns, add_generation_prompt=False).rpartition(said)[2]
            first = self.encode(after.lstrip(), add_special_tokens=False)[:1]
            return next(filter(self.is_special, first), None)
        return None

    @property
    def vocab_size(self) -> int:
        """Entries, added tokens included; the model may have more, as padding."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def num_token_ids(self) -> int:
        """One more than the highest id; ids below it may be left out."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def check_fits(self, num_embeddings: int) -> None:
        """Check that a model has an embedding for every token; it may have more, which only pad its tables.

        Raises:
            ModelLoadError: it has fewer.
        """
        highest = self.num_token_ids - 1
        if highest >= num_embeddings:
            raise ModelLoadError(
                f"tokenizer={self._path!r} has token ids up to {highest} ({self.token(highest)!r}), and config.json has "
                f"vocab_size={num_embeddings}: the model has no embedding for those beyond. They belong to different "
                "models: give the tokenizer of this one (--tokenizer), or a checkpoint whose embedding was resized for it."
            )

    def to_json(self) -> str:
        """Write it as a tokenizer.json, with the tokens that other files of its folder add."""
        text: str = self._backend.to_str()
        return text

    def encode(self, text: str, *, add_special_tokens: bool = True, max_tokens: int | None = None) -> list[int]:
        """Return the token ids of `text`, with the tokenizer's own bos and eos if it adds them.

        Other threads run meanwhile: of the library's calls only the batched ones release the interpreter.

        Raises:
            TooManyTokens: there are more than `max_tokens`; no list was made of them.
        """
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        if max_tokens is not None and len(encoding) > max_tokens:
            raise TooManyTokens(len(encoding))
        ids: list[int] = encoding.ids
        return ids

    def encode_all(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Return the token ids of each text."""
        return [each.ids for each in self._backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)]

    def encode_cut(
        self, text: str, second: str | None, keep: int | None, side: Literal["left", "right"] = "right"
    ) -> tuple[list[int], int]:
        """Return the ids of a text, or of a pair, with the special tokens around them, and where the second text begins.

        With `keep` so many at most: the longer of a pair gives way first. The place is 0 where the tokenizer marks none.
        """
        parts = [text] if second is None else [text, second]
        encoded = self._backend.encode_batch_fast(parts, add_special_tokens=False)
        if keep is not None:
            room = max(keep - self._backend.num_special_tokens_to_add(second is not None), 0)
            for part, size in zip(encoded, _shares(list(map(len, encoded)), room), strict=True):
                part.truncate(size, direction=side)
        joined = self._backend.post_process(*encoded)
        second_at = 0
        if second is not None and 1 in joined.type_ids:
            second_at = joined.type_ids.index(1)
        return joined.ids if keep is None else joined.ids[:keep], second_at

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of whole token ids; for a stream use `new_stream`."""
        stream = self.new_stream((), skip_special_tokens=skip_special_tokens)
        return "".join(map(stream.push, token_ids)) + stream.flush()

    def decode_with_offsets(self, token_ids: Iterable[int]) -> tuple[str, list[int]]:
        """Return the text of token ids, special tokens included, and how many characters stand before each token's."""
        stream = self.new_stream((), skip_special_tokens=False)
        texts, offsets, offset = [], [], 0
        for token_id in token_ids:
            offsets.append(offset)
            texts.append(stream.push(token_id))
            offset += len(texts[-1])
        return "".join(texts) + stream.flush(), offsets

    def offsets(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return where in `text` each of its tokens begins; one that the tokenizer adds stands where it is added."""
        (encoding,) = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        is_added = encoding.special_tokens_mask
        shown, counted = self.decode_with_offsets(
            t for t, added in zip(encoding.ids, is_added, strict=True) if not added
        )
        if shown != text:  # something was lost on the way to ids, so the library's spans must do, wide as some are
            return _beginnings(encoding.offsets)
        own = iter([*counted, len(text)])
        begins, begin = [], next(own)
        for added in is_added:
            begins.append(begin)
            begin = begin if added else next(own)
        return begins

    def token(self, token_id: int) -> str:
        """Return a token as the vocabulary writes it; empty where it has none of this id."""
        return self._backend.id_to_token(token_id) or ""

    def token_id(self, token: str) -> int | None:
        """Return the id of a token as the vocabulary writes it."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def token_text(self, token_id: int) -> str:
        """Return what a token adds to a text, special tokens included, as log-probabilities name it.

        A part of a character is named by its bytes, in OpenAI's way; an id that has no text by its number.
        """
        piece = self._all[token_id]
        if isinstance(piece, bytes):
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
        return piece or unnamed(token_id)

    def token_bytes(self, token_id: int, *, skip_special_tokens: bool = True) -> bytes:
        """Return the bytes that a token adds to a text."""
        piece = (self._shown if skip_special_tokens else self._all)[token_id]
        return piece.encode() if isinstance(piece, str) else piece

    def render_chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        documents: Sequence[Mapping[str, str]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        templates: ChatTemplates | None = None,
    ) -> list[int]:
        """Apply the chat template (in transformers' immutable sandbox), or one of `templates`; and encode.

        Raises:
            InvalidRequest: the model has no template, or the template refuses these messages.
        """
        text = (
            (templates or self.chat_templates)
            .compiled(with_tools=bool(tools))
            .render(
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                documents=documents,
                kwargs=kwargs,
            )
        )
        return self.encode(text, add_special_tokens=False)

    def new_stream(
        self, prompt_ids: Sequence[int], *, skip_special_tokens: bool = True, shown: tuple[str, ...] = ()
    ) -> Detokenizer:
        """Start the text of one answer, after `prompt_ids`; `shown` are special tokens that are not skipped."""
        return Detokenizer(self._pieces(skip_special_tokens, shown), prompt_ids)

    def visible_end(
        self, prompt_ids: Sequence[int], *, skip_special_tokens: bool = True, shown: tuple[str, ...] = ()
    ) -> list[int]:
        """Return the few ids that stand for the whole prompt in `new_stream`: many choices need not walk it each."""
        return self._pieces(skip_special_tokens, shown).visible_end(prompt_ids)

    def _pieces(self, skips_special: bool, shown: tuple[str, ...]) -> Pieces:
        if skips_special and any(self.special_token_id(token) is not None for token in shown):
            if shown not in self._shown_with:
                self._shown_with[shown] = Pieces(self._backend, skip_special_tokens=True, shown=shown)
            return self._shown_with[shown]
        return self._shown if skips_special else self._all


def _plain(value: Any) -> Any:
    """Write a token as its text, wherever it stands."""
    if isinstance(value, dict):
        if "content" in value:
            return value["content"]
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _load_hf(path: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(
            f"tokenizer={path!r} has no tokenizer.json, and nothing there can be converted to one ({_reason(error)}). "
            f"Name a folder or hub id with a tokenizer.json, or pass skip_tokenizer_init for token ids only."
        ) from error
    if not loaded.is_fast:
        raise ModelLoadError(f"tokenizer={path!r} has no tokenizer.json and cannot be converted to one.")
    return loaded


class StopMatcher:
    """Find the first stop string in a stream of text pieces, holding back what could still become one."""

    def __init__(self, stops: Sequence[str], *, include_in_output: bool) -> None:
        self._stops = tuple(stops)
        self._include = include_in_output
        self._held = ""

    def push(self, piece: str) -> tuple[str, str | None]:
        """Take a piece; return the text that is safe to show, and the stop string if one has come."""
        text = self._held + piece
        start, stop = min(((at, stop) for stop in self._stops if (at := text.find(stop)) >= 0), default=(-1, None))
        if stop is not None:
            self._held = ""
            return text[: start + len(stop)] if self._include else text[:start], stop
        keep = held_back(text, self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """Return what was held back, at an end that no stop string made."""
        held, self._held = self._held, ""
        return held


def held_back(text: str, words: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of `words`, and is not all of it."""
    for size in range(min(max(map(len, words)) - 1, len(text)), 0, -1):
        tail = text[-size:]
        if any(word.startswith(tail) for word in words):
            return size
    return 0


class AnswerText:
    """One choice's tokens becoming text, until a stop string or the engine ends it."""

    __slots__ = ("_detokenizer", "_hidden_stops", "_include_stop", "_min_tokens", "_num_tokens", "_stops")

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        shown: tuple[str, ...] = (),
    ) -> None:
        """Start after `prompt_ids`; without a tokenizer the text is empty. `shown` are special tokens that stay in it."""
        self._include_stop = params.include_stop_str_in_output
        self._detokenizer: Detokenizer | None = None
        if tokenizer is not None and params.detokenize:
            self._detokenizer = tokenizer.new_stream(
                prompt_ids, skip_special_tokens=params.skip_special_tokens, shown=shown
            )
        self._stops = StopMatcher(params.stop, include_in_output=self._include_stop) if params.stop else None
        self._hidden_stops: dict[int, str] = {}
        """Stop strings that are special tokens: those are not in the text."""
        if tokenizer is not None and params.skip_special_tokens:
            ids = ((tokenizer.special_token_id(stop), stop) for stop in params.stop)
            self._hidden_stops = {token_id: stop for token_id, stop in ids if token_id is not None}
        self._min_tokens = params.min_tokens
        self._num_tokens = 0

    def push(self, token_id: int, finish_reason: str | None) -> tuple[str, str | None]:
        """Take a token; return the text that is safe to show, and the stop string if one has ended the answer.

        With a finish_reason everything that was held back comes out. The token that ended the answer by itself
        (end of text, stop_token_ids) stays out of the text unless the request includes stops. Stop strings count
        from min_tokens on.
        """
        self._num_tokens += 1
        detokenizer = self._detokenizer
        if detokenizer is None:
            return "", None
        piece = "" if finish_reason == "stop" and not self._include_stop else detokenizer.push(token_id)
        if finish_reason is not None:
            piece += detokenizer.flush()
        stops = self._stops
        if stops is None or self._num_tokens < self._min_tokens:
            return piece, None
        text, stop = stops.push(piece)
        if stop is None and finish_reason != "stop" and token_id in self._hidden_stops:
            stop = self._hidden_stops[token_id]
            return text + detokenizer.flush() + stops.flush() + (stop if self._include_stop else ""), stop
        if stop is None and finish_reason is not None:
            text += stops.flush()
        return text, stop


def _shares(sizes: list[int], room: int) -> list[int]:
    """Share a room among one or two texts: the longer one gives way until they are equal."""
    if sum(sizes) <= room:
        return sizes
    if len(sizes) == 1:
        return [room]
    small = min(*sizes, room // 2)
    shares = [min(size, room - small) for size in sizes]
    return shares if sum(shares) <= room else [room - room // 2, room // 2]


def _beginnings(spans: Iterable[tuple[int, int]]) -> list[int]:
    """Return where tokens begin. A span may leave out its space; those of a character's parts are all the character's."""
    begins, end = [], 0
    for span_begin, span_end in spans:
        begins.append(min(span_begin, end) if span_end > span_begin else end)
        end = max(end, span_end)
    return begins


def unnamed(token_id: int) -> str:
    """Name a token by its number, as vLLM does, where its text does not tell it from others."""
    return f"token_id:{token_id}"


def bad_words_ids(tokenizer: Tokenizer, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """Spell each bad word as tokens, at the start of a text and after a space."""
    texts = [prefix + word.lstrip() for word in words for prefix in ("", " ")]
    spellings = set(map(tuple, tokenizer.encode_all(texts, add_special_tokens=False)))
    return tuple(sorted(ids for ids in spellings if ids))


def _reason(error: BaseException) -> str:
    return first_line(error).removesuffix(" from one of: .").rstrip(".")
