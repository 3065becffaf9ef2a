"""The shape of a model as immutable values: its class is built from them, and memory is planned with them.

A family's file makes a spec from config.json.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from baton.errors import ModelLoadError
from baton.kernels.moe_routing import Routing
from baton.kernels.moe_weights import SILU, Swiglu
from baton.models.dense import DENSE
from baton.models.linear import ByModule, WeightForm
from baton.pooling_files import PoolingSetup


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """How positions turn queries and keys."""

    dim: int  # the rotated part of head_dim
    max_len: int  # the longest context that it is made for
    frequencies: tuple[float, ...]  # of each pair of dimensions, in radians a position
    scale: float = 1.0  # of cosines and sines, which keeps attention sharp in long contexts
    long_frequencies: tuple[float, ...] = ()  # LongRoPE's, for every position of a context beyond the original
    original_max_len: int = 0
    interleaved: bool = False  # pairs are neighbours; else a dimension and the one half of dim further


QKNorm = Literal["head", "width", "layer"]
"""How queries and keys are normalized before rotation: RMSNorm of each head with one weight for all, RMSNorm of all heads
together, LayerNorm of each head with a weight for each."""


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """How heads share one vector a token: each makes its key and value of the first numbers; the rest turns, in every key."""

    rank: int  # of the first numbers
    key_dim: int  # of a head's key, without what turns
    value_dim: int
    q_rank: int | None  # queries are made of so few numbers; None: of the hidden state


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The attention of one layer.

    With a latent, KV heads and head_dim are those of what is cached: one, of the vector's size.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float  # the factor of q·k
    rope: RopeSpec | None = None
    window: int | None = None  # how many positions a token sees, itself included; None: all
    soft_cap: float | None = None
    slopes: tuple[float, ...] = ()  # of each head: how much less a score is for each position between query and key
    has_sinks: bool = False  # each head has a score of its own in the softmax, to which no value belongs
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: QKNorm | None = None
    latent: LatentSpec | None = None

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class MLPSpec:
    """The feed-forward of one layer."""

    size: int
    activation: str
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True, slots=True)
class MoESpec:
    """The feed-forward of one layer whose tokens choose among experts."""

    num_experts: int
    routing: Routing
    size: int  # of each expert
    gate: Swiglu = SILU
    bias: bool = False  # of the experts
    router_bias: bool = False
    score_bias: bool = False  # a bias that decides the choice alone
    shared: MLPSpec | None = None  # what every token goes through too
    shared_gate: bool = False  # the shared part counts by the sigmoid of a product of its own


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer."""

    attention: AttentionSpec
    mlp: MLPSpec | MoESpec


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape of a model. The first fields are its family's to read, the last are read alike for all."""

    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    max_model_len: int  # tokens: the longest context that the checkpoint is made for, or that is served
    norm_eps: float
    tie_word_embeddings: bool
    initializer_range: float = 0.02
    num_positions: int = 0  # rows of the table of learned positions
    weight_form: WeightForm | ByModule = DENSE  # of the layers' weights
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0  # norms multiply by it + weight
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # of what attention and feed-forward add
    logit_scale: float = 1.0
    own: object = None  # what only the family's file reads
    is_encoder: bool = False  # each token sees all others of its sequence, and nothing is kept of it

    family: str = ""
    dtype: str = "float32"  # of the checkpoint
    eos_token_ids: tuple[int, ...] = ()
    num_tokens: int | None = None  # ids from here on are no token of the tokenizer; None: all of vocab_size may be
    pooling: PoolingSetup | None = None  # None: it generates

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    # All layers of today's families have the same heads.

    @property
    def num_heads(self) -> int:
        return self.layers[0].attention.num_heads

    @property
    def num_kv_heads(self) -> int:
        return self.layers[0].attention.num_kv_heads

    @property
    def head_dim(self) -> int:
        return self.layers[0].attention.head_dim

    @property
    def latent(self) -> LatentSpec | None:
        return self.layers[0].attention.latent

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """Each rotation that a layer has, once."""
        ropes = (layer.attention.rope for layer in self.layers)
        return tuple(dict.fromkeys(rope for rope in ropes if rope is not None))

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The window of each layer."""
        return tuple(layer.attention.window for layer in self.layers)

    def windows_within(self, max_model_len: int) -> tuple[int | None, ...]:
        """The window of each layer in contexts up to this length.

        A window as long as the context hides nothing and is None: attention then takes its plainer path.
        """
        return tuple(None if window is None or window >= max_model_len else window for window in self.windows)

    def within(self, max_model_len: int | None) -> ModelSpec:
        """The same model for contexts up to this length; None: the longest.

        Raises:
            ModelLoadError: the model is not made for contexts of this length.
        """
        if max_model_len is None:
            max_model_len = self.max_model_len
        if not 1 <= max_model_len <= self.max_model_len:
            raise ModelLoadError(
                f"max_model_len={max_model_len} is not from 1 to {self.max_model_len}, the longest context that "
                "config.json allows (max_position_embeddings, with its rope scaling). Give a smaller one, or none."
            )
        layers = (
            replace(layer, attention=replace(layer.attention, window=window))
            for layer, window in zip(self.layers, self.windows_within(max_model_len), strict=True)
        )
        return replace(self, max_model_len=max_model_len, layers=tuple(layers))
