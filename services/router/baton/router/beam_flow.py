"""BeamFlow: a beam search as one request, each step of which is an attempt with a choice for each beam.

An attempt carries the tokens that its choices have, which is all that a step needs: when each beam has its token, the
beams are chosen anew, and the next attempt begins with those. What is lost within a step is replayed as always.
"""

from __future__ import annotations

from typing import Any

from baton.beam_search import Beam, BeamSearch, BeamSearchParams
from baton.messages import Token, TokenLogprobs
from baton.router.attempt import Choice, Verdict
from baton.router.flow import NOTHING_NEW, STALE, Flow, Next, Onward, Over, Replay, refusal
from baton.router.generation import Generation
from baton.router.sink import Sink


class BeamFlow(Flow[Any]):
    """One prompt's beams; the sink is told of the end alone, and `best` has the answers."""

    __slots__ = ("_rows", "_search")

    def __init__(
        self, generation: Generation, beams: BeamSearchParams, sink: Sink[Any], eos_token_ids: tuple[int, ...]
    ) -> None:
        super().__init__(generation, (), sink)
        num_top = generation.params.logprobs or 0
        self._search = BeamSearch(beams, len(generation.prompt), eos_token_ids, num_top)
        self._next_step()

    def best(self) -> list[Beam]:
        """Return the answers, the best one first, when it is over."""
        return self._search.best()

    def take(self, token: Token, worker: str) -> Next:
        """Take one token of a worker: its beam's in this step."""
        attempt = self.attempt
        if attempt is None:
            return STALE
        verdict = attempt.take(token, worker)
        if verdict is not Verdict.ACCEPTED and verdict is not Verdict.LAST:
            return refusal(verdict, token, worker, attempt)
        if token.logprobs is None:
            return Replay("no_scores", worker)
        usage = self.usage
        if not usage.num_completion:
            usage.take_cached(token.num_cached, token.num_restored)
        usage.num_completion += 1
        self._rows[token.choice] = token.logprobs
        self._choices[token.choice].is_done = True
        self._num_open -= 1
        if self._num_open:
            return NOTHING_NEW
        runs_on = not attempt.decode_gave_token  # what only the prefill worker has given
        self._search.advance([self._rows[i] for i in range(len(self._choices))])
        if self._search.is_over:
            return Over("finished", "length" if self.best()[0].end is None else "stop", runs_on)
        self._next_step()
        return Onward(runs_on)

    def end(self, over: Over) -> None:
        """Tell the sink; what counts as said is the answers."""
        if over.state == "finished":
            self.usage.num_completion = sum(len(beam.tokens) for beam in self.best())
        super().end(over)

    def _next_step(self) -> None:
        self._rows: dict[int, TokenLogprobs] = {}
        self._choices = [Choice(i, list(beam.tokens)) for i, beam in enumerate(self._search.beams)]
        self._num_open = len(self._choices)
        self.params = self._search.step_params()
