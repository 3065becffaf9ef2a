"""Streamed text equals what the full decode adds to the prompt's: every kind of tokenizer, every split."""

from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.detokenizer import Detokenizer, Pieces

from .tokenizer_kinds import KINDS, full_text, tokenizer_of

TEXTS = st.text(st.sampled_from("hello wrd,.!'日本語ですไทยé😀🇯🇵\n\t\N{REPLACEMENT CHARACTER}"), max_size=12)
kinds = pytest.mark.parametrize("kind", KINDS)


def _streamed(kind: str, prompt: list[int], answer: list[int], *, skip: bool) -> list[str]:
    stream = Detokenizer(Pieces(tokenizer_of(kind), skip_special_tokens=skip), prompt)
    return [*(stream.push(token_id) for token_id in answer), stream.flush()]


def _added(kind: str, prompt: list[int], answer: list[int], *, skip: bool) -> str:
    """Return what stands after all that prompt and whole have in common."""
    tokenizer = tokenizer_of(kind)
    before = full_text(tokenizer, prompt, skip_special_tokens=skip)
    whole = full_text(tokenizer, prompt + answer, skip_special_tokens=skip)
    in_common = takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False))
    return whole[len(list(in_common)) :]


@kinds
@settings(max_examples=60, deadline=None)
@given(TEXTS, st.integers(0, 60), st.booleans())
def test_a_text_split_anywhere_goes_on_with_what_is_new(kind: str, text: str, at: int, skip: bool) -> None:
    ids = tokenizer_of(kind).encode(text).ids
    assert "".join(_streamed(kind, ids[:at], ids[at:], skip=skip)) == _added(kind, ids[:at], ids[at:], skip=skip)


@kinds
@settings(max_examples=120, deadline=None)
@given(st.data(), st.booleans())
def test_any_ids_split_anywhere_go_on_with_what_is_new(kind: str, data: st.DataObject, skip: bool) -> None:
    ids = st.lists(st.integers(0, tokenizer_of(kind).get_vocab_size() - 1), max_size=12)
    prompt, answer = data.draw(ids), data.draw(ids)
    assert "".join(_streamed(kind, prompt, answer, skip=skip)) == _added(kind, prompt, answer, skip=skip)


@kinds
@settings(max_examples=60, deadline=None)
@given(st.data(), st.booleans())
def test_a_prompts_last_visible_tokens_stand_for_all_of_it(kind: str, data: st.DataObject, skip: bool) -> None:
    ids = st.lists(st.integers(0, tokenizer_of(kind).get_vocab_size() - 1), max_size=12)
    prompt, answer = data.draw(ids), data.draw(ids)
    end = Pieces(tokenizer_of(kind), skip_special_tokens=skip).visible_end(prompt)
    assert len(end) <= 3
    assert _streamed(kind, end, answer, skip=skip) == _streamed(kind, prompt, answer, skip=skip)


@kinds
@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_a_whole_text_equals_the_librarys(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(text).ids
    assert "".join(_streamed(kind, [], ids, skip=True)) == tokenizer.decode(ids)


@kinds
@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS)
def test_each_character_comes_out_as_soon_as_it_is_whole(kind: str, prompt: str, answer: str) -> None:
    tokenizer = tokenizer_of(kind)
    before, after = tokenizer.encode(prompt).ids, tokenizer.encode(answer).ids
    pieces = _streamed(kind, before, after, skip=True)
    for count in range(len(after)):
        whole = _added(kind, before, after[: count + 1], skip=True)
        held = whole.removeprefix("".join(pieces[: count + 1]))
        assert len(held) <= 3
        assert not held.strip("\N{REPLACEMENT CHARACTER}")
