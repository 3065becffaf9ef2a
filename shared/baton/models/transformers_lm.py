"""Any decoder that transformers defines, on Baton's paged attention: the way of models that have no file here.

transformers computes all but attention, with weights that Baton's loading checks and reads. Slower than a file of the
family: norms, rotations and activations are not fused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from baton.errors import ModelLoadError
from baton.kernels.kv_write import kv_write
from baton.models.causal_lm import CausalLM
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.linear import Fill, Linear
from baton.models.ops import INVARIANT
from baton.models.parameters import Parameters
from baton.models.spec import LayerSpec, MLPSpec, ModelSpec
from baton.models.step import Step
from baton.models.transformers_model import PAGED, Described, attention_asked, build_outline, give_attention
from baton.models.weights import PREFIXES


class TransformersLM(CausalLM):
    """A model of transformers; `own` describes it."""

    own: Described

    def __init__(self, spec: ModelSpec, parameters: Parameters) -> None:
        super().__init__(spec, parameters)
        if parameters.ops is INVARIANT:
            raise self.own.refusal(
                "deterministic=True needs operations of Baton's own in every layer", "Leave --deterministic out."
            )
        self._step: Step | None = None
        self._model = build_outline(self.own, self.dtype, PAGED)
        self._body = self._model.base_model
        self._take_parameters()
        self._make_buffers()
        give_attention(self._model, self._attend)
        self._take_output()
        if self.device.type == "meta":
            self._try_logits()

    def forward(self, step: Step) -> Tensor:
        self._step = step
        made = self._body(input_ids=step.token_ids[None], position_ids=step.positions[None], use_cache=False)
        self._step = None
        hidden: Tensor = made.last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """As `CausalLM.logits`: by transformers' own class, so that it scales and caps them as it does."""
        logits: Tensor = self._model(inputs_embeds=hidden[None], use_cache=False).logits[0]
        return logits.float()

    def _attend(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: object, said: Mapping[str, Any]
    ) -> Tensor:
        layer, step = module.layer_idx, self._step
        assert isinstance(layer, int)
        assert step is not None
        spec, cache, batch = self.spec.layers[layer].attention, step.caches[layer], step.batches[layer]
        # [tokens, heads, head_dim]; some models rotate in fp32
        q, k, v = (each[0].transpose(0, 1).contiguous().to(self.dtype) for each in (q, k, v))
        kv_write(k, v, cache, batch.slots)
        attended = self.parameters.ops.attention(
            q, cache, batch, scale=spec.scale, window=spec.window, soft_cap=spec.soft_cap
        )
        return attended[None]

    def _take_parameters(self) -> None:
        """Put parameters of Baton's loading in the place of the model's."""
        plan = self._model._get_dtype_plan(self.dtype)
        taken: dict[int, tuple[str, nn.Parameter]] = {}  # by what it replaces: tied ones are one
        for module, leaf, stored, old in _stored(self._model):
            name = _short(stored)
            if id(old) in taken:
                self.parameters.tied[name], new = taken[id(old)]
            else:
                dtype = torch.float32 if any(part in stored for part in plan) else old.dtype
                if not dtype.is_floating_point:
                    raise self.own.refusal(f"its tensor {stored} is of {dtype}")
                tensor = self.parameters.tensor(name, *old.shape, fill=_fill(name, old), dtype=dtype)
                new = nn.Parameter(tensor, requires_grad=False)
                new._is_hf_initialized = True  # type: ignore[attr-defined]
                taken[id(old)] = name, new
            if leaf in module._parameters:
                module._parameters[leaf] = new
            else:
                module._buffers[leaf] = new.data

    def _make_buffers(self) -> None:
        """Compute what the model keeps and no checkpoint has, such as frequencies."""
        if self.device.type == "meta":
            return
        kept = [
            (module, name)
            for module in self._model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and name in module._non_persistent_buffers_set
        ]
        for module, name in kept:
            old = module._buffers[name]
            nothing = float("nan") if old.is_floating_point() else 0
            module._buffers[name] = torch.full_like(old, nothing, device=self.device)
            self.parameters.nbytes += module._buffers[name].nbytes
        for module in self._model.modules():
            module._is_hf_initialized = False
        self._model.initialize_weights()
        for module, name in kept:
            made = module._buffers[name]
            if not made.is_floating_point() or made.isnan().any():
                raise self.own.refusal(f"transformers does not say what its {name} holds")
        for module in self._model.modules():
            for name, value in vars(module).items():
                if isinstance(value, Tensor) and value.is_meta:
                    raise self.own.refusal(f"{type(module).__name__}.{name} is a tensor outside its parameters")

    def _take_output(self) -> None:
        """Have the output layer leave its sums in fp32, and the body's place give back what it gets."""
        output = self._model.get_output_embeddings()
        names = [name for name, module in self._model.named_modules() if module is output]
        if type(output) is not nn.Linear or len(names) != 1:
            raise self.own.refusal("its output is not one linear layer")
        self.lm_head = self.parameters.linear_of(output.weight.data, None if output.bias is None else output.bias.data)
        self._model.set_submodule(names[0], _Output(self.lm_head))
        setattr(self._model, self._model.base_model_prefix, _Given())

    def _try_logits(self) -> None:
        try:
            with torch.no_grad():
                self.logits(torch.empty((1, self.spec.hidden_size), dtype=self.dtype, device="meta"))
        except Exception as error:
            raise self.own.refusal(f"its logits are not made of its hidden states alone ({error})") from error


