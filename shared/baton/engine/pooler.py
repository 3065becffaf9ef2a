"""Hidden states of whole prompts become what was asked for: a vector, classes' scores, or either for each token.

The rows of a step that pool are those that reach their sequence's last token, as the rows that sample are in a model that
generates. Everything stays on the device until `Pooler.pool` has made one flat tensor of all.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequences
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from baton.engine.batch import HostBatch
from baton.engine.upload import upload
from baton.errors import ModelLoadError
from baton.models.causal_lm import CausalLM
from baton.pooling import PoolingParams
from baton.pooling_files import DenseModule, PoolingSetup


@dataclass(frozen=True, slots=True)
class Pooled:
    """What one prompt gave."""

    data: bytes
    """float32, row by row."""
    shape: tuple[int, ...]
    """[size], or [tokens, size]."""


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer behind the pooling, in fp32."""

    weight: Tensor
    bias: Tensor | None
    activation: str

    def __call__(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return torch.tanh(y) if self.activation == "tanh" else y


class Pooler:
    """The end of a model that pools."""

    def __init__(self, model: CausalLM, setup: PoolingSetup, dense: Sequences[Dense] = ()) -> None:
        self._model = model
        self._setup = setup
        self._dense = dense

    @classmethod
    def of(cls, model: CausalLM, setup: PoolingSetup, folder: Path | None) -> Pooler:
        """Make the pooler of a checkpoint; without a folder, whose weights are random, one without layers of its own.

        Raises:
            ModelLoadError: a layer's file is missing or damaged.
        """
        if folder is None:
            return cls(model, setup)
        return cls(model, setup, [_load(folder / each.folder, each, model) for each in setup.dense])

    def pool(self, hidden: Tensor, batch: HostBatch) -> tuple[Tensor, list[tuple[int, ...]]]:
        """Pool the rows of a step that have reached their end.

        Returns:
            One flat fp32 tensor, and the shape of each row's part of it.
        """
        params = [sequence.pooling or PoolingParams() for sequence in batch.sampled]
        ends = batch.sampled_at + 1
        starts = batch.query_start[batch.sampled_rows]
        wants_tokens = [each.task.startswith("token_") for each in params]
        if not any(wants_tokens):
            made = self._finish(self._gather(hidden, starts, ends), params)
            if isinstance(made, Tensor):
                return made.flatten(), [(made.shape[1],)] * len(params)
            return torch.cat(made), [(len(row),) for row in made]
        parts: list[Tensor] = []
        shapes: list[tuple[int, ...]] = []
        for i, each in enumerate(params):
            span = slice(int(starts[i]), int(ends[i]))
            rows = hidden[span] if wants_tokens[i] else self._gather(hidden, starts[i : i + 1], ends[i : i + 1])
            made = torch.stack(list(self._finish(rows, [each] * len(rows))))
            parts.append(made.flatten())
            shapes.append(tuple(made.shape) if wants_tokens[i] else (made.shape[1],))
        return torch.cat(parts), shapes

    def _gather(self, hidden: Tensor, starts: np.ndarray, ends: np.ndarray) -> Tensor:
        """Return each sequence's one hidden state, [rows, hidden_size]."""
        kind = self._setup.kind
        if kind != "MEAN":
            at = upload(np.ascontiguousarray(starts if kind == "CLS" else ends - 1), hidden.device)
            return hidden[at]
        lens = ends - starts
        if int(lens.sum()) == len(hidden):  # always, but for what a caller lays out otherwise
            lengths = upload(np.ascontiguousarray(lens), hidden.device)
            # unsafe: the lengths are not read back from the device to be checked; they are the batch's own
            return torch.segment_reduce(hidden.float(), "mean", lengths=lengths, unsafe=True)
        spans = zip(starts.tolist(), ends.tolist(), strict=True)
        return torch.stack([hidden[start:end].float().mean(0) for start, end in spans])

    def _finish(self, rows: Tensor, params: Sequences[PoolingParams]) -> Tensor | list[Tensor]:
        """Put the model's end on pooled rows: [rows, size], or a list of vectors of several lengths."""
        made = self._model.logits(rows.to(self._model.dtype))
        for layer in self._dense:
            made = layer(made)
        if all(each.dimensions is None for each in params):
            return self._activate(made, params)
        cut = [row[: each.dimensions] for row, each in zip(made, params, strict=True)]
        return [self._activate(row[None], [each])[0] for row, each in zip(cut, params, strict=True)]

    def _activate(self, rows: Tensor, params: Sequences[PoolingParams]) -> Tensor:
        setup = self._setup
        usual = setup.is_classifier or setup.normalize
        wanted = [usual if each.use_activation is None else each.use_activation for each in params]
        if not any(wanted):
            return rows
        activated = _activated(rows, setup)
        if all(wanted):
            return activated
        return torch.where(torch.tensor(wanted, device=rows.device)[:, None], activated, rows)


def _activated(rows: Tensor, setup: PoolingSetup) -> Tensor:
    if not setup.is_classifier:
        return F.normalize(rows, dim=-1)
    if setup.activation == "sigmoid":
        return torch.sigmoid(rows)
    return torch.softmax(rows, -1) if setup.activation == "softmax" else rows


def _load(folder: Path, module: DenseModule, model: CausalLM) -> Dense:
    file = folder / "model.safetensors"
    if not file.is_file():
        raise ModelLoadError(
            f"{folder} has no model.safetensors, the only format that Baton loads. Save the model anew."
        )
    try:
        tensors = {name: tensor.to(model.device, torch.float32) for name, tensor in load_file(file).items()}
    except Exception as error:  # the library's errors have no common class
        raise ModelLoadError(f"{file} is damaged ({error}). Fetch it again.") from None
    weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
    if (
        weight is None
        or tuple(weight.shape) != (module.num_outputs, module.num_inputs)
        or (bias is None) == module.bias
    ):
        raise ModelLoadError(
            f"{file} does not hold the layer that {folder / 'config.json'} describes. Fetch both again."
        )
    return Dense(weight, bias, module.activation)
