"""The shape of a model, as immutable data: what its class builds from and what memory is planned with.

Knows no torch and no checkpoint: config.py makes a spec from config.json.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """How positions turn queries and keys; the fields that a kind does not use keep their defaults."""

    kind: str
    theta: float
    dim: int  # the rotated part of head_dim
    factor: float = 1.0
    original_max_len: int = 0  # the context before scaling
    attention_factor: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape of a model: all that its class needs to build itself, and the plan needs to size it."""

    family: str
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int  # tokens: the longest context that the checkpoint is made for
    dtype: str  # of the checkpoint
    norm_eps: float
    activation: str
    tie_word_embeddings: bool
    windows: tuple[int | None, ...]  # a layer: how many positions it sees, itself included; None: all
    attention_scales: tuple[float, ...]  # a layer: the factor of q·k
    rope: RopeSpec | None
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    initializer_range: float = 0.02
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None
    num_positions: int = 0  # GPT-2, OPT: rows of the table of learned positions
    embedding_size: int = 0  # OPT: the width of its embeddings
    norm_first: bool = True  # OPT-350m normalizes after each block instead
    final_norm: bool = True
    norm_affine: bool = True

    def windows_within(self, max_model_len: int) -> tuple[int | None, ...]:
        """Give each layer's window in contexts of so many tokens.

        One as long as the context hides nothing, and is None: attention then takes its plainer path.
        """
        return tuple(None if window is None or window >= max_model_len else window for window in self.windows)

    def block_nbytes(self, block_size: int, itemsize: int) -> int:
        """Give the size of one KV block, all layers of it."""
        return self.num_layers * 2 * block_size * self.num_kv_heads * self.head_dim * itemsize
