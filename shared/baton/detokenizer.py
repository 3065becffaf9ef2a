"""Token ids to text, piece by piece: what each token of a vocabulary adds, and characters that several tokens make.

What a token adds depends on its neighbours in three ways only, whatever the tokenizer's decoder:

    bytes     a byte-level or byte-fallback token may hold a part of a character; joined bytes are the truth
    beginning the first token of a text may lose its space (Llama 2), or "##" (WordPiece)
    end       the space of a word's end ("</w>") shows when something follows

So a text is the tokens' pieces, joined as bytes and read as UTF-8, and a stream needs no window of earlier tokens. A piece
comes from the library's own decoder, asked once a token. No torch.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Any, cast

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_ANCHOR = "x"
"""Before a token when its decoder is asked what the token adds to a text that has begun."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# Byte-fallback tokens are bytes that no piece covers, so each one that makes no character is shown, as sentencepiece does.
codecs.register_error("baton.each-byte", lambda error: (_UNKNOWN * (error.end - error.start), error.end))  # type: ignore[attr-defined]

Piece = str | bytes
"""What a token adds to a text that has begun: text, or bytes where its characters are not whole. Empty: nothing."""


class Pieces(dict[int, Piece]):
    """Pieces by token id, each found when it is first asked for. Shared by all streams of a tokenizer."""

    def __init__(self, backend: Any, *, skip_special_tokens: bool, shown: Collection[str] = ()) -> None:
        """`backend`: a tokenizer of the `tokenizers` library; `shown`: special tokens that are shown all the same."""
        super().__init__()
        self._backend = backend
        stages = list(_stages(backend.decoder))
        self._kinds = {stage["type"] for stage in stages}
        self.errors = "baton.each-byte" if "ByteFallback" in self._kinds else "replace"
        """How bytes that make no character are shown: a name for `codecs`."""
        self.suffix: str | None = next((stage["suffix"] for stage in stages if stage["type"] == "BPEDecoder"), None)
        """The end of a word, where words end so."""
        self._hides, self._shown = skip_special_tokens, shown

    def __missing__(self, token_id: int) -> Piece:
        token = self._backend.id_to_token(token_id)
        piece: Piece = ""
        if token is not None and not (self._hides and token not in self._shown and self._is_special(token_id)):
            piece = self._read(token, self._decode(_ANCHOR, token).removeprefix(_ANCHOR))
        self[token_id] = piece
        return piece

    def first(self, token_id: int) -> Piece:
        """Return what a token adds at the beginning of a text."""
        token = self._backend.id_to_token(token_id)
        return self._read(token, self._decode(token))

    def visible_end(self, token_ids: Sequence[int]) -> list[int]:
        """Return the last ids that add something; three, as a character of 4 bytes has at most that many open."""
        return list(islice(filter(self.__getitem__, reversed(token_ids)), 3))[::-1]

    def _is_special(self, token_id: int) -> bool:
        """Ask the library: a token's own flag may be older than the set that it keeps."""
        with_it, without = (self._backend.decode([token_id], skip_special_tokens=skip) for skip in (False, True))
        return bool(with_it != without)

    def _decode(self, *tokens: str) -> str:
        decoder = self._backend.decoder
        return " ".join(tokens) if decoder is None else cast(str, decoder.decode(list(tokens)))

    def _read(self, token: str, text: str) -> Piece:
        """Return a token's own bytes if there is no character for them in what the decoder made of it."""
        if self.suffix is not None and token.endswith(self.suffix):
            return text + " "
        if _UNKNOWN not in text:
            return text
        if "ByteFallback" in self._kinds and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        if "ByteLevel" in self._kinds and all(character in _BYTES for character in token):
            raw = bytes(_BYTES[character] for character in token)
            return text if text.encode() == raw else raw
        return text


class Detokenizer:
    """Token ids in, text out, after a prompt: what the text of both holds beyond that of the prompt alone.

    A character that is not whole yet is held back. One that the prompt left unfinished comes out once, when the answer
    completes it; if the answer does not, only what is new comes out.
    """

    __slots__ = ("_at_start", "_is_plain", "_num_shown", "_pieces", "_space", "_utf8")

    def __init__(self, pieces: Pieces, prompt_ids: Sequence[int] = ()) -> None:
        self._pieces = pieces
        self._at_start = not any(map(pieces.__getitem__, prompt_ids))
        self._space = ""
        """The end of the last word, for when something follows."""
        self._utf8: codecs.IncrementalDecoder | None = None
        self._num_shown = 0
        """Signs that the prompt's text shows in place of its unfinished character."""
        self._is_plain = not self._at_start and pieces.suffix is None
        """A piece of text is text: nothing is held back."""
        if not self._at_start:
            self._take_end(prompt_ids)

    def push(self, token_id: int) -> str:
        """Take a token; return the text that it completes; empty when it completes none."""
        if self._is_plain:
            piece = self._pieces[token_id]
            if type(piece) is str:
                return piece
        return self._push_part(token_id)

    def flush(self) -> str:
        """Return what is left at the end: an answer may stop inside a character."""
        return "" if self._utf8 is None else self._without_shown(self._utf8.decode(b"", final=True))

    def _push_part(self, token_id: int) -> str:
        pieces = self._pieces
        piece = pieces[token_id]
        if not piece:
            return ""
        if self._at_start:
            piece, self._at_start = pieces.first(token_id), False
        utf8 = self._decoder()
        text = utf8.decode(piece.encode() if isinstance(piece, str) else piece)
        self._is_plain = pieces.suffix is None and not utf8.getstate()[0]
        return self._hold_space(self._without_shown(text))

    def _take_end(self, prompt_ids: Sequence[int]) -> None:
        """Take what the prompt's end leaves open; its last 3 bytes tell, as a character has at most 4."""
        tail = b""
        for piece in map(self._pieces.__getitem__, reversed(prompt_ids)):
            if not isinstance(piece, bytes):
                if not piece:  # not shown
                    continue
                self._hold_space(piece)
                break
            tail = piece + tail
            if len(tail) >= 3:
                break
        if tail:
            utf8 = self._decoder()
            utf8.decode(tail)
            unfinished = utf8.getstate()[0]
            self._num_shown = len(unfinished.decode(errors=self._pieces.errors))
            self._is_plain = self._is_plain and not unfinished

    def _decoder(self) -> codecs.IncrementalDecoder:
        if self._utf8 is None:
            self._utf8 = codecs.getincrementaldecoder("utf-8")(self._pieces.errors)
        return self._utf8

    def _without_shown(self, text: str) -> str:
        if text and self._num_shown:
            end, self._num_shown = self._num_shown, 0
            return text[:end].lstrip(_UNKNOWN) + text[end:]
        return text

    def _hold_space(self, text: str) -> str:
        if self._pieces.suffix is None:
            return text
        text = self._space + text
        self._space = " " if text.endswith(" ") else ""
        return text.removesuffix(" ")


def _stages(decoder: Any) -> Iterator[dict[str, Any]]:
    """Go through a decoder's stages as tokenizer.json writes them."""
    if decoder is not None:
        waiting = [json.loads(decoder.__getstate__())]
        while waiting:
            stage = waiting.pop()
            waiting.extend(stage.get("decoders", ()))
            yield stage


def _byte_of_character() -> dict[str, int]:
    """Return the alphabet of byte-level tokens: printable Latin-1 for itself, the others moved up by 256 in their order."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(moved)}


_BYTES = _byte_of_character()
