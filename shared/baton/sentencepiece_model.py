"""A sentencepiece model (`tokenizer.model`) as a tokenizer of the `tokenizers` library.

Read from the file itself, a protocol buffer: which pieces there are, and how text is prepared, so that ids are those that
sentencepiece gives. Only the fields that matter are read. No torch.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from baton.errors import ModelLoadError

_SPACE = "▁"
# sentencepiece_model.proto: numbers of fields, and kinds of pieces and models.
_PIECES, _TRAINING, _PREPARING = 1, 2, 3
_MODEL_TYPE, _BYTE_FALLBACK, _UNK_ID, _BOS_ID, _EOS_ID = 3, 35, 40, 41, 42
_CHARSMAP, _ADDS_PREFIX, _TRIMS = 2, 3, 4
_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER = 1, 2, 3, 4
_RANKED = re.compile(rb"[A-Za-z0-9+/=]+ \d+\n")
"""A line of tiktoken's files."""
_TIKTOKEN = "is a tiktoken file: which special tokens go with it, and where it cuts words, stands in code"


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary."""

    text: str
    score: float
    kind: int


@dataclass(slots=True)
class SentencePieceModel:
    """What the file holds."""

    pieces: list[Piece] = field(default_factory=list)
    model_type: int = _UNIGRAM
    byte_fallback: bool = False
    ids: dict[str, int] = field(default_factory=lambda: {"unk_token": 0, "bos_token": 1, "eos_token": 2})
    charsmap: bytes = b""
    adds_prefix: bool = True
    trims: bool = True

    def special_tokens(self) -> dict[str, str]:
        """Return the names that special tokens have where no other file says so."""
        return {name: self.pieces[at].text for name, at in self.ids.items() if 0 <= at < len(self.pieces)}


def read_sentencepiece(file: Path, config: Mapping[str, Any]) -> tuple[Tokenizer, dict[str, str]]:
    """Return the tokenizer, and its special tokens by name.

    Args:
        config: tokenizer_config.json. Its `add_bos_token` and `add_eos_token` say what stands around a text; without
            them a text begins with bos, as in transformers. With `legacy` false, only a text's beginning has a space put
            before it, not each part between special tokens.

    Raises:
        ModelLoadError: the file is no such model, or one of a kind that cannot be converted.
    """
    model = _parse(file)
    backend = Tokenizer(_model(model, file))
    # as transformers' `legacy`: whether each part between special tokens begins with a space, or a text alone
    prepends = model.adds_prefix and config.get("legacy") is not False
    backend.normalizer, backend.decoder = _normalizer(model, prepends=prepends), _decoder(model)
    if model.adds_prefix and not prepends:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    kinds = (_UNKNOWN, _CONTROL, _USER)
    backend.add_tokens(
        [
            AddedToken(piece.text, normalized=False, special=piece.kind != _USER)
            for piece in model.pieces
            if piece.kind in kinds
        ]
    )
    special = model.special_tokens()
    around = {
        name: special.get(name) for name in ("bos_token", "eos_token") if config.get(f"add_{name}", name == "bos_token")
    }
    begin, end = around.get("bos_token"), around.get("eos_token")
    if begin or end:
        parts = [each for each in (begin, "$A", end) if each]
        pair = [each for each in (begin, "$A", end, begin, "$B:1", end) if each]
        tokens = [(token, backend.token_to_id(token)) for token in {begin, end} if token]
        backend.post_processor = processors.TemplateProcessing(single=parts, pair=pair, special_tokens=tokens)
    return backend, special


def _parse(file: Path) -> SentencePieceModel:
    data = file.read_bytes()
    if _RANKED.match(data):
        raise ModelLoadError(f"{file} {_TIKTOKEN}. Give a folder or hub id with tokenizer.json (--tokenizer).")
    model = SentencePieceModel()
    try:
        for number, value in _fields(data):
            if number == _PIECES:
                entry = dict(_fields(value))
                (score,) = struct.unpack("<f", entry.get(2, bytes(4)))
                model.pieces.append(Piece(entry.get(1, b"").decode(), score, entry.get(3, _NORMAL)))
            elif number == _TRAINING:
                entry = dict(_fields(value))
                model.model_type = entry.get(_MODEL_TYPE, _UNIGRAM)
                model.byte_fallback = bool(entry.get(_BYTE_FALLBACK, 0))
                for name, at in (("unk_token", _UNK_ID), ("bos_token", _BOS_ID), ("eos_token", _EOS_ID)):
                    model.ids[name] = _signed(entry.get(at, model.ids[name]))
            elif number == _PREPARING:
                entry = dict(_fields(value))
                model.charsmap = entry.get(_CHARSMAP, b"")
                model.adds_prefix, model.trims = bool(entry.get(_ADDS_PREFIX, 1)), bool(entry.get(_TRIMS, 1))
    except (ValueError, IndexError, TypeError, struct.error) as error:
        raise ModelLoadError(f"{file} is no sentencepiece model, or a damaged one. Fetch the file again.") from error
    if not model.pieces:
        raise ModelLoadError(f"{file} holds no pieces: it is no sentencepiece model. Fetch the file again.")
    return model


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a protocol buffer: numbers as int, all others as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            if kind != 2:
                raise ValueError(kind)
            size, at = _varint(data, at)
        if at + size > len(data):
            raise ValueError(size)
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift >= 70:  # of 64 bits
            raise ValueError(shift)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _model(model: SentencePieceModel, file: Path) -> Any:
    unknown = max(model.ids["unk_token"], 0)
    if model.model_type == _UNIGRAM:
        pieces = [(piece.text, piece.score) for piece in model.pieces]
        return models.Unigram(pieces, unk_id=unknown, byte_fallback=model.byte_fallback)
    if model.model_type != _BPE:
        raise ModelLoadError(
            f"{file} is a sentencepiece model of words or characters; Baton reads unigram and BPE. Give a folder or hub id "
            "with tokenizer.json (--tokenizer)."
        )
    return models.BPE(
        {piece.text: at for at, piece in enumerate(model.pieces)},
        _merges(model.pieces),
        unk_token=model.pieces[unknown].text,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """List all pairs that make a piece, the piece with the highest score first: as sentencepiece joins them."""
    ids = {piece.text: at for at, piece in enumerate(pieces) if piece.kind == _NORMAL}
    found = [
        (-pieces[at].score, ids[text[:cut]], ids[text[cut:]], text[:cut], text[cut:])
        for text, at in ids.items()
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    return [(left, right) for *_, left, right in sorted(found)]


def _normalizer(model: SentencePieceModel, *, prepends: bool) -> Any:
    stages: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.trims:
        stages += [normalizers.Strip(left=True, right=True), normalizers.Replace(Regex(" {2,}"), " ")]
    if prepends:
        stages.append(normalizers.Prepend(_SPACE))
    return normalizers.Sequence([*stages, normalizers.Replace(" ", _SPACE)])


def _decoder(model: SentencePieceModel) -> Any:
    stages: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.adds_prefix:
        stages.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(stages)
