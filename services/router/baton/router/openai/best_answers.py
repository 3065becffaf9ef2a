"""The answers that are given, where more were made: the beams of a search, or the likeliest of best_of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from baton.beam_search import Beam
from baton.messages import Token, TokenLogprobs
from baton.protocol import SamplingParams
from baton.router.beam_flow import BeamFlow
from baton.router.openai.bodies import CollectSink
from baton.router.openai.open_request import OpenRequest
from baton.router.openai.parts import AnswerParser


async def keep_best(
    opened: OpenRequest,
    sinks: Sequence[CollectSink],
    num_answers: int,
    new_parser: Callable[[], AnswerParser] | None = None,
) -> None:
    """Leave so many answers in each prompt's sink, the best one first, when all is there."""
    for flow, sink in zip(opened.flows, sinks, strict=True):
        if isinstance(flow, BeamFlow):
            await _show_beams(opened, flow, sink, flow.best()[:num_answers], new_parser)
        elif len(sink.choices) > num_answers:
            sink.choices = sorted(sink.choices, key=lambda choice: choice.score(), reverse=True)[:num_answers]


async def _show_beams(
    opened: OpenRequest,
    flow: BeamFlow,
    sink: CollectSink,
    beams: Sequence[Beam],
    new_parser: Callable[[], AnswerParser] | None,
) -> None:
    params = flow.generation.params
    texts = opened.texts(flow.generation, new_parser)
    del sink.choices[len(beams) :]
    for choice, (beam, text) in enumerate(zip(beams, texts, strict=False)):
        scored, reason = list(beam.scored()), "length" if beam.end is None else "stop"
        for at, (token_id, row) in enumerate(scored, 1):
            finish_reason = reason if at == len(scored) else None
            shown, _ = text.push(token_id, finish_reason)
            token = Token("", 0, choice, at, token_id, logprobs=_asked(row, params))
            sink.push(choice, shown, token, finish_reason, beam.end if finish_reason else None)
        if beam.end is not None and not params.include_stop_str_in_output:
            sink.choices[choice].drop_last()
        await asyncio.sleep(0)  # there may be many: others have their turn between


def _asked(row: TokenLogprobs, params: SamplingParams) -> TokenLogprobs | None:
    """Leave of a position's scores what the request asked for."""
    if params.logprobs is None:
        return None
    end = params.logprobs + 1
    return TokenLogprobs(row.token_ids[:end], row.logprobs[:end], row.ranks[:end])
