"""Multi-head latent attention (DeepSeek): what is cached of a token is one vector, which every head reads.

The vector is the compressed K and V after their norm, and a key of few dimensions that turns with the position. The matrix
that would make a head's keys of it is multiplied into the head's query instead, and the one of its values into what it gathers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baton.errors import ModelLoadError
from baton.kernels.latent_attention import latent_attention, latent_write
from baton.kernels.rms_norm import rms_norm
from baton.kernels.rotary import rotate_reference
from baton.models.dense import Dense
from baton.models.layers import scaled
from baton.models.linear import ByModule
from baton.models.online import Online
from baton.models.parameters import Parameters
from baton.models.spec import ModelSpec
from baton.models.step import Step

_EPS = 1e-6
"""Of the norms of what is compressed, whatever rms_norm_eps says, as in transformers."""


class LatentAttention:
    """Compress to one vector a token, put it into the cache, attend over the vectors, project back.

    Args:
        name: of the module in the checkpoint.
    """

    def __init__(self, parameters: Parameters, model: ModelSpec, layer: int, name: str) -> None:
        spec, hidden_size = model.layers[layer].attention, model.hidden_size
        latent, rope = spec.latent, spec.rope
        assert latent is not None
        assert rope is not None
        heads = parameters.share.of(spec.num_heads, f"{name}: heads")
        self.rank, self.key_dim, self.rope_dim = latent.rank, latent.key_dim, rope.dim
        down, q_module, q_inputs = [(f"{name}.kv_a_proj_with_mqa", spec.head_dim)], "q_proj", hidden_size
        self.q_norm = None
        if latent.q_rank is not None:
            down, q_module, q_inputs = [(f"{name}.q_a_proj", latent.q_rank), *down], "q_b_proj", latent.q_rank
            self.q_norm = parameters.tensor(f"{name}.q_a_layernorm.weight", latent.q_rank, fill="ones")
        self.widths = [width for _, width in down]
        self.down = parameters.linear(down, hidden_size, bias=spec.qkv_bias)
        q_size = spec.num_heads * (latent.key_dim + rope.dim)
        self.q = parameters.linear([(f"{name}.{q_module}", q_size)], q_inputs, split="out")
        self.kv_norm = parameters.tensor(f"{name}.kv_a_layernorm.weight", latent.rank, fill="ones")
        up = _up(parameters, f"{name}.kv_b_proj", spec.num_heads * (latent.key_dim + latent.value_dim), latent.rank)
        up = up.view(spec.num_heads, -1, latent.rank)[heads.start : heads.stop]
        self.of_keys, self.of_values = up.split_with_sizes([latent.key_dim, latent.value_dim], 1)  # [heads, dim, rank]
        values = spec.num_heads * latent.value_dim
        out = parameters.linear([(f"{name}.o_proj", hidden_size)], values, bias=spec.out_bias, split="in")
        self.out = scaled(out, model.residual_scale)
        self.rope_table = parameters.rotations(rope, model.max_model_len)
        self.is_interleaved = rope.interleaved
        self.scale = spec.scale
        self.layer = layer

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        cache, batch = step.caches[self.layer], step.batches[self.layer]
        *low, kv = self.down(x, step).split_with_sizes(self.widths, 1)
        if self.q_norm is not None:
            x = rms_norm(low[0], self.q_norm, _EPS)
        compressed, turning = kv.split_with_sizes([self.rank, self.rope_dim], 1)
        compressed = rms_norm(compressed, self.kv_norm, _EPS)
        latent_write(torch.cat((compressed, self._turn(turning[:, None], step)[:, 0]), 1), cache, batch.slots)
        q = self.q(x, step).view(len(x), -1, self.key_dim + self.rope_dim)
        q, turning = q.split_with_sizes([self.key_dim, self.rope_dim], 2)
        absorbed = torch.bmm(q.transpose(0, 1), self.of_keys).transpose(0, 1)  # [tokens, heads, rank]
        q = torch.cat((absorbed, self._turn(turning, step)), 2)
        gathered = latent_attention(q, cache, batch, scale=self.scale, rank=self.rank)
        values = torch.bmm(gathered.transpose(0, 1), self.of_values.transpose(1, 2))  # [heads, tokens, value_dim]
        return self.out(values.transpose(0, 1).flatten(1), step)

    def _turn(self, x: Tensor, step: Step) -> Tensor:
        return rotate_reference(x, self.rope_table, step.positions, self.is_interleaved)


def _up(parameters: Parameters, module: str, num_outputs: int, rank: int) -> Tensor:
    """Make the weight that turns compressed K and V into those of heads, which is kept as it is: [outputs, rank].

    Raises:
        ModelLoadError: the checkpoint has it quantized.
    """
    form = parameters.form
    form = form.of([module]) if isinstance(form, ByModule) else form
    if not isinstance(form, Dense | Online):
        raise ModelLoadError(
            f"{module} is quantized, and it is taken apart, which needs its plain weight. Take the unquantized checkpoint "
            "of this model; --quantization fp8 makes the other weights small while they are read."
        )
    return parameters.tensor(f"{module}.weight", num_outputs, rank)
