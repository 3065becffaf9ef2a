"""What a checkpoint is for, by its files: to generate, or to pool, and then how. No torch.

Read from config.json (architectures, labels) and from what `sentence-transformers` writes beside it: modules.json, the
folders that it names, sentence_bert_config.json. Where they are silent, what vLLM takes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from baton.errors import ModelLoadError
from baton.model_config import read_config
from baton.model_folder import read_json
from baton.pooling import PoolingFacts, Task

PoolingKind = Literal["LAST", "CLS", "MEAN"]
"""Of a prompt's hidden states: the last token's, the first one's, the mean; vLLM's names."""
Convert = Literal["auto", "none", "embed", "classify"]
Runner = Literal["auto", "generate", "pooling"]
ENCODERS = frozenset(["bert", "roberta", "xlm-roberta", "modernbert"])
"""By model_type."""
_MODES: dict[str, PoolingKind] = {"cls": "CLS", "mean": "MEAN", "lasttoken": "LAST"}
_ACTIVATIONS = {"Identity": "none", "Tanh": "tanh"}
CLASSIFIER = "ForSequenceClassification"


@dataclass(frozen=True, slots=True)
class DenseModule:
    """A linear layer behind the pooling, in a file of its own."""

    folder: str
    num_inputs: int
    num_outputs: int
    bias: bool
    activation: str
    """none or tanh"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingSetup:
    """How a model pools."""

    kind: PoolingKind
    is_classifier: bool = False
    is_encoder: bool = False
    normalize: bool = True
    """Of vectors."""
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    """Of classes."""
    labels: tuple[str, ...] = ()
    dense: tuple[DenseModule, ...] = ()
    max_len: int | None = None
    """Tokens that the model is used with, where that is fewer than its positions."""
    lowercase: bool = False
    is_matryoshka: bool = False
    matryoshka_sizes: tuple[int, ...] = ()

    @property
    def needs_whole(self) -> bool:
        """Whether a prompt must be computed in one step, all of it."""
        return self.is_encoder or self.kind != "LAST"

    def facts(self, hidden_size: int) -> PoolingFacts:
        """Return what callers must know of it."""
        tasks: tuple[Task, ...] = ("classify",) if self.is_classifier else ("embed",)
        if self.needs_whole:
            tasks += ("token_classify",) if self.is_classifier else ("token_embed",)
        size = len(self.labels) if self.is_classifier else self.dense[-1].num_outputs if self.dense else hidden_size
        return PoolingFacts(
            tasks=tasks,
            size=size,
            is_matryoshka=self.is_matryoshka,
            matryoshka_sizes=self.matryoshka_sizes,
            labels=self.labels,
            lowercase=self.lowercase,
            caches_prefixes=not self.needs_whole,
        )


def read_pooling(
    folder: Path, runner: Runner = "auto", convert: Convert = "auto", overrides: Mapping[str, Any] | None = None
) -> PoolingSetup | None:
    """Read how the checkpoint in a folder pools; None: it generates.

    Args:
        runner: pooling or generate, whatever the files say.
        convert: embed, to have a decoder that generates give vectors.
        overrides: values over those of config.json.

    Raises:
        ModelLoadError: the files are damaged, ask for what is not served, or contradict the arguments.
    """
    raw = read_config(folder, overrides)
    names = raw.get("architectures") or [""]
    architecture = str(names[0]) if isinstance(names, list) else ""
    is_encoder = raw.get("model_type") in ENCODERS
    is_classifier = architecture.endswith(CLASSIFIER) or convert == "classify"
    modules = _modules(folder)
    has_no_head = architecture.endswith("Model") and not architecture.endswith("LMHeadModel")
    is_pooling = is_encoder or is_classifier or bool(modules) or has_no_head
    if runner == "generate" or (runner == "auto" and convert == "none"):
        if is_encoder or is_classifier:
            raise ModelLoadError(f"runner='generate' is not valid: {architecture} of {folder} does not generate.")
        return None
    if not is_pooling and convert == "auto" and runner == "auto":
        return None
    kind: PoolingKind = "CLS" if is_encoder else "LAST"
    if is_classifier:
        labels = _labels(raw)
        return PoolingSetup(
            kind="MEAN" if raw.get("classifier_pooling") == "mean" else kind,
            is_classifier=True,
            is_encoder=is_encoder,
            normalize=False,
            activation=_class_activation(raw, len(labels)),
            labels=labels,
        )
    sizes = tuple(int(size) for size in raw.get("matryoshka_dimensions") or ())
    setup: dict[str, Any] = {
        "is_encoder": is_encoder,
        "is_matryoshka": bool(raw.get("is_matryoshka")) or bool(sizes),
        "matryoshka_sizes": sizes,
    }
    if not modules:
        return PoolingSetup(kind=kind, **setup)
    return PoolingSetup(**setup, **_of_modules(folder, modules, kind))


