"""Log-probabilities speak of tokens: their own bytes, names of their own, where they stand in the text."""

from pathlib import Path
from typing import Any

import pytest
from tests.tokenizer_kinds import KINDS, tokenizer_of

from baton.config import demo_model_path
from baton.messages import TokenLogprobs
from baton.router.openai.logprobs import CompletionLogprobs, Echo, chat_logprob
from baton.text import Tokenizer

ANSWER = "Hi 😀 日本語 ok"


def _tokenizer(kind: str, folder: Path) -> Tokenizer:
    tokenizer_of(kind).save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def _row(*token_ids: int) -> TokenLogprobs:
    return TokenLogprobs(list(token_ids), [-0.5 - i for i in range(len(token_ids))], list(range(1, 1 + len(token_ids))))


def _table(tokenizer: Tokenizer, prompt: list[int], answer: list[int], echo: Echo | None = None) -> dict[str, Any]:
    scores = CompletionLogprobs(tokenizer, prompt, echo, skips_special=True)
    return scores.table(answer, [_row(token_id) for token_id in answer])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "byte" in kind])
def test_the_bytes_of_a_characters_parts_are_their_own_and_make_the_text(kind: str, tmp_path: Path) -> None:
    tokenizer = _tokenizer(kind, tmp_path)
    prompt = tokenizer.encode("hello", add_special_tokens=False)
    answer = tokenizer.encode(ANSWER, add_special_tokens=False)
    rows = [chat_logprob(_row(token_id), tokenizer, skips_special=True) for token_id in answer]
    joined = b"".join(bytes(row["bytes"]) for row in rows)
    assert joined.decode() == tokenizer.decode(prompt + answer).removeprefix("hello")
    assert all(row["token"] == bytes(row["bytes"]).decode() for row in rows if not row["token"].startswith("bytes:"))
    assert r"bytes:\xf0" in "".join(row["token"] for row in rows)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "byte" in kind])
def test_offsets_count_the_characters_before_each_token(kind: str, tmp_path: Path) -> None:
    tokenizer = _tokenizer(kind, tmp_path)
    prompt = tokenizer.encode("hello", add_special_tokens=False)
    answer = tokenizer.encode(ANSWER, add_special_tokens=False)
    text = tokenizer.decode(prompt + answer).removeprefix("hello")
    table = _table(tokenizer, prompt, answer)
    for at, name in zip(table["text_offset"], table["tokens"], strict=True):
        if not name.startswith("bytes:"):
            assert text.startswith(name, at)
        else:
            assert text[at] in " 😀日本語"  # a token may hold a space and a first byte
    scores = CompletionLogprobs(tokenizer, prompt, None, skips_special=True)
    streamed = [scores.table([token_id], [_row(token_id)])["text_offset"] for token_id in answer]
    assert [offset for offsets in streamed for offset in offsets] == table["text_offset"]


def test_a_token_after_characters_of_several_tokens_stands_where_it_is_read(tmp_path: Path) -> None:
    tokenizer = _tokenizer("byte-level, bytes alone", tmp_path)
    answer = tokenizer.encode(ANSWER, add_special_tokens=False)
    assert _table(tokenizer, answer[:1], answer)["text_offset"][-3:] == [8, 9, 10]


def test_tokens_keep_their_spaces_and_have_keys_of_their_own(tmp_path: Path) -> None:
    tokenizer = _tokenizer("byte fallback with prefix space", tmp_path)
    ids = tokenizer_of("byte fallback with prefix space").get_vocab()
    assert "".join(_table(tokenizer, [ids["d"]], [ids["▁world"]] * 2)["tokens"]) == " world world"
    alike = _row(ids["d"], ids["d"], ids["▁d"], ids["<0x64>"])
    scores = CompletionLogprobs(tokenizer, [ids["d"]], None, skips_special=True).table([ids["d"]], [alike])
    assert scores["top_logprobs"] == [{"d": -0.5, " d": -2.5, f"token_id:{ids['<0x64>']}": -3.5}]
    names = [entry["token"] for entry in chat_logprob(alike, tokenizer, skips_special=True)["top_logprobs"]]
    assert names == ["d", " d", f"token_id:{ids['<0x64>']}"]


def test_special_tokens_have_a_name_and_the_bytes_that_are_shown_of_them(tmp_path: Path) -> None:
    tokenizer = _tokenizer("byte-level", tmp_path)
    (end,) = tokenizer.encode("</s>")
    assert chat_logprob(_row(end), tokenizer, skips_special=True) | {"top_logprobs": 0} == {
        "token": "</s>",
        "logprob": -0.5,
        "bytes": [],
        "top_logprobs": 0,
    }
    assert bytes(chat_logprob(_row(end), tokenizer, skips_special=False)["bytes"]) == b"</s>"


@pytest.mark.parametrize("kind", ["byte-level", "byte fallback with prefix space", "unigram, prefix space always"])
def test_a_prompts_tokens_stand_where_they_are_in_its_text(kind: str, tmp_path: Path) -> None:
    tokenizer = _tokenizer(kind, tmp_path)
    text = "hello world</s> 日 hello"
    ids, offsets = tokenizer.encode(text), tokenizer.offsets(text)
    assert len(ids) == len(offsets)
    assert offsets == sorted(offsets)
    for token_id, at in zip(ids, offsets, strict=True):
        name = tokenizer.token_text(token_id)
        assert name.startswith(("bytes:", "<unk>")) or text.startswith((name, name.strip()), at)
    if kind == "byte-level":  # which loses nothing
        assert tokenizer.decode_with_offsets(ids) == (text, offsets)


def test_a_prompts_tokens_stand_where_they_are_also_where_the_library_knows_wide_spans_alone(tmp_path: Path) -> None:
    tokenizer = _tokenizer("unigram with byte fallback", tmp_path)
    assert tokenizer.offsets("o日本 hello") == [0, 0, 1, 2, 2, 2, 3]


def test_what_a_tokenizer_adds_stands_where_it_is_added(tmp_path: Path) -> None:
    tokenizer = Tokenizer(demo_model_path())
    assert tokenizer.offsets("Hi there") == [0, 0, 2]
    assert tokenizer.offsets("Hi there", add_special_tokens=False) == [0, 2]
