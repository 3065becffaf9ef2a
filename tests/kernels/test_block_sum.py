import pytest
import torch

from baton.kernels.block_sum import PARTS, block_sums, block_sums_reference


def sums_of(blocks: torch.Tensor, ids: list[int]) -> torch.Tensor:
    out = torch.empty(len(ids), PARTS, 2, dtype=torch.int64, device=blocks.device)
    block_sums(blocks, torch.tensor(ids, dtype=torch.int32, device=blocks.device), out)
    return out.sum(1)


@pytest.mark.parametrize("nbytes", [8, 40, 32768, 32776, 100_000, 1_200_000])
def test_sums_are_their_formula(nbytes, device):
    blocks = torch.randint(0, 256, (5, nbytes), dtype=torch.uint8, device=device)
    ids = [3, 0, 3, 4]
    expected = block_sums_reference(blocks, torch.tensor(ids, device=device))
    assert torch.equal(sums_of(blocks, ids), expected)


def test_any_damage_is_seen(device):
    block = torch.randint(0, 256, (1, 4096), dtype=torch.uint8, device=device)
    right = sums_of(block, [0]).tolist()
    for at in (0, 1, 2048, 4095):
        bad = block.clone()
        bad[0, at] ^= 1
        assert sums_of(bad, [0]).tolist() != right
    words = block.view(torch.int32)
    exchanged = words.clone()
    exchanged[0, 7], exchanged[0, 8] = words[0, 8], words[0, 7]
    rolled = words.roll(1, 1)
    halves = words.view(-1, 2).flip(1).reshape(words.shape)
    for bad in (exchanged, rolled, halves, words.roll(2, 1), torch.zeros_like(words)):
        assert sums_of(bad.view(torch.uint8), [0]).tolist() != right


def test_a_word_next_to_one_that_a_sum_cannot_see_is_seen_by_the_other(device):
    """Where one half and its key are equal, a sum is the same whatever the other half is."""
    block = torch.zeros(1, 64, dtype=torch.uint8, device=device)
    words = block.view(torch.int32)
    words[0, 0] = 0x7F4A7C15  # B of the first sum, and place 0
    before = sums_of(block, [0])
    words[0, 1] = 12345
    after = sums_of(block, [0])
    assert before[0, 0] == after[0, 0]
    assert before[0, 1] != after[0, 1]


def test_ids_beyond_four_gigabytes_of_words_are_not_wrapped(device):
    if device != "cuda":
        pytest.skip("needs 9 GiB of a GPU")
    blocks = torch.zeros(9, 1 << 30, dtype=torch.uint8, device=device)
    blocks[8, -1] = 1
    zero, last = sums_of(blocks, [0, 8])
    assert not torch.equal(zero, last)
    assert torch.equal(last, block_sums_reference(blocks[8:], torch.tensor([0], device=device))[0])
