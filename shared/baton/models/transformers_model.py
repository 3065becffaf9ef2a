"""What transformers defines of a model: its class, built without memory, and the attention that each layer asks for.

transformers is imported when a model is built so, and never for the families that have a file of Baton's. A model is
run once on the meta device, where its masks and its attention are Baton's: what it asks for is then known and not
guessed from config.json, and what Baton's attention does not do is refused before memory is taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from baton.errors import ModelLoadError
from baton.models.spec import AttentionSpec

PAGED = "baton_paged"
"""Baton's attention, as transformers knows it: layers get no mask."""
OUTLINED = "baton_outlined"
"""The same, for the run that only asks: layers get a `Mask`."""
WAY_OUT = "Take a model of a family in docs/models.md."
_CHANGING_ROPES = ("dynamic", "longrope")  # the whole step would turn as its longest context does
_KINDS = ("full_attention", "sliding_attention")
_KNOWN_TENSORS = ("position_ids", "cache_position")  # what attention gets besides, and needs not

Attend = Callable[[nn.Module, Tensor, Tensor, Tensor, object, Mapping[str, Any]], Tensor]
"""What stands in a layer's place of attention: q, k, v [1, heads, tokens, head_dim], the mask, and what else the layer says;
gives [1, tokens, heads, head_dim]."""


@dataclass(frozen=True, slots=True)
class Described:
    """A model as its config.json describes it."""

    config: str  # config.json
    source: str

    @classmethod
    def of(cls, raw: Mapping[str, Any], source: str) -> Described:
        return cls(json.dumps(dict(raw), sort_keys=True), source)

    @property
    def name(self) -> str:
        """What config.json calls the model's class, or its kind."""
        raw = json.loads(self.config)
        return str((raw.get("architectures") or [raw.get("model_type")])[0])

    def refusal(self, reason: str, way_out: str = WAY_OUT) -> ModelLoadError:
        """Make the error for a model that does not run so."""
        return ModelLoadError(f"{self.source}: {self.name} cannot run by transformers' definition: {reason}. {way_out}")


@dataclass(frozen=True, slots=True)
class Mask:
    """What stands for a mask where attention is only asked for."""

    window: int | None


def defines(raw: Mapping[str, Any], architecture: str) -> bool:
    """Whether this is transformers' class of config.json's model_type that generates."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return bool(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(raw.get("model_type"))) == architecture)


def build_outline(described: Described, dtype: torch.dtype, attention: str) -> Any:
    """Build transformers' model on the meta device, its layers' attention still to be given by `give_attention`.

    Raises:
        ModelLoadError: there is no such model, config.json is not valid, or the model is of a kind that does not run so.
    """
    from transformers import AutoModelForCausalLM

    _register()
    config = _config_of(described)
    _refuse_kind(described, config)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
            )
    except Exception as error:
        raise described.refusal(f"it cannot be built ({_said(error)})") from error
    if getattr(model, "_is_stateful", False):
        raise described.refusal("it keeps a state besides keys and values (state-space or recurrent layers)")
    if not model._supports_attention_backend:
        raise described.refusal("its attention does not go through transformers' attention interface")
    if changed := _stored_otherwise(model):
        raise described.refusal(
            f"weights lie in its checkpoints in another form than in the model ({changed}), as those of mixtures of experts"
        )
    if model.base_model is model:
        raise described.refusal("it has no body apart from its output layer")
    return model.eval()


def give_attention(model: nn.Module, attend: Attend) -> None:
    """Put `attend` in the place of attention of every layer."""
    for module in model.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            module.__dict__["attend"] = attend


def attention_asked(described: Described, dtype: torch.dtype) -> tuple[tuple[AttentionSpec, ...], Any]:
    """Find the attention of each layer, and transformers' config.

    Raises:
        ModelLoadError: a layer asks for attention that Baton does not compute, or for none.
    """
    model = build_outline(described, dtype, OUTLINED)
    asked: dict[int, AttentionSpec] = {}

    def note(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: object, said: Mapping[str, Any]) -> Tensor:
        layer = module.layer_idx
        assert isinstance(layer, int)
        if layer in asked:
            raise described.refusal(f"layer {layer} attends more than once")
        asked[layer] = _asked(described, module, q, k, v, mask, said)
        return q.transpose(1, 2)

    give_attention(model, note)
    tokens = torch.zeros((1, 2), dtype=torch.int64, device="meta")
    try:
        with torch.no_grad():
            model.base_model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    except ModelLoadError:
        raise
    except Exception as error:
        raise described.refusal(f"it does not run with attention from outside ({_said(error)})") from error
    num_layers = model.config.num_hidden_layers
    if without := sorted(set(range(num_layers)) - asked.keys()):
        raise described.refusal(
            f"{len(without)} of its {num_layers} layers do not attend through transformers' attention interface "
            f"(the first is layer {without[0]}), as those of state-space models or convolutions"
        )
    attentions = tuple(asked[layer] for layer in sorted(asked))
    if len({(each.num_heads, each.num_kv_heads, each.head_dim) for each in attentions}) > 1:
        raise described.refusal("its layers differ in their heads")
    return attentions, model.config


def _config_of(described: Described) -> Any:
    from transformers import CONFIG_MAPPING

    raw = json.loads(described.config)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise described.refusal(f"the installed transformers has no model_type={model_type!r}")
    try:
        return CONFIG_MAPPING[model_type].from_dict(raw)
    except Exception as error:
        raise described.refusal(f"config.json is not valid ({_said(error)})", "Correct config.json.") from error


def _refuse_kind(described: Described, config: Any) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if config.is_encoder_decoder:
        raise described.refusal("it has an encoder and a decoder")
    if parts := sorted(name for name in ("vision_config", "audio_config") if getattr(config, name, None) is not None):
        raise described.refusal(f"it is multi-modal ({', '.join(parts)})")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise described.refusal("transformers has no class of it that generates text")
    known = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__
    if described.name not in (known, config.model_type):
        raise described.refusal(f"transformers' class of model_type={config.model_type!r} that generates is {known}")
    if others := sorted(set(getattr(config, "layer_types", None) or ()) - set(_KINDS)):
        raise described.refusal(
            f"it has layers of the kind {', '.join(others)}; those that run are {' and '.join(_KINDS)}"
        )
    ropes = getattr(config, "rope_parameters", None) or {}
    for each in (ropes, *(value for value in ropes.values() if isinstance(value, dict))):
        if each.get("rope_type") in _CHANGING_ROPES:
            raise described.refusal(
                f"rope_type={each['rope_type']!r} turns by the length of the whole step, which has many sequences"
            )


def _stored_otherwise(model: Any) -> str | None:
    """Name a weight that transformers makes of others while it loads, if there is one."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    made = (each for each in get_model_conversion_mapping(model, add_legacy=False) if isinstance(each, WeightConverter))
    return next((str(each.target_patterns[0]) for each in made), None)


