"""A tokenizer is read from whichever file a checkpoint has, and ids are those of the library that wrote it."""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tests.tokenizer_kinds import TEXT, tokenizer_of

from baton.errors import ModelLoadError
from baton.text import Tokenizer

PIECES: dict[str, dict[str, Any]] = {
    "Llama 2 and Mistral": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
    "Gemma": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["[INST]", "ox j"],
    },
    "unigram with bytes": {"model_type": "unigram", "byte_fallback": True},
    "unigram without bos": {"model_type": "unigram", "bos_id": -1, "pad_id": 3},
}
TEXTS = [
    "",
    " ",
    "hello world",
    "naïve café — 日本語です 😀",
    "  two  spaces ",
    "the fox's dog.\n\nnew",
    "ﬁne ½ [INST]x",
]


def drawn_texts(count: int = 300) -> list[str]:
    rng = random.Random(1)
    return ["".join(rng.choices("helo wrd tfxdg.'ï—日😀 \n  ", k=rng.randrange(40))) for _ in range(count)]


def trained(**arguments: Any) -> bytes:
    """Train a small sentencepiece model."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 5),
        model_writer=file,
        vocab_size=360 if arguments.get("byte_fallback") else 70,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
        **arguments,
    )
    return file.getvalue()


@pytest.mark.parametrize("kind", PIECES)
def test_tokenizer_model_alone_gives_the_ids_of_sentencepiece(kind: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(trained(**PIECES[kind]))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = Tokenizer(tmp_path)
    for text in TEXTS + drawn_texts():
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text), text
        if theirs.unk_id() not in ids:
            assert ours.decode(ids) == theirs.decode(ids)
    assert ours.vocab_size == theirs.get_piece_size()
    assert ours.eos_token_id == theirs.eos_id()


def test_a_text_begins_with_bos_unless_the_tokenizers_config_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(trained(**PIECES["Llama 2 and Mistral"]))
    assert Tokenizer(tmp_path).encode("hello")[0] == 1
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false, "add_eos_token": true}')
    ids = Tokenizer(tmp_path).encode("hello")
    assert ids[0] != 1
    assert ids[-1] == 2


def test_with_legacy_off_only_the_beginning_has_a_space_put_before_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(trained(**PIECES["Llama 2 and Mistral"]))
    parts = [Tokenizer(tmp_path).encode("hello</s>world", add_special_tokens=False)]
    (tmp_path / "tokenizer_config.json").write_text('{"legacy": false}')
    parts.append(Tokenizer(tmp_path).encode("hello</s>world", add_special_tokens=False))
    (with_space, without) = parts
    assert with_space[: with_space.index(2)] == without[: without.index(2)]
    assert Tokenizer(tmp_path).decode(without) == "helloworld"
    assert with_space != without


def test_transformers_has_the_same_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(trained(**PIECES["Llama 2 and Mistral"]))
    ours = Tokenizer(tmp_path)
    assert ours.hf("hello world").input_ids == ours.encode("hello world")
    assert ours.hf.eos_token == "</s>"


def test_tokens_that_other_files_add_are_added(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(trained(**PIECES["Llama 2 and Mistral"]))
    before = Tokenizer(tmp_path).vocab_size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": before}))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    ours = Tokenizer(tmp_path)
    assert ours.eos_token_id == before
    assert ours.encode("hello<|im_end|>", add_special_tokens=False)[-1] == before


# -- Mistral's tekken ------------------------------------------------------------------------------------------


def tekken(**changes: Any) -> dict[str, Any]:
    words = [bytes([byte]) for byte in range(256)] + [
        b"he",
        b"ll",
        b"hell",
        b"hello",
        b" w",
        b" wo",
        "é".encode(),
        b"z",
    ]
    vocab = [{"rank": at, "token_bytes": base64.b64encode(word).decode()} for at, word in enumerate(words)]
    special = [{"rank": at, "token_str": text, "is_control": True} for at, text in enumerate(["<unk>", "<s>", "</s>"])]
    config = {
        "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
        "default_vocab_size": 5 + len(words) - 1,
        "default_num_special_tokens": 5,
    }
    return {"config": config, "vocab": vocab, "special_tokens": special} | changes


def test_tekken_has_its_special_tokens_first_and_joins_by_rank(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(tekken()))
    ours = Tokenizer(tmp_path)
    ids = ours.encode("hello world é")
    assert ids == [1, 5 + 259, 5 + 261, *(5 + byte for byte in b"rld "), 5 + 262]
    assert ours.decode(ids) == "hello world é"
    assert ours.vocab_size == 5 + 263  # the last word lies beyond what the model has
    assert ours.token(4) == "<SPECIAL_4>"
    assert ours.eos_token_id == 2


@pytest.mark.parametrize("changes", [{"special_tokens": None}, {"vocab": [{"rank": 0}]}, {"config": {}}])
def test_a_damaged_tekken_is_named(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(tekken(**changes)))
    with pytest.raises(
        ModelLoadError, match=r"tekken.json cannot be read .* must hold config, vocab and special_tokens"
    ):
        Tokenizer(tmp_path)


# -- which file, and none --------------------------------------------------------------------------------------


def test_tokenizer_json_goes_before_the_others(tmp_path: Path) -> None:
    tokenizer_of("words, no decoder").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tekken.json").write_text(json.dumps(tekken()))
    (tmp_path / "tokenizer.model").write_bytes(b"")
    assert Tokenizer(tmp_path).vocab_size == tokenizer_of("words, no decoder").get_vocab_size()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "is a tiktoken file"),
        ("tokenizer.model", b"", "holds no pieces"),
        (
            "tokenizer.model",
            b"version https://git-lfs.github.com/spec/v1\n",
            "no sentencepiece model, or a damaged one",
        ),
        ("tokenizer.model", b"\x8a" + b"\x80" * 10 + b"\0\0", "no sentencepiece model, or a damaged one"),
        ("tokenizer.model", trained(model_type="char"), "of words or characters"),
        ("tokenizer.json", b"{", "cannot be read"),
        ("qwen.tiktoken", b"IQ== 0\n", "qwen.tiktoken is a tiktoken file"),
        ("config.json", b'{"model_type": "llama"}', "none of tokenizer.json, tekken.json, tokenizer.model"),
    ],
    ids=["ranks", "empty", "a pointer", "a number without end", "characters", "half", "tiktoken", "none"],
)
def test_what_is_no_tokenizer_is_told_with_the_way_out(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelLoadError, match=says):
        Tokenizer(tmp_path)


def test_a_cut_sentencepiece_model_is_told_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = trained(**PIECES["Llama 2 and Mistral"])
    for size in range(1, len(whole), 97):
        (tmp_path / "tokenizer.model").write_bytes(whole[:size])
        try:
            Tokenizer(tmp_path)
        except ModelLoadError:
            continue
