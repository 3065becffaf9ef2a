"""The network in training: Llama's, over packed rows, with parameter names that `transformers` reads.

It knows only training: no cache, no generation. Attention stays inside a document, on a GPU through the
variable-length flash kernel, elsewhere through a dense mask (slow, for trying things out).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from demo.corpus import IGNORED
from demo.tokenizer import MAX_LEN, VOCAB_SIZE
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """The sizes of the network; the defaults make 14.2 million parameters."""

    hidden_size: int = 384
    num_layers: int = 8
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 1024
    vocab_size: int = VOCAB_SIZE
    max_len: int = MAX_LEN
    rope_theta: float = 100_000.0
    norm_eps: float = 1e-5


class Layout(NamedTuple):
    """Where documents begin: offsets into all tokens of a batch, padded at the end with the total."""

    documents: Tensor  # [rows, len]
    offsets: Tensor  # [max documents + 1], int32


class Norm(nn.Module):
    """Root mean square normalisation, in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps).to(x.dtype)


def rotation(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding, each [length, head_dim / 2]."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), shape.rope_theta**-exponents)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate halves of each head: x is [rows, len, heads, head_dim]."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden_size, shape.num_heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, shape.num_kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, shape.num_kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.num_heads * shape.head_dim, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
        rows, length, _ = x.shape
        shape, group = self.shape, self.shape.num_heads // self.shape.num_kv_heads
        q = rotate(self.q_proj(x).view(rows, length, shape.num_heads, shape.head_dim), cos, sin)
        k = rotate(self.k_proj(x).view(rows, length, shape.num_kv_heads, shape.head_dim), cos, sin)
        v = self.v_proj(x).view(rows, length, shape.num_kv_heads, shape.head_dim)
        k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
        out = flash_attend(q, k, v, layout) if x.is_cuda else dense_attend(q, k, v, layout)
        return self.o_proj(out.reshape(rows, length, -1))  # type: ignore[no-any-return]


def flash_attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Causal attention inside documents; all are [rows, len, heads, head_dim] in 16 bits."""
    rows, length = q.shape[:2]
    flat = [x.flatten(0, 1) for x in (q, k, v)]  # [tokens, heads, head_dim]
    offsets = layout.offsets
    out = torch.ops.aten._flash_attention_forward(
        *flat, offsets, offsets, length, length, 0.0, True, False, scale=1 / math.sqrt(q.shape[-1])
    )[0]
    return out.view(rows, length, *out.shape[1:])  # type: ignore[no-any-return]


def dense_attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """The same with a mask of [rows, len, len]."""
    same = layout.documents[:, :, None] == layout.documents[:, None, :]
    mask = same.tril()[:, None]
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return out.transpose(1, 2)


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden_size, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, layout)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Network(nn.Module):
    """The whole model; the output projection is the embedding's transpose."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.cos: Tensor
        self.sin: Tensor
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = Norm(shape.hidden_size, shape.norm_eps)
        cos, sin = rotation(shape, shape.max_len)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Normal weights; what writes into the residual stream starts smaller, by the depth."""
        for name, weight in self.named_parameters():
            if weight.ndim < 2:
                continue
            is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
            scale = 0.02 if "embed" in name else 1 / math.sqrt(weight.shape[1])
            nn.init.normal_(weight, std=scale / (math.sqrt(2 * self.shape.num_layers) if is_output else 1))

    def logits(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Scores of every next token, [rows, len, vocab]."""
        x = self.embed_tokens(tokens)
        length = tokens.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:length], self.sin[:length], layout)
        return F.linear(self.norm(x), self.embed_tokens.weight)

    def forward(self, tokens: Tensor, targets: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return the mean loss over what is taught, and where the likeliest token is the target."""
        logits = self.logits(tokens, layout)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)
        return loss, logits.argmax(-1) == targets

    def checkpoint(self) -> dict[str, Tensor]:
        """The weights in bfloat16 under the names of `LlamaForCausalLM`."""
        return {
            f"model.{name}": weight.detach().to("cpu", torch.bfloat16).contiguous()
            for name, weight in self.named_parameters()
        }

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take the weights of a checkpoint."""
        self.load_state_dict({name.removeprefix("model."): weight for name, weight in weights.items()})

    def config(self, eos_token_id: int, bos_token_id: int, pad_token_id: int) -> dict[str, object]:
        """What `transformers` reads as config.json."""
        shape = self.shape
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
            "head_dim": shape.head_dim,
            "hidden_act": "silu",
            "hidden_size": shape.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": shape.intermediate_size,
            "max_position_embeddings": shape.max_len,
            "mlp_bias": False,
            "num_attention_heads": shape.num_heads,
            "num_hidden_layers": shape.num_layers,
            "num_key_value_heads": shape.num_kv_heads,
            "rms_norm_eps": shape.norm_eps,
            "rope_theta": shape.rope_theta,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": shape.vocab_size,
        }
