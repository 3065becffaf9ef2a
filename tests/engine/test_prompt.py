"""Prompts with media: where spans may lie, and what they do to the names of blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.block_hash import hash_blocks
from baton.errors import InvalidRequest
from baton.prompt import Prompt, Span

BLOCK = 4


def _hashes(*spans: Span, num_tokens: int = 16) -> list[bytes]:
    hashes: list[bytes] = []
    hash_blocks(b"root", hashes, [7] * num_tokens, BLOCK, spans)
    return hashes


def test_a_picture_changes_its_blocks_and_all_after_them_and_none_before():
    plain, cat, dog = _hashes(), _hashes(Span(6, 4, b"cat")), _hashes(Span(6, 4, b"dog"))
    assert plain[0] == cat[0] == dog[0]
    assert all(len({a, b, c}) == 3 for a, b, c in zip(plain[1:], cat[1:], dog[1:], strict=True))


def test_the_place_of_a_picture_counts_and_where_its_embeddings_are_does_not():
    assert _hashes(Span(5, 4, b"cat"))[1:] != _hashes(Span(6, 4, b"cat"))[1:]
    assert _hashes(Span(5, 4, b"cat", "here")) == _hashes(Span(5, 4, b"cat", "there"))


@given(st.integers(0, 15), st.integers(1, 8), st.integers(1, 15))
def test_a_chain_made_in_two_parts_is_the_same(at, length, first):
    span = Span(at, min(length, 16 - at), b"cat")
    hashes: list[bytes] = []
    hash_blocks(b"root", hashes, [7] * first, BLOCK, [span])
    hash_blocks(b"root", hashes, [7] * 16, BLOCK, [span])
    assert hashes == _hashes(span)


def test_two_pictures_in_one_block_are_told_from_their_exchange():
    assert _hashes(Span(0, 1, b"cat"), Span(1, 1, b"dog")) != _hashes(Span(0, 1, b"dog"), Span(1, 1, b"cat"))


@pytest.mark.parametrize(
    "spans",
    [
        [Span(3, 2, b"a"), Span(4, 1, b"b")],
        [Span(4, 1, b"a"), Span(0, 1, b"b")],
        [Span(7, 2, b"a")],
        [Span(-1, 1, b"a")],
        [Span(0, 0, b"a")],
        [Span(0, 1, b"")],
    ],
)
def test_spans_that_overlap_or_leave_the_prompt_are_refused_by_place(spans):
    with pytest.raises(InvalidRequest, match=r"spans='"):
        Prompt([1] * 8, tuple(spans))


def test_spans_in_order_are_taken():
    assert len(Prompt([1] * 8, (Span(0, 3, b"a"), Span(3, 5, b"b")))) == 8
