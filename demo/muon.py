"""Muon: momentum whose matrices are made nearly orthogonal before they are applied.

For the matrices inside the layers; embeddings and norms take AdamW. Matrices of one shape are stacked, so
a step is a few batched products and not thousands of small ones. Method: Jordan and others, 2024,
"Muon: an optimizer for hidden layers in neural networks" (the quintic's coefficients are from there).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """Push all singular values of each matrix towards 1 by Newton-Schulz; [matrices, rows, columns]."""
    tall = stack.shape[1] > stack.shape[2]
    x: Tensor = stack.bfloat16()
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return x.transpose(1, 2) if tall else x


class Muon:
    """An optimizer over matrices; set `lr` before each step."""

    def __init__(
        self,
        matrices: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
        compiled: bool = False,
    ) -> None:
        groups: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for matrix in matrices:
            groups[matrix.shape].append(matrix)
        self._groups = list(groups.values())
        self._buffers = [torch.zeros_like(torch.stack(group)) for group in self._groups]
        self._orthogonalise: Callable[[Tensor], Tensor] = torch.compile(orthogonalise) if compiled else orthogonalise
        self.lr = lr
        self._momentum = momentum
        self._weight_decay = weight_decay

    @torch.no_grad()
    def step(self) -> None:
        """Apply the gradients that are in the parameters."""
        for group, buffer in zip(self._groups, self._buffers, strict=True):
            gradient = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            buffer.lerp_(gradient, 1 - self._momentum)
            update = self._orthogonalise(gradient.lerp(buffer, self._momentum))
            rows, columns = group[0].shape
            scale = self.lr * max(1.0, rows / columns) ** 0.5
            torch._foreach_mul_(group, 1 - self.lr * self._weight_decay)
            torch._foreach_add_(group, list(update.to(group[0].dtype).unbind()), alpha=-scale)
