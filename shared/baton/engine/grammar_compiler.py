"""GrammarCompiler: what answers are held to, made for this model's tokens: in threads, bounded and cached.

The library's tokenizer, a tree of all tokens, is made with the first form, or before by who cannot wait: 1 s for 128k tokens.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec
from llguidance import LLMatcher, LLTokenizer

from baton.engine.thoughts import Marks
from baton.errors import BatonError, UnsupportedFeature
from baton.grammars import LIMITS, grammar_of, refused
from baton.protocol import SamplingParams
from baton.structured_outputs import StructuredOutputs
from baton.text import Tokenizer
from baton.thinking import Thinking

MAX_CACHED = 256
"""Grammars that are kept; most are of 10 to 100 kB, and their forms are bounded."""
MAX_CACHED_NBYTES = 16 * 2**20
"""Of the forms of those that are kept, as text."""
COMPILE_S = 10.0
"""After so long who waits for a grammar is refused. A router has seen that it takes less than 2 s."""
_AT_ONCE = 2
_CLASSES = ("[a-z]", "[A-Za-z]", "[a-z ]", "[A-Za-z0-9]", "[A-Za-z0-9 ]")
_IN_STRINGS = r'[^"\\\x00-\x1F\x7F]'
SLICES = [
    r"[\x20\x0A\x0D\x09]+",
    *(each + "{1,10}" for each in _CLASSES),
    *(each + "{1,30}" for each in _CLASSES),
    *(_IN_STRINGS + times for times in ("{1,10}", "{1,30}", "+")),
]
"""Kinds of tokens, each of which a mask takes or looks at as one. Beside the library's own for JSON those of the patterns that
people write: a token within `[a-z ]{20,200}` takes 0.12 ms in place of 0.9 with 131,072 tokens, other forms what they took."""
_MAX_MARKS = 16

_Key = tuple[StructuredOutputs | None, Thinking | None]


@dataclass(frozen=True, slots=True)
class Held:
    """What an answer is held to, made for a model's tokens."""

    matcher: LLMatcher | None
    """Stands at the beginning of the form; who uses it copies it."""
    marks: Marks | None
    """Of thoughts before it."""


class GrammarCompiler:
    """Makes matchers that stand at the beginning of an answer."""

    def __init__(self, tokenizer: Callable[[], Tokenizer], *, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        """`tokenizer` is asked once, in a thread; it may raise as `Tokenizer` does."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos = eos_token_ids
        self._tokens: LLTokenizer | None = None
        self._text: Tokenizer | None = None
        self._special: dict[str, int] = {}
        self._marks: dict[Thinking, Marks] = {}
        self._lock = threading.RLock()
        self._slots = threading.Semaphore(_AT_ONCE)
        self._cached: OrderedDict[_Key, Future[Held]] = OrderedDict()
        self._cached_nbytes = 0

    def prepare(self) -> None:
        """Do what the first form would wait for, and every other request with it: it holds the interpreter."""
        with contextlib.suppress(UnsupportedFeature):  # who brings a form is told
            self.load()

    def load(self) -> LLTokenizer:
        """Return the library's tokenizer, which is made once.

        Raises:
            UnsupportedFeature: the library cannot read the model's tokenizer, or there is none.
        """
        with self._lock:
            if self._tokens is None:
                self._tokens = self._load()
            return self._tokens

    def compile(self, params: SamplingParams, on_done: Callable[[], None]) -> Future[Held]:
        """Begin to make what an answer is held to, or find it made.

        `on_done` is called once it is there, from whichever thread. The future raises as `load`, or `InvalidRequest`.
        """
        key = _key(params)
        future = self._cached.get(key)
        if future is None:
            future = self._cached[key] = Future()
            # not of a pool: the interpreter would wait at its end for one that hangs
            threading.Thread(target=self._run, args=(*key, future), name="grammar", daemon=True).start()
            self._cached_nbytes += _nbytes(key)
            while len(self._cached) > MAX_CACHED or self._cached_nbytes > MAX_CACHED_NBYTES:
                oldest, _ = self._cached.popitem(last=False)
                self._cached_nbytes -= _nbytes(oldest)
        else:
            self._cached.move_to_end(key)
        future.add_done_callback(lambda _: on_done())
        return future

    def _load(self) -> LLTokenizer:
        try:
            text = self._load_text()
            num_tokens = max(self._vocab_size, text.vocab_size)
            tokens = LLTokenizer(text.to_json(), n_vocab=num_tokens, eos_token=list(self._eos) or None, slices=SLICES)
        except (BatonError, ValueError, OSError) as error:
            raise _unreadable("structured_outputs", error) from None
        self._special = {
            name: token_id for name, token_id in text.added_tokens().items() if tokens.is_special_token(token_id)
        }
        return tokens

    def _load_text(self) -> Tokenizer:
        with self._lock:
            if self._text is None:
                self._text = self._tokenizer()
            return self._text

    def _run(self, form: StructuredOutputs | None, thinking: Thinking | None, future: Future[Held]) -> None:
        try:
            with self._slots:
                future.set_result(
                    Held(
                        None if form is None else self._compile(form),
                        None if thinking is None else self._marks_of(thinking),
                    )
                )
        except BaseException as error:
            future.set_exception(error)

    def _compile(self, form: StructuredOutputs) -> LLMatcher:
        tokens = self.load()
        matcher = LLMatcher(tokens, grammar_of(form, self._special), limits=LIMITS, log_level=0)
        if matcher.is_error():
            raise refused(form, matcher.get_error())
        matcher.compute_bitmask()  # the first is the longest, and makes what those of all answers share
        if matcher.is_error():
            raise refused(form, matcher.get_error())
        return matcher

    def _marks_of(self, thinking: Thinking) -> Marks:
        with self._lock:
            marks = self._marks.get(thinking)
            if marks is None:
                try:
                    text = self._load_text()
                except (BatonError, ValueError, OSError) as error:
                    raise _unreadable("thinking_token_budget", error) from None
                marks = Marks(thinking, text, self._vocab_size)
                if len(self._marks) >= _MAX_MARKS:
                    self._marks.clear()
                self._marks[thinking] = marks
            return marks


def _key(params: SamplingParams) -> _Key:
    """Return what of the parameters is made; how long thoughts may be, and where they begin, changes nothing of that."""
    thinking = params.thinking
    if thinking is not None:
        thinking = msgspec.structs.replace(thinking, is_open=False, budget=None)
    return params.structured_outputs, thinking


def _unreadable(field: str, error: Exception) -> UnsupportedFeature:
    return UnsupportedFeature(
        f"{field} is not served with this model: its tokenizer cannot be read ({str(error)[:200]}). "
        "Leave it out and ask for it in the prompt.",
        field=field,
    )


def _nbytes(key: _Key) -> int:
    form, _ = key
    if form is None:
        return 0
    value = getattr(form, form.kind)
    return sum(map(len, value)) if isinstance(value, tuple) else len(str(value))
