"""What a linear layer is to a model, and what a form of its weight (dense, quantized) has to say.

A form is one file beside dense.py. Parameters lays out and shares the tensors that it names; which form a checkpoint has
is looked up in weight_forms.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from baton.errors import ModelLoadError
from baton.kernels.moe_weights import Swiglu
from baton.models.ops import Ops
from baton.models.step import Step

Fill = Literal["normal", "zeros", "ones"] | Callable[[Tensor, float, torch.Generator | None], object]
"""What a parameter holds without a checkpoint; a function gets it, the deviation of weights, and what draws."""


class Linear(ABC):
    """Multiply by a weight and add a bias."""

    @abstractmethod
    def __call__(self, x: Tensor, step: Step | None = None) -> Tensor:
        """Multiply [tokens, inputs] to [tokens, outputs].

        Every linear layer of a decoder layer gets the step, which says whose token a row is: an adapter's linear layer,
        put around this one, needs that. A weight alone ignores it.
        """

    @abstractmethod
    def in_fp32(self, x: Tensor) -> Tensor:
        """Multiply, and on a GPU leave the result as it was summed: logits rounded to bf16 tie."""

    def settle(self) -> None:  # noqa: B027
        """Bring the loaded weight into the form that the device multiplies fastest."""

    def growth(self, device: torch.device) -> int:
        """Count the bytes that `settle` adds on a device to those that are loaded; below 0: takes away."""
        return 0


class Encoding(Protocol):
    """How a weight of a checkpoint becomes one of few bits while it is read, some of its rows at a time."""

    def kept(self, num_outputs: int, num_inputs: int) -> Sequence[Stored]:
        """Describe the parameters that are kept in its place; outputs are their first dimension."""

    def encode(self, rows: Tensor) -> Sequence[Tensor]:
        """Make the same rows of each of them, of rows [outputs, inputs]."""


class Experts(ABC):
    """The experts of a layer: all tokens through those that they chose, weighted and summed."""

    @abstractmethod
    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Compute [tokens, hidden] of x [tokens, hidden], chosen [tokens, k] int32 and weights [tokens, k] fp32."""

    def settle(self) -> None:  # noqa: B027
        """Bring the loaded weights into the form that the device multiplies fastest."""

    def growth(self, device: torch.device) -> int:
        """Count the bytes that `settle` adds on a device to those that are loaded."""
        return 0


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a module's weight, as the checkpoint has it.

    The parts of a linear layer lie one after the other along the dimension of outputs. A tensor without one (a scale of
    the whole module) is stacked instead: [modules, *shape].
    """

    suffix: str  # of its name, behind the module's
    shape: tuple[int, ...]
    out_dim: int | None = None  # the dimension that runs over outputs, or over groups of them
    in_dim: int | None = None
    dtype: torch.dtype | None = None  # as it must be stored; None: any float, cast to the model's
    fill: Fill = "normal"
    kept: torch.dtype | None = None  # as it is kept; None: as `dtype`, or in the model's
    optional: bool = False  # a checkpoint may lack it: it is then filled
    is_text: bool = False  # of so many bytes at most; the rest is zeros
    encoding: Encoding | None = None  # of a weight that is not kept as it is


@dataclass(frozen=True, slots=True)
class ByModule:
    """Forms by module, of a checkpoint that keeps some of its modules as they were trained.

    Both refuse with a ModelLoadError what cannot be.
    """

    form_of: Callable[[str], WeightForm]  # of a module by its name in the checkpoint
    source: str

    def of(self, modules: Sequence[str]) -> WeightForm:
        """Find the one form of modules that are multiplied together."""
        forms = {module: self.form_of(module) for module in modules}
        first = forms[modules[0]]
        for module, form in forms.items():
            if form != first:
                raise ModelLoadError(
                    f"{self.source}: {modules[0]} and {module} are multiplied as one and are quantized differently. "
                    "Take a checkpoint in which both are quantized alike."
                )
        return first


@dataclass(frozen=True, slots=True)
class ExpertTensors:
    """One of the two products of all experts."""

    tensors: Mapping[str, Tensor]  # by suffix
    bias: Tensor | None  # [experts, outputs]


class WeightForm(Protocol):
    """How the weights of linear layers lie in a checkpoint, and what multiplies by them."""

    def stored(self, num_outputs: int, num_inputs: int) -> Sequence[Stored]:
        """Describe the tensors of a module with these outputs and inputs."""

    def linear(
        self, tensors: Mapping[str, Tensor], bias: Tensor | None, sizes: Sequence[int], ops: Ops, dtype: torch.dtype
    ) -> Linear:
        """Make the layer of its joined tensors, whose values come later.

        Args:
            tensors: by suffix, dimensions as stored; the memory has the outputs first.
            sizes: outputs of each module, in the order of their rows.
            dtype: the model's.
        """

    def experts(self, up: ExpertTensors, down: ExpertTensors, gate: Swiglu, ops: Ops, dtype: torch.dtype) -> Experts:
        """Make the experts of a layer of their stacked tensors, whose values come later.

        Each tensor is [experts, outputs, *rest], whatever order the checkpoint has; of `up` the gate's outputs lie before
        the values'. A tensor without a dimension of outputs has one entry a module in its place.
        """
