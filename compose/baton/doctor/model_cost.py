"""What of a model costs time and memory, counted from its config.json. No torch: a plan needs no worker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from baton.bench.known_models import LLAMA_8B, QWEN_06B
from baton.config import demo_model_path
from baton.errors import ConfigError
from baton.model_folder import find_model

KNOWN = {"llama-3.1-8b": LLAMA_8B, "qwen3-0.6b": QWEN_06B}
"""Models that can be planned for with nothing downloaded."""
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class ModelCost:
    """A dense decoder, with weights and KV of `width` bytes a number."""

    name: str
    body_parameters: int
    """Of all layers: each token is multiplied by them."""
    head_parameters: int
    """Of the output layer, which a step reads too."""
    table_parameters: int
    """Of embeddings that are looked up, not read whole."""
    kv_numbers: int
    """A token has in the KV cache."""
    pair_flops: int
    """Of attention, for a token and one that it sees."""
    max_model_len: int
    width: int = 2

    @property
    def weights_nbytes(self) -> int:
        """Bytes that lie in memory."""
        return self.width * (self.body_parameters + self.head_parameters + self.table_parameters)

    @property
    def step_nbytes(self) -> int:
        """Bytes of weights that a step reads."""
        return self.width * (self.body_parameters + self.head_parameters)

    @property
    def kv_token_nbytes(self) -> int:
        """Bytes of a token's KV."""
        return self.width * self.kv_numbers

    @classmethod
    def of(cls, raw: Mapping[str, Any], name: str, *, width: int = 2) -> ModelCost:
        """Count.

        Raises:
            ConfigError: config.json lacks what is counted, or is of a mixture of experts.
        """
        if experts := next((raw[name] for name in _EXPERTS if raw.get(name)), None):
            raise ConfigError(
                f"model={name!r} is a mixture of {experts} experts. Dense models alone can be planned yet."
            )
        hidden = _integer(raw, name, "hidden_size", "n_embd")
        layers = _integer(raw, name, "num_hidden_layers", "n_layer")
        heads = _integer(raw, name, "num_attention_heads", "n_head")
        kv_heads = raw.get("num_key_value_heads") or heads
        head_dim = raw.get("head_dim") or hidden // heads
        inner = raw.get("intermediate_size") or raw.get("ffn_dim") or raw.get("n_inner") or 4 * hidden
        is_gated = raw.get("model_type") not in ("gpt2", "opt")
        attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
        table = _integer(raw, name, "vocab_size") * hidden
        return cls(
            name=name,
            body_parameters=layers * (attention + (3 if is_gated else 2) * hidden * inner),
            head_parameters=table,
            table_parameters=0 if raw.get("tie_word_embeddings", not is_gated) else table,
            kv_numbers=2 * layers * kv_heads * head_dim,
            pair_flops=4 * layers * heads * head_dim,
            max_model_len=raw.get("max_position_embeddings") or raw.get("n_positions") or 4096,
            width=width,
        )


def read_model(name: str | None, *, width: int = 2) -> ModelCost:
    """Count a model: a known name, a folder or a hub id; none is the bundled demo model.

    Raises:
        ConfigError: there is none such.
    """
    if name is not None and name.lower().removeprefix("meta-llama/").removeprefix("qwen/") in KNOWN:
        return ModelCost.of(KNOWN[name.lower().rpartition("/")[2]], name, width=width)
    folder = demo_model_path() if name is None else find_model(name)
    try:
        raw = json.loads((folder / "config.json").read_text())
        return ModelCost.of(raw, name or "baton-demo", width=width)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"model={name!r}: its config.json cannot be read ({error}).") from None


def _integer(raw: Mapping[str, Any], name: str, *fields: str) -> int:
    for field in fields:
        if isinstance(value := raw.get(field), int) and value > 0:
            return value
    raise ConfigError(
        f"model={name!r}: its config.json lacks {fields[0]}. Give a folder or hub id of a language model."
    )
