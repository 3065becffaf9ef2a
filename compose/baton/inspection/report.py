"""What `baton inspect` tells: lines for a person, or one JSON object for a program."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from baton.config import EngineConfig
from baton.engine.memory import GIB
from baton.inspection.facts import Facts, look
from baton.inspection.room import Device, Room
from baton.models.transformers_model import Described

CONTEXTS = (1024, 8192, 32768)
"""Tokens of a stream that is counted, beside the longest."""
_TOLD_FILES = ("adapter_config.json", "modules.json", "params.json", "preprocessor_config.json", "tekken.json")


def inspect(engine: EngineConfig, *, gpu: str | None, context: int | None, as_json: bool) -> int:
    """Tell all of it; return the command's status: 1 where the model is not served, or does not fit the device.

    Raises:
        ConfigError: the table has no such device.
    """
    device = Device.of(gpu)
    facts = look(str(engine.model), engine.revision, engine.overrides, engine.model_impl)
    room = None
    if facts.spec is not None:
        with facts.attempt():
            room = Room.of(facts.spec, device, engine.max_model_len)
    if as_json:
        print(json.dumps(as_object(facts, room, context), indent=1))
    else:
        print("\n".join(lines(facts, room, context)))
    return 0 if facts.is_served and (room is None or room.fits) else 1


def lines(facts: Facts, room: Room | None, context: int | None) -> Iterator[str]:
    """Write for a person."""
    yield facts.name
    for subject, text in (*_model(facts), *_words(facts)):
        yield f"  {subject:<11} {text}"
    for note in facts.notes:
        yield f"! {'note':<11} {note}"
    if room is not None:
        yield ""
        yield f"on {room.device.name}, in {_short(room.dtype)}"
        for subject, text in _room(room, context):
            yield f"  {subject:<11} {text}"
    yield ""
    for problem in facts.problems:
        yield f"X not served: {problem}"
    if not facts.problems:
        yield f"served, as {_form(facts)}." if room is None or room.fits else f"X does not fit: {_too_large(room)}"


def as_object(facts: Facts, room: Room | None, context: int | None) -> dict[str, Any]:
    """Return what a program reads."""
    spec, words, weights = facts.spec, facts.words, facts.weights
    whole: dict[str, Any] = {
        "model": facts.name,
        "served": facts.is_served,
        "problems": facts.problems,
        "notes": facts.notes,
        "form": _form(facts),
        **_shape(facts),
        "quantization": facts.quantization,
        "parameters": facts.num_parameters,
        "sampling": dict(facts.sampling),
        "files": _special_files(facts),
    }
    if spec is not None:
        whole["rope"] = _rope(facts)
        whole["windows"] = sorted({window for window in spec.windows if window is not None})
    if weights is not None:
        names = ("num_files", "num_tensors", "nbytes", "dtypes")
        whole["weights"] = {name: getattr(weights, name) for name in names}
    if words is not None:
        whole["tokenizer"] = {
            "kind": words.kind,
            "vocab_size": words.vocab_size,
            "end_token_ids": words.end_token_ids,
            "ends": words.ends,
            "chat_template": words.template,
            "chat_templates": words.template_names,
            "tool_call_parser": words.tool_parser,
            "reasoning_parser": words.reasoning_parser,
        }
    if room is not None:
        whole["room"] = {
            "device": room.device.name,
            "dtype": _short(room.dtype),
            "fits": room.fits,
            "memory_nbytes": room.device.memory_nbytes,
            "weights_nbytes": room.weights_nbytes,
            "overhead_nbytes": room.overhead_nbytes,
            "kv_nbytes": room.kv_nbytes,
            "kv_token_nbytes": room.kv_token_nbytes,
            "max_model_len": room.max_model_len,
            "longest_that_fits": room.longest(),
            "streams": {str(length): room.streams(length) for length in _contexts(room, context)},
        }
    return whole


def _shape(facts: Facts) -> dict[str, Any]:
    """What config.json says of the model's shape: as it was understood, else as it is written."""
    raw, spec = facts.raw, facts.spec
    shape: dict[str, Any] = {"model_type": raw.get("model_type"), "architectures": raw.get("architectures")}
    if spec is not None:
        names = ("family", "dtype", "num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "vocab_size")
        impl = {"model_impl": "transformers" if _is_foreign(facts) else "baton"}
        return shape | impl | {name: getattr(spec, name) for name in names} | {"max_model_len": spec.max_model_len}
    written = {
        "num_layers": ("num_hidden_layers", "n_layer"),
        "hidden_size": ("hidden_size", "n_embd"),
        "num_heads": ("num_attention_heads", "n_head"),
        "vocab_size": ("vocab_size",),
        "max_model_len": ("max_position_embeddings", "n_positions"),
    }
    for name, theirs in written.items():
        shape[name] = next((raw[each] for each in theirs if raw.get(each) is not None), None)
    return shape


def _model(facts: Facts) -> Iterator[tuple[str, str]]:
    if not facts.raw:
        return
    shape = _shape(facts)
    named = shape["architectures"]
    architecture = ", ".join(map(str, named)) if isinstance(named, list) else str(named)
    yield "model", f"{architecture} (model_type {shape['model_type']})"
    if _is_foreign(facts):
        yield "run by", "transformers' definition, on Baton's attention (model_impl transformers)"
    if facts.num_parameters is not None:
        yield "parameters", f"{_count(facts.num_parameters)}, in {shape['dtype']}"
    if facts.quantization is not None:
        yield "quantized", facts.quantization
    if facts.weights is not None:
        weights = facts.weights
        dtypes, files = ", ".join(weights.dtypes), "file" if weights.num_files == 1 else "files"
        yield (
            "weights",
            f"{_size(weights.nbytes)} in {weights.num_files} {files}, {weights.num_tensors:,} tensors, {dtypes}",
        )
    if facts.spec is not None:
        spec = facts.spec
        heads = f"{spec.num_heads} heads of {spec.head_dim}, {spec.num_kv_heads} of KV"
        if spec.latent:
            heads = f"{spec.num_heads} heads over one vector of {spec.head_dim} a token"
        yield "shape", f"{spec.num_layers} layers, {spec.hidden_size} wide, {heads}, vocabulary {spec.vocab_size:,}"
        windows = sorted({window for window in spec.windows if window is not None})
        some = f"; {sum(window is not None for window in spec.windows)} layers see {windows} tokens" if windows else ""
        yield "context", f"{spec.max_model_len:,} tokens, positions {_rope(facts)}{some}"
    if special := _special_files(facts):
        yield "also there", ", ".join(special)


def _words(facts: Facts) -> Iterator[tuple[str, str]]:
    words = facts.words
    if words is None:
        return
    yield "tokenizer", f"{words.kind}, {words.vocab_size:,} tokens"
    if facts.pooling is not None:
        return
    if ends := ", ".join(map(str, words.end_token_ids)):
        yield "ends", f"{ends} ({' '.join(words.ends)})"
    if words.template is not None:
        names = f" ({', '.join(words.template_names)})" if len(words.template_names) > 1 else ""
        yield "template", f"{words.template}{names}"
        yield "parsers", f"tool calls {words.tool_parser}, reasoning {words.reasoning_parser}"
    if facts.sampling:
        yield "sampling", ", ".join(f"{name} {value}" for name, value in facts.sampling.items())


def _room(room: Room, context: int | None) -> Iterator[tuple[str, str]]:
    beside = f", {_size(room.overhead_nbytes)} for steps and CUDA" if room.overhead_nbytes else ""
    yield (
        "memory",
        f"{_size(room.limit_nbytes)} of {_size(room.device.memory_nbytes)} used: weights {_size(room.weights_nbytes)}"
        f"{beside}, KV {_size(room.kv_nbytes)}",
    )
    if room.kv_token_nbytes:
        yield "KV", f"{room.kv_token_nbytes / 1024:g} KiB a token"
        each = ", ".join(f"{room.streams(length):,} of {length:,}" for length in _contexts(room, context))
        yield "streams", f"{each} tokens"


def _contexts(room: Room, asked: int | None) -> list[int]:
    if not room.kv_token_nbytes:
        return []
    if asked is not None:
        return [min(asked, room.max_model_len)]
    return [*(length for length in CONTEXTS if length < room.max_model_len), room.max_model_len]


def _too_large(room: Room) -> str:
    if longest := room.longest():
        return (
            f"one stream of max_model_len={room.max_model_len} takes more KV than the {_size(room.kv_nbytes)} that are left "
            f"on {room.device.name}. Give --max-model-len {longest} or less (or auto), or a larger device."
        )
    needed = room.weights_nbytes + room.overhead_nbytes
    return (
        f"weights and steps take {_size(needed)}, and {_size(room.limit_nbytes)} of {room.device.name} may be used. "
        "Take a larger device, or a smaller or quantized model."
    )


def _form(facts: Facts) -> str:
    if facts.pooling is not None:
        return "a classifier" if facts.pooling.is_classifier else "an embedding model"
    if facts.words is not None and facts.words.template is not None:
        return "a chat model"
    return "a model of plain completions"


def _is_foreign(facts: Facts) -> bool:
    """Whether no family of Baton's own runs it."""
    return facts.spec is not None and isinstance(facts.spec.own, Described)


def _rope(facts: Facts) -> str:
    if facts.spec is not None and not facts.spec.ropes and not _is_foreign(facts):
        return "slopes (ALiBi)" if facts.spec.layers[0].attention.slopes else "learned"
    rope = facts.raw.get("rope_parameters") or facts.raw.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    factor = f" x{rope['factor']:g}" if isinstance(rope.get("factor"), int | float) else ""
    return "rotary" if kind == "default" else f"rotary, {kind}{factor}"


def _special_files(facts: Facts) -> list[str]:
    return [name for name in _TOLD_FILES if (facts.folder / name).is_file()]


def _count(number: int) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,}"


def _size(nbytes: int) -> str:
    return f"{nbytes / GIB:.2f} GiB" if nbytes >= GIB // 10 else f"{nbytes / 2**20:.1f} MiB"


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
