"""What encoders share: each token sees its whole sequence, and nothing is kept of it.

The tokens of a step lie packed, without padding. For a pass the sequences are put in the order of their lengths, and those
of like length attend together: on a CPU of equal length, on a GPU as a batch that is padded where they differ. Everything
else runs over all tokens of a pass at once. On a GPU a step is one pass; on a CPU it is several, each of so few tokens that
what a layer makes of them stays in the cache.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from baton.kernels.linear import padded_rows
from baton.models.causal_lm import CausalLM
from baton.models.linear import Linear
from baton.models.parameters import Parameters
from baton.models.spec import AttentionSpec, ModelSpec
from baton.models.step import Step

MOST_PADDING = 0.12
"""Of a batch for attention on a GPU: so much more of it costs less than more launches. On a CPU a call is cheap beside a
mask: without both, attention of 224 texts of 3 to 128 tokens takes 32 ms a layer in place of 48."""
MOST_TOKENS = 1024
"""Of a pass on a CPU, where no sequence is longer: one layer 1,536 wide makes 6 MiB of them. A step of 8,192 tokens at once
takes 15 % longer."""


@dataclass(frozen=True, slots=True)
class Alike:
    """Sequences of like length that attend together."""

    tokens: slice
    """Theirs, among the packed ones."""
    num: int
    length: int
    """The longest."""
    places: Tensor | None = None
    """[num * length]: the packed token at each place, counted from the first of theirs; None: all are of one length."""
    is_token: Tensor | None = None
    """[num, length]: false where there is only padding."""
    kept: Tensor | None = None
    """[tokens]: the place of each; by a mask, a GPU's host would wait for their number."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """Attend, from and to [tokens, heads, head_dim]; `window`: how far a token sees to either side."""
        q, k, v = (self._batch(x[self.tokens]) for x in (q, k, v))
        mask = self._mask(window, q.device)
        out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale).transpose(1, 2)
        out = out.flatten(0, 1)
        return out if self.kept is None else out[self.kept]

    def _batch(self, x: Tensor) -> Tensor:
        x = x if self.places is None else x[self.places]
        return x.view(self.num, self.length, *x.shape[1:]).transpose(1, 2)

    def _mask(self, window: int | None, device: torch.device) -> Tensor | None:
        seen = None if self.is_token is None else self.is_token[:, None, None, :]
        if window is None or self.length <= window + 1:
            return seen
        at = torch.arange(self.length, device=device)
        near = (at[:, None] - at).abs() <= window
        if seen is None:
            return near
        # a place of padding that sees nothing would give no number
        return (seen & near) | (~seen.transpose(2, 3) & near)


@dataclass(frozen=True, slots=True)
class Pass:
    """Tokens that are computed together: whole sequences, the shortest first."""

    token_ids: Tensor
    positions: Tensor
    second: Tensor | None
    groups: list[Alike]


def limits(device: torch.device) -> tuple[int, float]:
    """Say how many tokens a pass has, and which share of padding a batch for attention."""
    return (MOST_TOKENS, 0.0) if device.type == "cpu" else (sys.maxsize, MOST_PADDING)


def lay_out(step: Step) -> tuple[list[Pass], Tensor | None]:
    """Order a step's sequences by length, and cut them into passes.

    Returns the passes, and where each token of the step lies among theirs, [tokens]; None: where it was.
    """
    lens = np.array(step.batches[0].query_lens_host)
    order = np.argsort(lens, kind="stable")
    device = step.token_ids.device
    token_ids, positions, second, back = step.token_ids, step.positions, step.second, None
    if len(lens) > 1 and (np.diff(lens) < 0).any():
        begins = np.concatenate(([0], np.cumsum(lens)[:-1]))
        taken = np.concatenate([np.arange(begins[i], begins[i] + lens[i]) for i in order])
        returned = np.empty_like(taken)
        returned[taken] = np.arange(len(taken))
        forth, back = _sent(taken, device), _sent(returned, device)
        token_ids, positions = token_ids[forth], positions[forth]
        second = None if second is None else second[forth]
    passes: list[Pass] = []
    begin = 0
    most_tokens, most_padding = limits(device)
    for some in _cut(lens[order], most_tokens):
        tokens = slice(begin, begin + int(some.sum()))
        own = None if second is None else second[tokens]
        passes.append(Pass(token_ids[tokens], positions[tokens], own, _groups(some, most_padding, device)))
        begin = tokens.stop
    return passes, back


