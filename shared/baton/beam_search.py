"""Beam search: the likeliest whole answers, found by keeping the best beginnings of each length. vLLM's algorithm.

    beams: the prompt alone
    each step   every beam is scored with the 2 * width likeliest tokens behind it, raw log-probabilities added up;
                one that ends there is completed; of the others the `width` best are the next beams
    at the end  completed ones and beams, by score: log-probabilities over length ** length_penalty; the `width` best

The length counts the prompt too, and no end of text, as in vLLM; `transformers` counts the answer alone, and keeps fewer
of those that are completed. Nothing is drawn, so no seed and no temperature changes an answer. A step is one token of
each beam, asked for as any other, with the prefix cache for what beams share. No torch, no worker and no text here.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import msgspec

from baton.errors import refuse
from baton.messages import TokenLogprobs
from baton.protocol import MAX_BEAM_WIDTH, SamplingParams


class BeamSearchParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """How to search. Names and meanings are vLLM's."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    """Taken, as vLLM does; it changes nothing: tokens are scored before it."""
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    early_stopping: bool = False
    """End when as many answers as the width are completed, and give no others."""

    def __post_init__(self) -> None:
        for name, most in (("beam_width", MAX_BEAM_WIDTH), ("max_tokens", 2**31 - 1)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise refuse(name, value, f"it must be a whole number from 1 to {most}")
        penalty = self.length_penalty
        if isinstance(penalty, bool) or not isinstance(penalty, (int, float)) or not abs(penalty) <= 100:
            raise refuse("length_penalty", penalty, "it must be a number from -100 to 100")

    @property
    def num_scored(self) -> int:
        """Tokens that are scored behind each beam."""
        return 2 * self.beam_width


@dataclass(slots=True)
class Beam:
    """The beginning of an answer, or a whole one."""

    tokens: list[int] = field(default_factory=list)
    """Without the end of text."""
    rows: list[TokenLogprobs] = field(default_factory=list)
    """What was scored at each of them, and at the end."""
    score: float = 0.0
    """Its log-probabilities together, the end's too."""
    end: int | None = None
    """The token that ended it."""
    rank: float = -math.inf
    """What answers are compared by: the score by length."""

    def scored(self) -> Iterator[tuple[int, TokenLogprobs]]:
        """Yield its tokens, and the end if it has one, each with its own score first and then the likeliest."""
        ends = [] if self.end is None else [self.end]
        for token_id, row in zip([*self.tokens, *ends], self.rows, strict=True):
            ids, values, ranks = row.token_ids[1:], row.logprobs[1:], row.ranks[1:]
            at = ids.index(token_id)
            yield token_id, TokenLogprobs([token_id, *ids], [values[at], *values], [ranks[at], *ranks])


class BeamSearch:
    """One prompt's beams, from step to step: ask for `step_params` behind each of `beams`, and `advance`."""

    def __init__(
        self, params: BeamSearchParams, num_prompt: int, eos_token_ids: Sequence[int], num_top: int = 0
    ) -> None:
        """Search behind a prompt of so many tokens; at least `num_top` of the likeliest are scored, for those who look."""
        self.beams = [Beam()]
        self.params = params
        self._num_prompt = num_prompt
        self._num_top = num_top
        self._eos = frozenset(eos_token_ids)
        self._completed: list[Beam] = []
        self._num_steps = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to ask."""
        params = self.params
        has_enough = params.early_stopping and len(self._completed) >= params.beam_width
        return has_enough or self._num_steps == params.max_tokens or not self.beams

    def step_params(self) -> SamplingParams:
        """Return what the next step asks of each beam: one token more, whatever it is, and the likeliest ones."""
        params = self.params
        return SamplingParams(
            n=params.beam_width,
            temperature=0.0,
            max_tokens=self._num_steps + 1,
            logprobs=max(params.num_scored, self._num_top),
            ignore_eos=True,
            detokenize=False,
        )

    def advance(self, rows: Sequence[TokenLogprobs]) -> None:
        """Take what was scored behind each beam: the token that was given, then the likeliest ones in order."""
        params, width = self.params, self.params.beam_width
        self._num_steps += 1
        candidates: list[tuple[float, int, int]] = []
        for i, (beam, row) in enumerate(zip(self.beams, rows, strict=True)):
            scored = slice(1, 1 + params.num_scored)
            for token_id, value in zip(row.token_ids[scored], row.logprobs[scored], strict=True):
                if token_id in self._eos and not params.ignore_eos:
                    ended = Beam(beam.tokens, [*beam.rows, row], beam.score + value, token_id)
                    self._completed.append(self._ranked(ended))
                else:
                    candidates.append((beam.score + value, i, token_id))
        best = heapq.nlargest(width, candidates, key=lambda candidate: candidate[0])  # of equal ones the first
        old = self.beams
        self.beams = [
            Beam([*old[i].tokens, token_id], [*old[i].rows, rows[i]], score)
            for score, i, token_id in best
            if score > -math.inf
        ]
        self._completed = self._best(self._completed)

    def best(self) -> list[Beam]:
        """Return the answers, the best one first."""
        if self.params.early_stopping and len(self._completed) >= self.params.beam_width:
            return self._completed
        return self._best([*self._completed, *map(self._ranked, self.beams)])

    def _best(self, beams: list[Beam]) -> list[Beam]:
        return sorted(beams, key=attrgetter("rank"), reverse=True)[: self.params.beam_width]

    def _ranked(self, beam: Beam) -> Beam:
        num_tokens = self._num_prompt + len(beam.tokens)
        if beam.tokens and beam.tokens[-1] in self._eos:  # which ended nothing
            num_tokens -= 1
        beam.rank = beam.score / num_tokens**self.params.length_penalty
        return beam
