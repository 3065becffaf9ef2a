"""Weights into a model's parameters: streamed from a checkpoint, or random."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from baton.errors import ModelLoadError
from baton.models.checkpoint import FLOATS, TensorEntry
from baton.models.linear import Fill
from baton.models.parameters import Parameters, Piece, Target
from baton.models.reading import Rows, read_all, rows_of
from baton.progress import Bar

PREFIXES = (
    "model.decoder.",
    "decoder.",
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "model.",
    "transformer.",
    "gpt_neox.",
    "bert.",
    "roberta.",
)
# Buffers that old versions of transformers saved: frequencies of rotary embeddings, causal masks of GPT-2 and GPT-NeoX.
IGNORED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.(bias|masked_bias))$")
_NEW = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_NEW_NAMES = re.compile("|".join(map(re.escape, _NEW)))  # what TensorFlow called them
OTHER_MODEL = "Weights and config.json belong to different models: fetch both from one revision."


def fill_dummy(parameters: Parameters, std: float, seed: int) -> None:
    """Fill with random weights, on the device: normal matrices, norms that scale nothing, biases of 0."""
    generator = torch.Generator(parameters.device).manual_seed(seed)
    for tensor, fill in parameters.fills:
        _fill(tensor, fill, std, generator)


def _fill(tensor: Tensor, fill: Fill, std: float, generator: torch.Generator | None) -> None:
    if callable(fill):
        fill(tensor, std, generator)
    elif fill == "normal":
        tensor.normal_(0.0, std, generator=generator)
    else:
        tensor.fill_(1.0 if fill == "ones" else 0.0)


# ------------------------------------------------------------------------------------------------------------
# Which tensor goes where


def match(parameters: Parameters, entries: Mapping[str, TensorEntry], source: str) -> dict[str, TensorEntry]:
    """Find the checkpoint's tensor for each target, and check that none is missing, strange or of a wrong shape.

    Targets of a layout that the checkpoint does not have are dropped. A tensor that repeats a tied one is found too, under its own name.

    Raises:
        ModelLoadError: the tensors are not those of the model that config.json describes.
    """
    known = parameters.targets.keys() | parameters.tied.keys()
    unused = tuple(parameters.unused)
    found: dict[str, TensorEntry] = {}
    strange = []
    for entry in entries.values():
        name = _model_name(_NEW_NAMES.sub(lambda old: _NEW[old[0]], entry.name), known)
        if name is None and unused and any(each.startswith(unused) for each in _stripped(entry.name)):
            continue
        if name is not None:
            found[name] = entry
        elif not IGNORED.search(entry.name):
            strange.append(entry.name)
    for name, original in parameters.tied.items():
        if original not in found and name in found:
            found[original] = found.pop(name)
    missing = {name for name, target in parameters.targets.items() if target.fill is None} - found.keys()
    for layouts in parameters.alternatives:
        # The layout that the checkpoint has more of is the one that it is meant to have.
        unwanted = min(layouts, key=lambda names: len(names & found.keys()))
        missing -= unwanted
        strange.extend(sorted(found.pop(name).name for name in unwanted & found.keys()))
        for name in unwanted:
            del parameters.targets[name]
    _refuse_missing(sorted(missing), source)
    if strange:
        raise ModelLoadError(
            f"{source}: the checkpoint has {_listed(strange)}, which config.json does not describe. {OTHER_MODEL}"
        )
    for name, entry in found.items():
        target = parameters.target(name)
        _check(entry, target)
        if target.is_scale:
            found[name] = replace(entry, shape=target.shape)
    return found


def _check(entry: TensorEntry, target: Target) -> None:
    same = entry.shape == target.shape
    if target.is_scale:
        same = _without_ones(entry.shape) == _without_ones(target.shape)
    if target.is_text:
        same = len(entry.shape) == 1 and entry.shape[0] <= target.shape[0]
    if not same:
        raise ModelLoadError(
            f"{entry.file}: tensor {entry.name!r} has shape {list(entry.shape)}, and config.json makes it "
            f"{list(target.shape)}. {OTHER_MODEL}"
        )
    if entry.dtype not in (FLOATS.values() if target.dtype is None else (target.dtype,)):
        wanted = "a float" if target.dtype is None else str(target.dtype)
        raise ModelLoadError(
            f"{entry.file}: tensor {entry.name!r} has dtype {entry.dtype}, and config.json makes it {wanted}. "
            f"{OTHER_MODEL}"
        )


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    return [length for length in shape if length != 1]


def _model_name(name: str, known: Container[str]) -> str | None:
    """Strip the prefix that a version of the checkpoint puts before the model's own names."""
    return next((candidate for candidate in _stripped(name) if candidate in known), None)


