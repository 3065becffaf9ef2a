"""What the engine sees of a model: token ids in, hidden states out, logits of the rows that are sampled or pooled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from baton.models.linear import Linear
from baton.models.parameters import Parameters
from baton.models.spec import ModelSpec
from baton.models.step import Step


class CausalLM(ABC):
    """A decoder (or an encoder) for inference, its tensors at fixed addresses, with no control flow on values of the device.

    Building one takes the memory of its parameters and leaves their values undefined: `load_model` makes a usable one.

    Args:
        spec: for the context that is served (`ModelSpec.within`).
    """

    lm_head: Linear

    def __init__(self, spec: ModelSpec, parameters: Parameters) -> None:
        self.spec = spec
        self.own: Any = spec.own  # a family that has something of its own says its type
        self.parameters = parameters
        self.dtype = parameters.dtype
        self.device = parameters.device

    @abstractmethod
    def forward(self, step: Step) -> Tensor:
        """Compute the hidden states of a step's tokens and put their K and V into the cache.

        Returns:
            [tokens, hidden_size], after the final norm.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits of some rows of `forward`, [rows, vocab_size] fp32.

        Of a model that pools: of pooled rows, what its head makes of them: [rows, classes], or for vectors the rows themselves.
        """
        return self.lm_head.in_fp32(hidden)

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters and of the tables of rotations on the device."""
        return self.parameters.nbytes
