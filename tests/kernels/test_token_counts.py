import pytest
import torch

from baton.kernels.token_counts import IN_PROMPT, NUM_DRAWN, count_tokens, row_of


@pytest.mark.parametrize("num_rows", [0, 1, 7, 130, 300])
@pytest.mark.parametrize("vocab_size", [1, 50, 1021])
def test_each_row_counts_its_own_tokens(num_rows, vocab_size, device):
    counts = torch.randint(0, 9, (num_rows + 5, vocab_size), dtype=torch.int32)
    counts[::3] |= IN_PROMPT
    expected, actual = counts.clone(), counts.to(device)
    rows = torch.randperm(num_rows + 5)[:num_rows]
    for _ in range(3):
        token_ids = torch.randint(0, vocab_size, (num_rows,))
        for row, token_id in zip(rows.tolist(), token_ids.tolist(), strict=True):
            expected[row, token_id] += 1
        count_tokens(actual, rows.to(device), token_ids.to(device))
    assert torch.equal(actual.cpu(), expected)


def test_a_row_says_what_was_drawn_and_what_the_prompt_has():
    row = row_of([3, 3, 7, 0], [7, 5, 7], 10)
    assert row.dtype == torch.int32
    assert (row & NUM_DRAWN).tolist() == [0, 0, 0, 0, 0, 1, 0, 2, 0, 0]
    assert (row & IN_PROMPT).nonzero().view(-1).tolist() == [0, 3, 7]
    assert not row_of([4], [], 6)[:4].any()
