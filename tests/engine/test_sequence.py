"""A sequence counts its own tokens and hashes them once."""

from __future__ import annotations

from baton.block_hash import hash_blocks
from baton.engine.sequence import Sequence, SequenceState
from baton.prompt import Prompt, Span
from baton.protocol import SamplingParams


def make(prompt: list[int], max_len: int = 10) -> Sequence:
    return Sequence("a", Prompt(prompt), SamplingParams(), max_len=max_len, root=b"root")


def test_tokens_still_on_the_device_count() -> None:
    sequence = make([1, 2, 3])
    assert (sequence.num_tokens, sequence.num_output_tokens, sequence.num_prompt_tokens) == (3, 0, 3)
    sequence.num_pending = 1
    assert (sequence.num_tokens, sequence.num_output_tokens) == (4, 0)
    sequence.token_ids.append(9)
    sequence.num_pending = 0
    assert (sequence.num_tokens, sequence.num_output_tokens, sequence.num_prompt_tokens) == (4, 1, 3)


def test_the_callers_prompt_is_not_touched() -> None:
    prompt = [1, 2, 3]
    make(prompt).token_ids.append(4)
    assert prompt == [1, 2, 3]


def test_it_is_full_when_known_tokens_reach_the_bound() -> None:
    sequence = make([1, 2], max_len=3)
    sequence.num_pending = 1
    assert not sequence.is_full
    sequence.token_ids.append(3)
    assert sequence.is_full


def test_hashes_are_extended_and_earlier_ones_kept() -> None:
    sequence = make([1, 2, 3, 4, 5])
    sequence.extend_hashes(2)
    assert len(sequence.block_hashes) == 2
    first = sequence.block_hashes[0]
    sequence.token_ids.append(6)
    sequence.extend_hashes(2)
    expected: list[bytes] = []
    hash_blocks(b"root", expected, [1, 2, 3, 4, 5, 6], 2)
    assert sequence.block_hashes == expected
    assert sequence.block_hashes[0] is first


def test_the_media_of_the_prompt_are_in_its_hashes() -> None:
    span = Span(1, 2, b"cat")
    sequence = Sequence("a", Prompt([1, 2, 3, 4], (span,)), SamplingParams(), max_len=9, root=b"root")
    sequence.extend_hashes(2)
    expected: list[bytes] = []
    hash_blocks(b"root", expected, [1, 2, 3, 4], 2, [span])
    assert sequence.block_hashes == expected


def test_hashes_from_elsewhere_are_taken_as_they_are_and_continued() -> None:
    expected: list[bytes] = []
    hash_blocks(b"root", expected, [1, 2, 3, 4], 2)
    given = expected[:1]
    sequence = Sequence("a", Prompt([1, 2, 3, 4]), SamplingParams(), max_len=9, root=b"root", block_hashes=given)
    sequence.extend_hashes(2)
    assert sequence.block_hashes == expected
    assert len(given) == 1


def test_it_starts_with_nothing_computed() -> None:
    sequence = make([1])
    assert sequence.state is SequenceState.NEW
    assert (sequence.num_computed, sequence.tables, sequence.num_preemptions) == (0, [], 0)
    assert "new" in repr(sequence)
