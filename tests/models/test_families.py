"""Every family computes what transformers computes, from the same checkpoint, in fp32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.stepping import Stepper, Stream
from tests.tiny_models import ANY, FAMILIES, MORE, load_tiny
from tests.tiny_relabelled import RELABELLED

from baton.models.causal_lm import CausalLM
from baton.models.loader import load_model

PROMPT_LENS = (45, 7, 30)


Pair = tuple[Any, CausalLM]


@pytest.fixture(scope="module", params=sorted(FAMILIES | MORE | RELABELLED | ANY))
def pair(request: pytest.FixtureRequest, tiny_checkpoint: Callable[[str], Path]) -> Pair:
    """The model of transformers and Baton's, of one checkpoint."""
    return make_pair(tiny_checkpoint(request.param))


def make_pair(folder: Path, max_model_len: int | None = None) -> Pair:
    model = load_model(folder, dtype="float32", progress=False, max_model_len=max_model_len)
    return load_tiny(folder), model


@cache
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, 211, (length,), generator=generator).tolist() for length in PROMPT_LENS]


def streams() -> list[Stream]:
    return [Stream(list(prompt)) for prompt in prompts()]


def assert_same(stream: Stream, reference: Any) -> None:
    """Compare the logits behind all computed tokens with those of one pass of transformers."""
    with torch.no_grad():
        expected = reference(torch.tensor([stream.tokens[: stream.num_computed]])).logits[0]
    error = (torch.stack(stream.logits) - expected).abs().max() / expected.abs().max()
    assert error < 2e-5


def test_whole_prompts_give_the_logits_of_transformers(pair: Pair) -> None:
    reference, model = pair
    stepper, work = Stepper(model), streams()
    stepper.step(*((stream, len(stream.tokens)) for stream in work))
    for stream in work:
        if is_one_rope(stream, reference):
            assert_same(stream, reference)


def test_chunks_and_decodes_in_one_step_give_the_same_logits(pair: Pair) -> None:
    reference, model = pair
    stepper = Stepper(model, block_size=8)
    long, short, middle = streams()
    stepper.step((short, 5), (long, 16))
    stepper.step((short, 1), (long, 3), (middle, 1))
    stepper.step((long, 1), (middle, 20), (short, 1))
    stepper.step((middle, 1), (long, 25))
    stepper.step((middle, 8))
    for stream in (long, short, middle):
        assert stream.num_computed == len(stream.tokens)
        if is_one_rope(stream, reference):
            assert_same(stream, reference)


def test_greedy_tokens_are_those_of_generate(pair: Pair) -> None:
    reference, model = pair
    prompt = prompts()[0]
    reference.generation_config.eos_token_id = None
    output = reference.generate(
        torch.tensor([prompt]), max_new_tokens=24, do_sample=False, use_cache=True, pad_token_id=0
    )
    expected = output[0, len(prompt) :].tolist()
    assert Stepper(model).generate(Stream(list(prompt)), 24) == expected
    assert len(set(expected)) > 8


def is_one_rope(stream: Stream, reference: Any) -> bool:
    """With LongRoPE transformers turns a short context by other factors than a long one, and Baton does not."""
    rope = getattr(reference.config, "rope_parameters", None) or {}
    return rope.get("rope_type") != "longrope" or stream.num_computed > rope["original_max_position_embeddings"]


def test_longrope_takes_its_short_factors_when_the_context_is_short(tiny_checkpoint: Callable[[str], Path]) -> None:
    reference, model = make_pair(tiny_checkpoint("phi3-longrope"), max_model_len=32)
    stepper, stream = Stepper(model), Stream(prompts()[2])
    stepper.step((stream, 20))
    stepper.step((stream, 10))
    assert_same(stream, reference)
