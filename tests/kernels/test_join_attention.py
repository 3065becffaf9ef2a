import pytest
import torch

from baton.kernels.join_attention import join_attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_queries", "num_heads", "head_dim"), [(1, 1, 16), (7, 3, 40), (5, 12, 128)])
def test_two_halves_join_into_the_whole(dtype, num_queries, num_heads, head_dim, device, assert_close):
    scores = 4 * torch.randn(num_queries, num_heads, 20, device=device)
    values = torch.randn(20, num_heads, head_dim, device=device)

    def attend(keys: slice) -> tuple[torch.Tensor, torch.Tensor]:
        o = torch.einsum("qhk,khd->qhd", scores[..., keys].softmax(-1), values[keys])
        log_sum = scores[..., keys].logsumexp(-1)
        # As the library gives them: heads before queries in memory.
        return o.to(dtype).contiguous(), log_sum.transpose(0, 1).contiguous().transpose(0, 1)

    out = torch.full((num_queries, num_heads, head_dim), float("nan"), dtype=dtype, device=device)
    log_sum = join_attention(*attend(slice(0, 5)), *attend(slice(5, 13)), out)
    log_sum = join_attention(out, log_sum, *attend(slice(13, 20)), out)
    assert_close(out, attend(slice(0, 20))[0].double())
    assert_close(log_sum, attend(slice(0, 20))[1].double())


def test_a_part_without_weight_leaves_the_other_as_it_is(device):
    first, second = torch.randn(2, 3, 2, 16, device=device)
    far = torch.full((3, 2), 300.0, device=device)
    out = torch.empty_like(first)
    assert torch.equal(join_attention(first, far, second, -far, out), far)
    torch.testing.assert_close(out, first)
    assert torch.equal(join_attention(first, -far, second, far, out), far)
    torch.testing.assert_close(out, second)
