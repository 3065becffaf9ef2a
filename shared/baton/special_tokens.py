"""Special tokens that a checkpoint declares beside tokenizer.json, put into its tokenizer as `transformers` puts them.

They stand in tokenizer_config.json (by id, by name, in a list), in older checkpoints in special_tokens_map.json and
added_tokens.json. What tokenizer.json has already keeps its id. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
Declared = Mapping[str, Any]
"""Content of a JSON file."""


def declare_special_tokens(backend: Any, config: Declared, names: Declared, added: Declared) -> dict[str, str]:
    """Add to `backend` what is declared; return the special tokens by name, as chat templates know them.

    Args:
        backend: a tokenizer of the `tokenizers` library, as tokenizer.json makes it.
        config: tokenizer_config.json.
        names: special_tokens_map.json, which counts where tokenizer_config.json lists no tokens by their ids.
        added: added_tokens.json, likewise.

    Raises:
        TypeError, ValueError: a declaration is none.
    """
    if "added_tokens_decoder" in config:
        by_id = {int(token_id): _token(value) for token_id, value in config["added_tokens_decoder"].items()}
        named, others = _named(config), _others(config)
    else:
        config = {**config, **names}
        named, others = _named(config), _others(config)
        special = {token.content for token in (*named.values(), *others)}
        by_id = {token_id: AddedToken(content, special=content in special) for content, token_id in added.items()}
    known = backend.get_added_tokens_decoder().values()
    as_known, with_names = {repr(token) for token in known}, {token.content for token in named.values()}
    listed = [token for _, token in sorted(by_id.items()) if repr(token) not in as_known]
    for token in listed:
        token.special = token.special or token.content in with_names
    present = {token.content for token in (*known, *listed)}
    declared = {repr(token): token for token in (*named.values(), *others) if token.content not in present}
    backend.add_tokens([*listed, *declared.values()])
    return {name: token.content for name, token in named.items()}


def _named(config: Declared) -> dict[str, AddedToken]:
    """Return the tokens that have names: the usual ones first, then a model's own, such as image_token."""
    own = {name: value for name, value in config.items() if name.endswith("_token") and name not in _NAMES}
    extra = config.get("extra_special_tokens")
    values = {name: config.get(name) for name in _NAMES} | own | (extra if isinstance(extra, dict) else {})
    return {name: _token(value, special=True) for name, value in values.items() if isinstance(value, (str, dict))}


def _others(config: Declared) -> list[AddedToken]:
    """Return the special tokens without names."""
    values = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    return [_token(value, special=True) for value in values] if isinstance(values, list) else []


def _token(value: str | Declared, *, special: bool | None = None) -> AddedToken:
    fields = {"content": value} if isinstance(value, str) else {k: v for k, v in value.items() if k != "__type"}
    return AddedToken(**(fields if special is None else fields | {"special": special}))