def _stripped(name: str) -> Iterator[str]:
    return (name.removeprefix(prefix) for prefix in ("", *PREFIXES))


def _refuse_missing(missing: list[str], source: str) -> None:
    if missing == ["lm_head.weight"]:
        raise ModelLoadError(
            f"{source}: the checkpoint lacks lm_head.weight, and config.json has tie_word_embeddings=false. "
            "Fetch the checkpoint again; if the model's output is its embedding, set tie_word_embeddings to true."
        )
    if missing:
        raise ModelLoadError(
            f"{source}: the checkpoint lacks {_listed(missing)}, which config.json describes. Fetch the checkpoint again, "
            "weights and config.json of one revision."
        )


def _listed(names: list[str]) -> str:
    count = f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
    named = _by_layer(names)
    return f"{count} ({', '.join(named[:3])}{', ...' if len(named) > 3 else ''})"


_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\..*")


def _by_layer(names: list[str]) -> list[str]:
    """Name the experts of a layer once: a lost file takes hundreds of them."""
    lost: dict[str, set[int]] = {}
    for match in filter(None, map(_EXPERT.fullmatch, names)):
        lost.setdefault(match[1], set()).add(int(match[2]))
    if sum(map(len, lost.values())) < 2:
        return names
    layers = [f"{layer}.{{{','.join(map(str, sorted(numbers)))}}}" for layer, numbers in lost.items()]
    return layers + [name for name in names if not _EXPERT.fullmatch(name)]


# ------------------------------------------------------------------------------------------------------------
# Reading


def load_weights(parameters: Parameters, found: Mapping[str, TensorEntry], progress: bool) -> None:
    """Read all tensors that `match` found, or this rank's parts of them, in the order of their bytes, by many threads.

    Raises:
        ModelLoadError: a file is damaged or cannot be read, or two tensors that config.json ties differ.
    """
    for target in parameters.targets.values():
        if target.fill is not None or target.is_text:  # the checkpoint may lack it, or a part of it
            for piece in target.pieces:
                _fill(piece.tensor, target.fill or "zeros", 1.0, None)
    # A repeat of a tied tensor is compared, so it comes when the tensor itself is there.
    whole, repeats = (
        [
            rows
            for name, entry in found.items()
            if (name in parameters.tied) == is_repeat
            for piece in parameters.target(name).pieces
            for rows in rows_of(entry, _within(piece, entry, parameters.target(name)))
        ]
        for is_repeat in (False, True)
    )
    form = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "disable": not progress}
    with Bar(total=sum(rows.nbytes for rows in (*whole, *repeats)), desc="Loading weights", **form) as bar:
        read_all(whole, _put, bar.update)
        names = {found[name].name: original for name, original in parameters.tied.items() if name in found}
        read_all(repeats, lambda stored, rows: _compare(stored, rows, names[rows.entry.name]), bar.update, always=True)
    if parameters.device.type == "cuda":
        torch.cuda.synchronize(parameters.device)


def _within(piece: Piece, entry: TensorEntry, target: Target) -> Piece:
    """Return the part of a piece that a text takes; of others all."""
    return Piece(piece.tensor[: entry.shape[0]], (range(entry.shape[0]),)) if target.is_text else piece


def _put(stored: Tensor, rows: Rows) -> None:
    if rows.encoded is None:
        _copy(stored, rows.target)
    else:
        rows.encoded.write(stored)


def _compare(stored: Tensor, rows: Rows, original: str) -> None:
    if not torch.equal(stored.to(rows.target.dtype), rows.target):
        raise ModelLoadError(
            f"{rows.entry.file}: {rows.entry.name} differs from {original}, and config.json has "
            "tie_word_embeddings=true. Set it to false in config.json if the model has an output layer of its own."
        )


def _copy(rows: Tensor, target: Tensor) -> None:
    if rows.dim() == 2 and target.stride(0) == 1:
        # Transposed beforehand: on a CPU a copy between two orders of dimensions is several times slower.
        target.t().copy_(rows.t().contiguous())
    else:
        target.copy_(rows)
