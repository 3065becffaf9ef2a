"""Mistral's own tokenizer, `tekken.json`, as a tokenizer of the `tokenizers` library: byte-level BPE by ranks. No torch.

Special tokens have the first ids, up to `default_num_special_tokens`, and the vocabulary those behind them.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from baton.errors import ModelLoadError
from baton.model_folder import read_json

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def read_tekken(file: Path) -> tuple[Tokenizer, dict[str, str]]:
    """Return the tokenizer, and its special tokens by name. A text begins with bos, as in Mistral's own code.

    Raises:
        ModelLoadError: the file is damaged, or of the first version, which does not name its special tokens.
    """
    content = read_json(file)
    try:
        special = {int(entry["rank"]): str(entry["token_str"]) for entry in content["special_tokens"]}
        config = content["config"]
        num_special = int(config.get("default_num_special_tokens") or len(special))
        size = int(config.get("default_vocab_size") or num_special + len(content["vocab"]))
        ranked = [base64.b64decode(entry["token_bytes"]) for entry in content["vocab"][: size - num_special]]
        pattern = str(config["pattern"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelLoadError(
            f"{file} cannot be read ({error!r}): it must hold config, vocab and special_tokens. Give a folder or hub id with "
            "tokenizer.json (--tokenizer)."
        ) from error
    names = [special.get(at, f"<SPECIAL_{at}>") for at in range(num_special)]
    backend = Tokenizer(_model(ranked, names))
    cuts = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([cuts, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    found = {name: token for name, token in SPECIAL_TOKENS.items() if token in names}
    if bos := found.get("bos_token"):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=[(bos, names.index(bos))]
        )
    return backend, found


def _model(ranked: list[bytes], names: list[str]) -> Any:
    """Make the model: of neighbours that are joined the pair goes first whose joined bytes have the lowest rank."""
    shown = _shown_bytes()
    texts = ["".join(shown[byte] for byte in token) for token in ranked]
    ids = {text: at for at, text in enumerate(texts)}
    merges = []
    for text in texts:
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    vocabulary = {text: len(names) + at for at, text in enumerate(texts)}
    vocabulary |= {name: at for at, name in enumerate(names)}
    return models.BPE(vocabulary, merges, ignore_merges=True)


def _shown_bytes() -> list[str]:
    """The character that stands for each byte in byte-level BPE: itself where it can be seen, else one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]
