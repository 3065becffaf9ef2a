"""A tiny GPT-2 that says what a test wants: each position has a dimension of its own, and the output layer a token for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

_LEN = 128


def make_scripted_model(
    folder: Path, tokenizer: Tokenizer, tokens: Sequence[int], *, eos_token: str | None = None
) -> Path:
    """Write a checkpoint that answers `tokens[i:]` to any prompt of `i` tokens; no config names an end of text."""
    folder.mkdir(parents=True)
    vocab_size = tokenizer.get_vocab_size()
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocab_size,
        "n_embd": _LEN,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": _LEN,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast"} | ({} if eos_token is None else {"eos_token": eos_token})
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    head = torch.zeros(vocab_size, _LEN)
    for position, token_id in enumerate(tokens[1:]):  # which follows the token at this position
        head[token_id, position] = 50.0
    save_file(
        {
            "transformer.wte.weight": torch.zeros(vocab_size, _LEN),
            "transformer.wpe.weight": torch.eye(_LEN),
            "lm_head.weight": head,
            **_norm("transformer.ln_f"),
            **_norm("transformer.h.0.ln_1"),
            **_norm("transformer.h.0.ln_2"),
            **_silent("transformer.h.0.attn.c_attn", _LEN, 3 * _LEN),
            **_silent("transformer.h.0.attn.c_proj", _LEN, _LEN),
            **_silent("transformer.h.0.mlp.c_fc", _LEN, 4 * _LEN),
            **_silent("transformer.h.0.mlp.c_proj", 4 * _LEN, _LEN),
        },
        str(folder / "model.safetensors"),
    )
    return folder


def _norm(name: str) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.ones(_LEN), f"{name}.bias": torch.zeros(_LEN)}


def _silent(name: str, n_in: int, n_out: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.zeros(n_in, n_out), f"{name}.bias": torch.zeros(n_out)}