def _asked(
    described: Described, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: object, said: Mapping[str, Any]
) -> AttentionSpec:
    """Read what a layer asks of attention."""
    if not isinstance(mask, Mask):
        raise described.refusal("it makes attention masks of its own")
    if not getattr(module, "is_causal", True):
        raise described.refusal("its tokens see those after them")
    if q.dim() != 4 or k.shape != v.shape or q.shape[-1] != k.shape[-1]:
        shapes = ", ".join(str(list(each.shape)) for each in (q, k, v))
        raise described.refusal(f"queries, keys and values differ in their heads' width ({shapes})")
    if strange := sorted(n for n, value in said.items() if isinstance(value, Tensor) and n not in _KNOWN_TENSORS):
        raise described.refusal(f"its attention takes {', '.join(strange)}")
    head_dim = q.shape[-1]
    scale = said.get("scaling")
    return AttentionSpec(
        num_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        head_dim=head_dim,
        scale=head_dim**-0.5 if scale is None else float(scale),
        window=mask.window,
        soft_cap=said.get("softcap"),
    )


# ------------------------------------------------------------------------------------------------------------
# What transformers calls


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    for name in (PAGED, OUTLINED):
        AttentionInterface.register(name, _attend)
    AttentionMaskInterface.register(OUTLINED, _mask)  # no masks are made where none is registered


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: object, **said: Any
) -> tuple[Tensor, None]:
    attend: Attend = module.__dict__["attend"]
    return attend(module, query, key, value, attention_mask, said), None


def _mask(*_: Any, mask_function: Callable[..., Any], local_size: int | None = None, **__: Any) -> Mask | None:
    """Say what a mask hides, if that is what comes after a token, or lies beyond a window. None: it is another mask."""
    last = 2 * (local_size or 32) + 1
    keys = torch.arange(last + 3, device="cpu")
    for query in (0, last // 2, last):
        seen = torch.as_tensor(mask_function(0, 0, torch.tensor(query, device="cpu"), keys))
        expected = (keys <= query) & (keys > query - (local_size or last + 1))
        if not torch.equal(seen.expand_as(expected), expected):
            return None
    return Mask(local_size)


def _said(error: Exception) -> str:
    """What an error of transformers says, in one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"