def _of_modules(folder: Path, modules: list[tuple[str, str]], kind: PoolingKind) -> dict[str, Any]:
    """Read the modules that follow the transformer."""
    dense: list[DenseModule] = []
    found: dict[str, Any] = {"kind": kind, "normalize": False}
    for name, path in modules:
        if name == "Pooling":
            found["kind"] = _kind(read_json(folder / path / "config.json"), folder / path)
        elif name == "Dense":
            dense.append(_dense(read_json(folder / path / "config.json"), path, folder))
        elif name == "Normalize":
            found["normalize"] = True
        elif name not in ("Transformer", "Dropout"):
            raise ModelLoadError(
                f"{folder / 'modules.json'} names {name}, which is not served. Baton serves Transformer, Pooling, Dense, "
                "Normalize. Take a model without it."
            )
    bert = folder / "sentence_bert_config.json"
    if bert.is_file():
        settings = read_json(bert)
        found["max_len"] = settings.get("max_seq_length")
        found["lowercase"] = bool(settings.get("do_lower_case"))
    return found | {"dense": tuple(dense)}


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Read modules.json as (class, folder); empty: there is none."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        modules = [(str(each["type"]).rpartition(".")[2], str(each["path"])) for each in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{path} cannot be read ({error!r}). Fetch the file again.") from None
    for _, inside in modules:
        if Path(inside).is_absolute() or ".." in Path(inside).parts:
            raise ModelLoadError(f"{path} names {inside!r}, which is no folder beside it.")
    return modules


def _kind(config: Mapping[str, Any], path: Path) -> PoolingKind:
    modes = [name for name, on in config.items() if name.startswith("pooling_mode_") and on is True]
    short = [name.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens") for name in modes]
    if isinstance(config.get("pooling_mode"), str):  # newer versions write it as one word
        short = [config["pooling_mode"]]
    if len(short) != 1 or short[0] not in _MODES:
        raise ModelLoadError(
            f"{path / 'config.json'} asks for {', '.join(short) or 'no'} pooling; Baton serves one of {', '.join(_MODES)}."
        )
    return _MODES[short[0]]


def _dense(config: Mapping[str, Any], path: str, folder: Path) -> DenseModule:
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise ModelLoadError(
            f"{folder / path / 'config.json'} has activation_function={activation!r}; Baton serves "
            f"{', '.join(_ACTIVATIONS)}."
        )
    try:
        num_inputs, num_outputs = int(config["in_features"]), int(config["out_features"])
    except (KeyError, TypeError, ValueError):
        raise ModelLoadError(f"{folder / path / 'config.json'} lacks in_features or out_features.") from None
    return DenseModule(path, num_inputs, num_outputs, bool(config.get("bias", True)), _ACTIVATIONS[activation])


def _labels(raw: Mapping[str, Any]) -> tuple[str, ...]:
    names = raw.get("id2label")
    if isinstance(names, Mapping) and names:
        return tuple(str(name) for _, name in sorted(names.items(), key=lambda item: int(item[0])))
    count = raw.get("num_labels", 2)
    return tuple(f"LABEL_{i}" for i in range(count if isinstance(count, int) else 2))


def _class_activation(raw: Mapping[str, Any], num_labels: int) -> Literal["softmax", "sigmoid", "none"]:
    """Choose as `sentence-transformers` and vLLM do."""
    own = raw.get("sentence_transformers")
    named = own.get("activation_fn") if isinstance(own, Mapping) else None
    named = str(named or raw.get("sbert_ce_default_activation_function") or "").rpartition(".")[2]
    if named == "Identity" or raw.get("problem_type") == "regression":
        return "none"
    if named == "Sigmoid" or raw.get("problem_type") == "multi_label_classification" or num_labels == 1:
        return "sigmoid"
    return "softmax"