def _cut(lens: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Cut lengths into parts of at most so many tokens, or of one sequence; where the fewest rows are added to a product."""
    first, ends = 0, np.cumsum(lens)
    while first < len(lens):
        totals = ends[first:] - (ends[first - 1] if first else 0)
        num = max(int(np.searchsorted(totals, most, "right")), 1)
        if first + num < len(lens):
            counts = range(num, num // 2, -1)
            num = min(counts, key=lambda count: padded_rows(int(totals[count - 1])) / int(totals[count - 1]))
        yield lens[first : first + num]
        first += num


def _groups(lens: np.ndarray, most: float, device: torch.device) -> list[Alike]:
    """Group ascending lengths so that no group has more padding than that."""
    groups: list[Alike] = []
    first = begin = 0
    total = 0
    for at in range(1, len(lens) + 1):
        total += int(lens[at - 1])
        is_end = at == len(lens)
        if is_end or (at + 1 - first) * int(lens[at]) > (1 + most) * (total + int(lens[at])):
            groups.append(_alike(lens[first:at], begin, device))
            begin += total
            first, total = at, 0
    return groups


def _alike(lens: np.ndarray, begin: int, device: torch.device) -> Alike:
    num, length, total = len(lens), int(lens[-1]), int(lens.sum())
    tokens = slice(begin, begin + total)
    if num * length == total:
        return Alike(tokens, num, length)
    at = np.arange(length)
    is_token = at < lens[:, None]
    begins = np.concatenate(([0], np.cumsum(lens)[:-1]))
    places = np.where(is_token, begins[:, None] + at, 0).reshape(-1)
    kept = np.flatnonzero(is_token)
    return Alike(tokens, num, length, *(_sent(array, device) for array in (places, is_token, kept)))


def _sent(array: np.ndarray, device: torch.device) -> Tensor:
    """Send what a pass needs without making the host wait for the step before."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def attend(qkv: Tensor, spec: AttentionSpec, groups: list[Alike], rotations: Tensor | None = None) -> Tensor:
    """Attend over packed queries, keys and values, [tokens, 3 * hidden_size]; gives [tokens, hidden_size].

    rotations: [tokens, 2, head_dim / 2], cosines and sines of each token's position.
    """
    q, k, v = qkv.view(len(qkv), 3, spec.num_heads, spec.head_dim).unbind(1)
    if rotations is not None:
        q, k = _turn(q, rotations), _turn(k, rotations)
    parts = [group.attend(q, k, v, spec.scale, spec.window) for group in groups]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).flatten(1)


def _turn(x: Tensor, rotations: Tensor) -> Tensor:
    cos, sin = rotations.unbind(1)
    cos, sin = cos[:, None], sin[:, None]
    first, last = x.float().chunk(2, -1)
    return torch.cat((first * cos - last * sin, last * cos + first * sin), -1).to(x.dtype)


class Encoder(CausalLM):
    """A model whose tokens see their whole sequence."""

    def __init__(self, spec: ModelSpec, parameters: Parameters) -> None:
        super().__init__(spec, parameters)
        assert spec.pooling is not None
        self.num_classes = len(spec.pooling.labels) if spec.pooling.is_classifier else 0

    def forward(self, step: Step) -> Tensor:
        passes, back = lay_out(step)
        parts = [self.encode(laid) for laid in passes]
        hidden = parts[0] if len(parts) == 1 else torch.cat(parts)
        return hidden if back is None else hidden[back]

    @abstractmethod
    def encode(self, laid: Pass) -> Tensor:
        """Compute the hidden states of packed tokens, [tokens, hidden_size]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute what the head makes of pooled rows, in fp32: classes, or for vectors the rows themselves."""
        return self.classes(hidden).float() if self.num_classes else hidden.float()

    @abstractmethod
    def classes(self, hidden: Tensor) -> Tensor:
        """Compute a classifier's logits of pooled rows, [rows, classes]."""


def linear_of(parameters: Parameters, name: str, num_inputs: int, num_outputs: int, *, bias: bool = True) -> Linear:
    """Make one linear layer of one module."""
    return parameters.linear([(name, num_outputs)], num_inputs, bias=bias)
