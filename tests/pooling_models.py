"""Tiny random checkpoints that pool, made with transformers, with the files that `sentence-transformers` writes beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

LAST, CLS, MEAN = ("pooling_mode_lasttoken", "pooling_mode_cls_token", "pooling_mode_mean_tokens")


def save_decoder(folder: Path, vocab_size: int = 300, context: int = 256, **config: Any) -> Path:
    """Save a tiny Qwen3-Embedding: last token, normalized, its vectors may be cut."""
    shape = transformers.Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=context,
        is_matryoshka=True,
        **config,
    )
    _save(transformers.Qwen3ForCausalLM(shape), folder)
    save_modules(folder, LAST)
    return folder


def save_modules(folder: Path, pooling: str, *, normalize: bool = True, max_len: int | None = None) -> None:
    """Write modules.json and what it names."""
    names = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(zip(names, paths, strict=False))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, pooling: True}))
    if max_len is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_len}))


def _save(model: Any, folder: Path, seed: int = 3) -> Any:
    """Draw weights that are far from flat, and save."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(noise * 0.1 + ("norm" in name.lower() and name.endswith("weight")))
            else:
                parameter.copy_(noise * (0.3 if "embed" in name else min(parameter.shape) ** -0.5))
    model.save_pretrained(folder)
    return model.eval()


def last_vectors(folder: Path, prompts: list[list[int]]) -> Tensor:
    """What transformers makes of them with a decoder: the last token's hidden state, normalized."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        states = [model(torch.tensor([prompt])).last_hidden_state[0, -1] for prompt in prompts]
    return torch.nn.functional.normalize(torch.stack(states), dim=-1)


_ENCODER: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 192,
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    # name: (transformers' class without its ending, config)
    "bert": ("Bert", _ENCODER),
    "roberta": ("Roberta", {**_ENCODER, "type_vocab_size": 1, "pad_token_id": 1}),
    "xlm-roberta": ("XLMRoberta", {**_ENCODER, "type_vocab_size": 1, "pad_token_id": 1}),
    "modernbert": ("ModernBert", {**_ENCODER, "local_attention": 24, "pad_token_id": 0}),
}


def save_encoder(name: str, folder: Path, ending: str = "Model", **config: Any) -> Any:
    """Save a tiny encoder of a family; return transformers' model of it."""
    kind, shape = ENCODERS[name]
    shape = shape | config
    made = getattr(transformers, f"{kind}{ending}")(getattr(transformers, f"{kind}Config")(**shape))
    return _save(made, folder)


def save_classifier(folder: Path, num_labels: int, **config: Any) -> Any:
    """Save a tiny decoder that sorts by its last token; return transformers' model of it."""
    shape = _ENCODER | {"num_key_value_heads": 2, "head_dim": 16, "num_labels": num_labels, "pad_token_id": 0} | config
    return _save(transformers.Qwen3ForSequenceClassification(transformers.Qwen3Config(**shape)), folder)
