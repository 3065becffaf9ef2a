"""One small tokenizer of each kind that language models have, made by the `tokenizers` library."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = [
    "hello world, it's a small tokenizer. It isn't large!",
    "naïve café — 日本語です",
    "the fox jumps over the dog .",
] * 4
SPECIAL = ["<s>", "</s>", "<｜end▁of▁turn｜>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _byte_level(vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def _byte_fallback(*, prefix: bool, with_words: bool = True) -> Tokenizer:
    """Llama 2's kind, with a prefix space, and Gemma's, without."""
    words = ["hello", "world", "ok", "▁", "▁hello", "▁world", "▁▁", "日", ".", "▁d", "d"] if with_words else ["▁"]
    vocabulary = {token: i for i, token in enumerate(["<unk>", *_BYTES, *words])}
    merges = [("▁", "▁"), ("▁", "d")] if with_words else []
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    stages = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*stages, decoders.Strip(" ", 1, 0)] if prefix else stages)
    return tokenizer


def _unigram(prepend_scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    trainer = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def _unigram_bytes() -> Tokenizer:
    pieces = [
        ("<unk>", 0.0),
        *((byte, -9.0) for byte in _BYTES),
        ("▁", -2.0),
        ("▁hello", -1.0),
        ("o", -3.0),
        ("日", -3.0),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def _word_piece(*, cleanup: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=cleanup)
    tokenizer.train_from_iterator(
        TEXT, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"], show_progress=False)
    )
    return tokenizer


def _word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(TEXT, trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False))
    return tokenizer


def _word_ends() -> Tokenizer:
    """GPT-1's kind."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    tokenizer.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=160, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False),
    )
    return tokenizer


_MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": lambda: _byte_level(340),
    "byte-level, bytes alone": lambda: _byte_level(256),
    "byte fallback with prefix space": lambda: _byte_fallback(prefix=True),
    "byte fallback without prefix space": lambda: _byte_fallback(prefix=False),
    "byte fallback, bytes alone": lambda: _byte_fallback(prefix=True, with_words=False),
    "unigram, prefix space always": lambda: _unigram("always"),
    "unigram, prefix space first": lambda: _unigram("first"),
    "unigram, prefix space never": lambda: _unigram("never"),
    "unigram with byte fallback": _unigram_bytes,
    "WordPiece with cleanup": lambda: _word_piece(cleanup=True),
    "WordPiece without cleanup": lambda: _word_piece(cleanup=False),
    "words, no decoder": _word_level,
    "ends of words": _word_ends,
}
KINDS = tuple(_MAKERS)


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    """Make a kind's tokenizer, with some special tokens."""
    tokenizer = _MAKERS[kind]()
    tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in SPECIAL])
    tokenizer.add_tokens([AddedToken("added word", normalized=False)])
    return tokenizer


def full_text(tokenizer: Tokenizer, token_ids: list[int], *, skip_special_tokens: bool) -> str:
    """Decode whole ids by the library alone.

    But for runs of byte tokens: where one byte of a run is wrong, the library shows a sign for each of the run, so they
    are read here as sentencepiece does, character by character.
    """
    added = tokenizer.get_added_tokens_decoder()
    shown = [
        tokenizer.id_to_token(i) for i in token_ids if not (skip_special_tokens and i in added and added[i].special)
    ]
    tokens = list(_with_runs_read(shown)) if "byte fallback" in _kind_of(tokenizer) else shown
    decoder: Any = tokenizer.decoder
    return " ".join(tokens) if decoder is None else str(decoder.decode(tokens))


def _kind_of(tokenizer: Tokenizer) -> str:
    return next(kind for kind in KINDS if tokenizer_of(kind) is tokenizer)


def _with_runs_read(tokens: list[str]) -> Iterator[str]:
    run = b""
    for token in [*tokens, None]:
        if token in _BYTES:
            run += bytes([_BYTES.index(token)])
            continue
        if run:
            yield _read(run)
            run = b""
        if token is not None:
            yield token


def _read(run: bytes) -> str:
    text = ""
    while run:
        size = next((n for n in range(1, 5) if _is_character(run[:n])), 0)
        text += run[:size].decode() if size else "\N{REPLACEMENT CHARACTER}"
        run = run[size or 1 :]
    return text


def _is_character(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False