class _Output(nn.Module):
    """The output layer."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self._linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self._linear.in_fp32(x[0])[None]


class _Given(nn.Module):
    """Stands for a body whose hidden states are there already."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


def _stored(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, Tensor]]:
    """Yield what a checkpoint has: module, attribute, name in the checkpoint, tensor."""
    for path, module in model.named_modules():
        at = f"{path}." if path else ""
        for leaf, parameter in list(module._parameters.items()):
            if parameter is not None:
                yield module, leaf, f"{at}{leaf}", parameter
        for leaf, buffer in list(module._buffers.items()):
            if buffer is not None and leaf not in module._non_persistent_buffers_set:
                yield module, leaf, f"{at}{leaf}", buffer


def _short(name: str) -> str:
    """Strip the prefix that checkpoints may leave out."""
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def _fill(name: str, tensor: Tensor) -> Fill:
    if name.endswith("bias"):
        return "zeros"
    return "normal" if tensor.dim() > 1 else "ones"


def read(fields: Fields) -> ModelSpec:
    """Read config.json, as transformers does, and ask the model what attention it needs."""
    for name in ("quantization_config", "compression_config"):
        if fields.raw.get(name):
            raise fields.refusal(
                name, fields.raw[name], "transformers' definitions run unquantized", "Take the unquantized checkpoint."
            )
    described = Described.of(fields.raw, fields.source)
    attentions, config = attention_asked(described, torch.float32)
    max_model_len = getattr(config, "max_position_embeddings", None)
    if not isinstance(max_model_len, int) or max_model_len < 1:
        raise described.refusal("config.json does not say max_position_embeddings, its longest context")
    width = getattr(config, "intermediate_size", None)
    mlp = MLPSpec(width if isinstance(width, int) else 4 * config.hidden_size, "silu")
    return ModelSpec(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        layers=tuple(LayerSpec(attention, mlp) for attention in attentions),
        max_model_len=max_model_len,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=bool(config.tie_word_embeddings),
        norm="layer",  # transformers' own operations, none of Baton's kernels
        initializer_range=fields.number("initializer_range", 0.02),
        own=described,
    )


def refuse_quantization(quantization: str | None, source: str) -> None:
    """Refuse to quantize while reading."""
    if quantization is not None:
        raise ModelLoadError(
            f"{source}: quantization={quantization!r} is not served with a model that runs by transformers' definition "
            "(--model-impl transformers, or a family that has no file of Baton's). Leave --quantization out."
        )


FAMILY = Family("transformers", (), read, TransformersLM)
