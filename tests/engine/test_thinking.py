"""Thoughts end when their budget is spent, and a form begins behind them, whoever opened them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from baton.engine.thoughts import Marks, Thoughts
from baton.errors import InvalidRequest, UnsupportedFeature
from baton.llm import LLM, CompletionOutput, SamplingParams, StructuredOutputsParams, demo_model_path
from baton.prompt import Prompt
from baton.structured_outputs import StructuredOutputs
from baton.text import Tokenizer
from baton.thinking import Thinking

TOKENIZER = Tokenizer(demo_model_path())
CLOSING = TOKENIZER.encode("</think>", add_special_tokens=False)
OPENING = TOKENIZER.encode("<think>", add_special_tokens=False)
FORM = StructuredOutputsParams(regex="[0-9]{3}-[a-f]{2}")
TO_OPEN = {OPENING[0]: 60.0}
"""Makes the model open its thoughts, where it may."""


def ask(llm: LLM, thinking: Thinking | None, **params: Any) -> list[CompletionOutput]:
    settings = {"max_tokens": 24, "temperature": 1.0, "seed": 3, "ignore_eos": True} | params
    return llm.generate("Tell me", SamplingParams(thinking=thinking, **settings), use_tqdm=False)[0].outputs


@pytest.mark.parametrize("budget", [0, 1, 7])
@pytest.mark.parametrize("form", [None, FORM])
def test_thoughts_end_after_as_many_tokens_as_they_may_have(
    engine_llm: LLM, budget: int, form: StructuredOutputs | None
) -> None:
    for choice in ask(engine_llm, Thinking(is_open=True, budget=budget), n=3, structured_outputs=form):
        assert choice.token_ids[budget : budget + len(CLOSING)] == CLOSING
        if form is not None:
            assert re.fullmatch(FORM.regex or "", choice.text.partition("</think>")[2])
            assert choice.finish_reason == "stop"


def test_up_to_their_end_thoughts_are_those_without_a_budget(engine_llm: LLM) -> None:
    (free,), (bounded,) = ask(engine_llm, None), ask(engine_llm, Thinking(is_open=True, budget=9))
    assert bounded.token_ids[:9] == free.token_ids[:9]
    (within,) = ask(engine_llm, Thinking(is_open=True, budget=24))
    assert within.token_ids == free.token_ids


def test_free_neighbours_of_bounded_thoughts_are_what_they_are_alone(engine_llm: LLM) -> None:
    free = SamplingParams(max_tokens=20, temperature=1.0, seed=5)
    bounded = free.replace(thinking=Thinking(is_open=True, budget=6), structured_outputs=FORM)
    alone = engine_llm.generate(["Tell me"] * 2, [free, bounded], use_tqdm=False)
    crowd = engine_llm.generate(["Tell me"] * 4, [free, bounded] * 2, use_tqdm=False)
    assert [out.outputs[0].token_ids for out in crowd] == [out.outputs[0].token_ids for out in alone] * 2


@pytest.mark.parametrize("budget", [None, 4])
def test_the_model_may_open_thoughts_before_a_form(engine_llm: LLM, budget: int | None) -> None:
    (choice,) = ask(engine_llm, Thinking(budget=budget), structured_outputs=FORM, logit_bias=TO_OPEN)
    assert choice.token_ids[: len(OPENING)] == OPENING
    if budget is not None:
        assert re.fullmatch(f"<think><+</think>{FORM.regex}", choice.text)


def test_who_opens_no_thoughts_answers_in_the_form_at_once(engine_llm: LLM) -> None:
    (choice,) = ask(engine_llm, Thinking(budget=4), structured_outputs=FORM)
    assert re.fullmatch(FORM.regex or "", choice.text)


def test_a_form_that_begins_as_thoughts_do_is_told_from_them_as_soon_as_it_can_be(engine_llm: LLM) -> None:
    form = StructuredOutputsParams(choice=["<this>", "<think"])
    other = {OPENING[1]: -60.0}
    (choice,) = ask(engine_llm, Thinking(budget=2), structured_outputs=form, logit_bias=other)
    assert choice.text == "<this>"
    (choice,) = ask(engine_llm, Thinking(budget=2), structured_outputs=form, logit_bias=dict.fromkeys(OPENING, 60.0))
    assert re.fullmatch("<think>.*</think>(<this>|<think)", choice.text)


@pytest.mark.parametrize("is_open", [True, False])
def test_an_answer_that_was_begun_elsewhere_goes_on_as_if_it_had_not(llm: LLM, *, is_open: bool) -> None:
    """As after a replay, or a first token from a prefill worker: at every place, in marks too."""
    params = SamplingParams(
        temperature=1.0,
        max_tokens=40,
        structured_outputs=FORM,
        thinking=Thinking(is_open=is_open, budget=3),
        logit_bias=None if is_open else TO_OPEN,
    )
    whole = run(llm, params, [])
    assert TOKENIZER.decode(whole).count("</think>") == 1
    for at in range(1, len(whole)):
        assert run(llm, params, whole[:at]) == whole[at:]


def run(llm: LLM, params: SamplingParams, emitted: list[int]) -> list[int]:
    llm.engine.add("one", Prompt(TOKENIZER.encode("Tell me")), params, choices={0: emitted}, seed=11)
    tokens: list[int] = []
    while llm.engine.has_work:
        tokens += [output.token_id for output in llm.engine.step()]
        llm.engine.wait_for_grammar(10)
    return tokens


def test_preempted_answers_are_those_of_a_pool_with_room_for_all(llm: LLM) -> None:
    params = [
        SamplingParams(
            max_tokens=40, temperature=1.0, seed=i, ignore_eos=True, thinking=Thinking(is_open=True, budget=24)
        )
        for i in range(4)
    ]
    prompts = [f"Tell me of {i} things and more of them" for i in range(4)]
    small = LLM(use_tqdm=False, max_num_seqs=4, max_num_batched_tokens=64, num_gpu_blocks_override=7, max_model_len=96)
    wanted = [out.outputs[0].token_ids for out in llm.generate(prompts, params, use_tqdm=False)]
    assert [out.outputs[0].token_ids for out in small.generate(prompts, params, use_tqdm=False)] == wanted
    assert small.engine.scheduler.num_preemptions > 0


def test_a_bad_word_that_the_end_of_thoughts_is_made_of_ends_in_an_error(engine_llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match=r"bad_words is not valid: .* thinking_token_budget allows"):
        ask(engine_llm, Thinking(is_open=True, budget=2), bad_words=["</"])
    assert not engine_llm.engine.has_work


@pytest.mark.parametrize("wrong", [{"budget": -1}, {"closes": ()}, {"opens": ("",)}, {"closes": ("x" * 999,)}])
def test_thinking_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="thinking"):
        Thinking(**wrong)


# -- marks ---------------------------------------------------------------------------------------------------------


def placed(thinking: Thinking, text: str) -> str:
    thoughts = Thoughts(thinking, Marks(thinking, TOKENIZER, 4096))
    for token_id in TOKENIZER.encode(text, add_special_tokens=False):
        thoughts.take(token_id)
    return thoughts.place


def test_marks_are_found_whatever_tokens_they_are_made_of() -> None:
    one, two = Thinking(), Thinking(opens=("Here is:", "Here's:"), closes=("So:", "Thus:"))
    assert placed(one, "\n <think>\nI </thin") == "inside"
    assert placed(one, "<think>I</think> then") == "behind"
    assert placed(one, "Well, <think>") == "behind"
    assert placed(one, " <th") == "before"
    assert placed(two, "Here's: a") == "inside"
    assert placed(two, "Here is: a. Thus: b") == "behind"


def test_a_token_that_belongs_to_what_follows_ends_thoughts_too() -> None:
    thinking = Thinking(is_open=True, ends_before=("<|tools|>",))
    assert placed(thinking, "I <|tools|>") == "behind"
    assert placed(thinking, "I ") == "inside"


def test_tokens_that_close_thoughts_and_go_on_at_once_are_known() -> None:
    marks = Marks(Thinking(closes=("e",)), TOKENIZER, 4096)
    over = {marks.bytes_of(token_id) for token_id in marks.overruns(b"x")}
    assert b"er" in over
    assert not over & {b"e", b"he", b"e "}
    marks = Marks(Thinking(closes=("the",)), TOKENIZER, 4096)
    assert b"he" not in {marks.bytes_of(token_id) for token_id in marks.overruns(b"so t")}
    assert b"her" in {marks.bytes_of(token_id) for token_id in marks.overruns(b"so t")}


def test_a_mark_that_the_tokenizer_cannot_write_is_refused() -> None:
    class Silent(Tokenizer):
        def token_bytes(self, token_id: int, *, skip_special_tokens: bool = True) -> bytes:
            return b"?"

    with pytest.raises(UnsupportedFeature, match="cannot write '</think>'"):
        Marks(Thinking(), Silent(demo_model_path()), 10)
