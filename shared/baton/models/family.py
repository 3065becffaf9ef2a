"""What tells one family of models from another, as a value. Each family's file makes its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from baton.models.causal_lm import CausalLM
from baton.models.fields import Fields
from baton.models.parameters import Parameters
from baton.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Family:
    """One family: how its config.json is read, and what is built from it."""

    name: str  # model_type of config.json
    architectures: tuple[str, ...]
    read: Callable[[Fields], ModelSpec]
    build: Callable[[ModelSpec, Parameters], CausalLM]
    eos: int | None = None  # what transformers takes where config.json has no eos_token_id
    # Code that checkpoints of the family name though Baton's own definition is that model. It is never fetched nor run.
    harmless_code: frozenset[str] = frozenset()
