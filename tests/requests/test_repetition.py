"""A repetition is found at the end of an answer, by the plain meaning of the words."""

from hypothesis import given
from hypothesis import strategies as st

from baton.protocol import RepetitionDetection


def repeats(tokens: list[int], rule: RepetitionDetection) -> bool:
    """Look for each pattern as it is said: so long, so often, one after the other, at the end."""
    return any(
        tokens[-size:] * rule.min_count == tokens[-size * rule.min_count :]
        for size in range(max(rule.min_pattern_size, 1), rule.max_pattern_size + 1)
        if size * rule.min_count <= len(tokens)
    )


@given(
    st.lists(st.integers(0, 1), min_size=1, max_size=24),
    st.integers(0, 6),
    st.integers(0, 6),
    st.integers(2, 5),
    st.integers(0, 3),
)
def test_a_repetition_is_what_it_says(tokens: list[int], most: int, least: int, count: int, num_prompt: int) -> None:
    rule = RepetitionDetection(max_pattern_size=most, min_pattern_size=min(least, most), min_count=count)
    sequence = [0] * num_prompt + tokens + [1]
    assert rule.ends(sequence, num_prompt, num_prompt + len(tokens)) == repeats(tokens, rule)
