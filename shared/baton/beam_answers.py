"""Beam searches of `LLM`: one prompt's beams on their way through the engine, and what its users get."""

from __future__ import annotations

from dataclasses import dataclass

from baton.beam_search import Beam, BeamSearch, BeamSearchParams
from baton.engine.engine import Engine, TokenOutput
from baton.messages import TokenLogprobs
from baton.prompt import Prompt
from baton.protocol import Logprob
from baton.text import Tokenizer


@dataclass(slots=True)
class BeamSearchSequence:
    """One answer with its prompt, as vLLM gives it."""

    tokens: list[int]
    """The prompt's and the answer's, the end of text too."""
    logprobs: list[dict[int, Logprob]]
    """Of each token of the answer, what was scored in its place."""
    cum_logprob: float
    text: str | None
    """Of all tokens; none without a tokenizer."""
    finish_reason: str
    stop_reason: int | None
    """The token that ended it."""


@dataclass(slots=True)
class BeamSearchOutput:
    """The answers to one prompt, the best one first."""

    sequences: list[BeamSearchSequence]


class BeamAnswer:
    """One search on its way; each step is one request to the engine, with a choice for each beam."""

    def __init__(
        self, request_id: str, prompt: Prompt, params: BeamSearchParams, salt: str, eos_token_ids: tuple[int, ...]
    ) -> None:
        self.request_id = request_id
        self.num_choices, self.num_ends = params.beam_width, 1
        self._prompt = prompt
        self._salt = salt.encode()
        self._search = BeamSearch(params, len(prompt), eos_token_ids)
        self._rows: dict[int, TokenLogprobs] = {}

    def start(self, engine: Engine, tokenizer: Tokenizer | None) -> None:
        """Ask the engine for one token behind each beam."""
        self._rows = {}
        beams = dict(enumerate(beam.tokens for beam in self._search.beams))
        engine.add(self.request_id, self._prompt, self._search.step_params(), choices=beams, salt=self._salt)

    def take(self, token: TokenOutput, engine: Engine) -> bool:
        """Take one beam's token; return whether the search ended with it."""
        assert token.logprobs is not None
        self._rows[token.choice] = token.logprobs
        if len(self._rows) < len(self._search.beams):
            return False
        self._search.advance([self._rows[i] for i in range(len(self._rows))])
        if not self._search.is_over:
            self.start(engine, None)
        return self._search.is_over

    def output(self, tokenizer: Tokenizer | None) -> BeamSearchOutput:
        """Return the answers, when it is over."""
        return BeamSearchOutput([self._sequence(beam, tokenizer) for beam in self._search.best()])

    def _sequence(self, beam: Beam, tokenizer: Tokenizer | None) -> BeamSearchSequence:
        scored = list(beam.scored())
        tokens = [*self._prompt.token_ids, *(token_id for token_id, _ in scored)]
        return BeamSearchSequence(
            tokens=tokens,
            logprobs=[named(row, tokenizer) for _, row in scored],
            cum_logprob=beam.score,
            text=None if tokenizer is None else tokenizer.decode(tokens, skip_special_tokens=False),
            finish_reason="length" if beam.end is None else "stop",
            stop_reason=beam.end,
        )


def named(row: TokenLogprobs, tokenizer: Tokenizer | None) -> dict[int, Logprob]:
    """Turn a row into {token id: Logprob}, the chosen token first."""
    scores: dict[int, Logprob] = {}
    for token_id, value, rank in zip(row.token_ids, row.logprobs, row.ranks, strict=True):
        text = None if tokenizer is None else tokenizer.token_text(token_id)
        scores.setdefault(token_id, Logprob(value, rank or None, text))
    return scores
