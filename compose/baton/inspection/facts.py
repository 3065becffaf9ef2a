"""What the files of a checkpoint say, each looked at by itself, so that one that is broken hides none of the others.

Reads JSON, the tokenizer and the headers of weight files; no weights, and no device is touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from baton.errors import BatonError
from baton.generation_defaults import generation_defaults
from baton.inspection.words import Words, read_words
from baton.model_config import read_config
from baton.model_folder import find_model, read_json
from baton.models.checkpoint import INDEX, TensorEntry, read_entries
from baton.models.config import read_spec
from baton.models.dense import DENSE
from baton.models.loader import outline, resolve_dtype
from baton.models.spec import ModelSpec
from baton.models.weights import match
from baton.pooling_files import PoolingSetup, read_pooling


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """What the headers of weight files say."""

    num_files: int
    num_tensors: int
    nbytes: int
    dtypes: tuple[str, ...]
    """Most bytes first."""


@dataclass(slots=True)
class Facts:
    """One checkpoint."""

    name: str
    folder: Path
    raw: Mapping[str, Any] = field(default_factory=dict)
    """config.json."""
    problems: list[str] = field(default_factory=list)
    """What keeps Baton from serving it, each with the way out."""
    notes: list[str] = field(default_factory=list)
    """What is served, but not as one may expect."""
    pooling: PoolingSetup | None = None
    spec: ModelSpec | None = None
    num_parameters: int | None = None
    weights: StoredWeights | None = None
    words: Words | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_served(self) -> bool:
        """Whether nothing keeps Baton from serving it."""
        return not self.problems

    @property
    def quantization(self) -> str | None:
        """What config.json calls the form of quantized weights; None: they are not."""
        for name in ("quantization_config", "compression_config"):
            if isinstance(value := self.raw.get(name), Mapping):
                return str(value.get("quant_method", "unnamed"))
        return None

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Note what Baton refuses on purpose as one line, once."""
        try:
            yield
        except BatonError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))


def look(
    name: str, revision: str | None = None, overrides: Mapping[str, Any] | None = None, model_impl: str = "auto"
) -> Facts:
    """Look at a folder, or at what a hub model has beside its weights, with `overrides` over its config.json."""
    facts = Facts(name, Path(name).expanduser())
    with facts.attempt():
        facts.folder = find_model(name, revision)
        _look_at_config(facts, overrides or {}, model_impl)
    if not facts.raw:
        return facts
    with facts.attempt():
        _look_at_weights(facts)
    with facts.attempt():
        facts.words = read_words(facts.folder, () if facts.spec is None else facts.spec.eos_token_ids)
    with facts.attempt():
        facts.sampling = generation_defaults(facts.folder)
    if facts.words is not None and facts.spec is not None:
        _compare(facts, facts.words, facts.spec)
    return facts


def _look_at_config(facts: Facts, overrides: Mapping[str, Any], model_impl: str) -> None:
    if (facts.folder / "config.json").is_file():
        facts.raw = read_config(facts.folder, overrides)
        facts.pooling = read_pooling(facts.folder, overrides=overrides)
    facts.spec = spec = read_spec(facts.folder, facts.pooling, overrides=overrides, model_impl=model_impl)
    dense = outline(replace(spec, weight_form=DENSE), resolve_dtype(None, spec))
    facts.num_parameters = sum(tensor.numel() for tensor, _ in dense.parameters.fills)


def _look_at_weights(facts: Facts) -> None:
    """Read the headers, and hold them against config.json."""
    folder = facts.folder
    if not Path(facts.name).expanduser().is_dir() and not any(folder.glob("*.safetensors")):
        metadata = read_json(folder / INDEX).get("metadata") if (folder / INDEX).is_file() else None
        nbytes = metadata.get("total_size") if isinstance(metadata, dict) else None
        size = f"; its index says {nbytes / 2**30:.2f} GiB" if isinstance(nbytes, int) else ""
        facts.notes.append(f"the weights are not fetched, so they were not looked at{size}")
        return
    entries = read_entries(folder)
    facts.weights = _stored(entries)
    if facts.spec is not None:
        match(outline(facts.spec, resolve_dtype(None, facts.spec)).parameters, entries, str(folder))


def _stored(entries: Mapping[str, TensorEntry]) -> StoredWeights:
    by_dtype: dict[str, int] = {}
    for entry in entries.values():
        dtype = str(entry.dtype).removeprefix("torch.")
        by_dtype[dtype] = by_dtype.get(dtype, 0) + entry.nbytes
    return StoredWeights(
        num_files=len({entry.file for entry in entries.values()}),
        num_tensors=len(entries),
        nbytes=sum(by_dtype.values()),
        dtypes=tuple(sorted(by_dtype, key=lambda dtype: -by_dtype[dtype])),
    )


def _compare(facts: Facts, words: Words, spec: ModelSpec) -> None:
    """Hold the tokenizer against the model."""
    with facts.attempt():
        words.tokenizer.check_fits(spec.vocab_size)
    if facts.pooling is not None:
        return
    if words.template is None:
        facts.notes.append("no chat template: plain completions work, chat needs --chat-template")
    if not words.end_token_ids:
        facts.notes.append("no file says which token ends an answer: answers run to max_tokens")
