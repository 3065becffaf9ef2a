"""Rehearsal: the steps that a worker does before anybody asks, so that its first requests find it warm and its speed known."""

from __future__ import annotations

from baton.engine.engine import Engine
from baton.pooling import PoolingParams
from baton.prompt import Prompt
from baton.protocol import SamplingParams
from baton.step_learning import StepLearner
from baton.worker.load_meter import LoadMeter

_DECODES = 8
_LENGTHS = (256, 1024, 64, 512, 128)
"""Of prompts, one after another beside some decodes."""
_FILLED = 8
"""Tokens of a prompt of the largest batch."""
_LONGEST_FILLED = 34
"""Tokens of the longest answer there: the batch shrinks in so many steps."""


def warm_up(engine: Engine) -> None:
    """Run a prompt and some tokens: the first steps of a process take ten times as long as those that follow."""
    prompt_len = min(64, engine.max_model_len - 4, engine.memory.num_tokens - 4)
    if engine.pooling is not None:
        engine.pool_prompt(
            "warm-up", Prompt([0] * min(64, engine.max_model_len)), PoolingParams(task=engine.pooling.tasks[0])
        )
        _run(engine)
    elif prompt_len >= 1:
        engine.add("warm-up", Prompt([0] * prompt_len), _tokens(4))
        _run(engine)
    _forget(engine)


def fill(engine: Engine) -> None:
    """Decode with as many sequences as may run at once, then with ever fewer; half a second of a GPU's.

    Whatever depends on their number is then loaded and has its memory. Taking more of a GPU's waits for all that was launched:
    each new largest batch, of four rows more, stopped all streams for a whole step.
    """
    room = engine.memory.num_tokens // (_FILLED + _LONGEST_FILLED)
    num = min(engine.config.max_num_seqs, engine.config.max_num_waiting, room)
    for temperature in (1.0, 0.0):
        for i in range(num):
            tokens = _tokens(2 + (_LONGEST_FILLED - 2) * i // num, temperature)
            engine.add(f"row-{i}", Prompt([i % engine.model.spec.vocab_size] * _FILLED), tokens)
        _run(engine)
    _forget(engine)


def rehearse(engine: Engine, learner: StepLearner) -> None:
    """Have step times learned from steps of every kind; a second or two of a GPU's."""
    longest = min(engine.max_model_len, engine.memory.num_tokens // (_DECODES + 2)) - 128
    lengths = [length for length in _LENGTHS if length <= longest]
    for is_measured in (False, True):  # what is compiled is compiled in the first round
        meter = LoadMeter(engine, learner) if is_measured else None
        for i in range(_DECODES if lengths else 0):
            engine.add(f"decode-{i}", Prompt([i] * min(512, longest)), _tokens(96))
        for length in lengths:
            for i in range(2):
                engine.add(f"prompt-{length}-{i}", Prompt([_DECODES + i] * length), _tokens(1))
            _run(engine, meter, num_steps=12)
        _run(engine, meter)
        _forget(engine)


def _tokens(num: int, temperature: float = 0.0) -> SamplingParams:
    return SamplingParams(temperature=temperature, max_tokens=num, ignore_eos=True)


def _run(engine: Engine, meter: LoadMeter | None = None, num_steps: int | None = None) -> None:
    """Do steps until nothing is left to do, or so many."""
    num_done = 0
    while engine.has_work and num_done != num_steps:
        if meter is not None:
            meter.step_begins()
        engine.step()
        if meter is not None:
            meter.step_ends()
        num_done += 1


def _forget(engine: Engine) -> None:
    engine.cache.clear()
    engine.cache.num_queries = engine.cache.num_hits = 0
