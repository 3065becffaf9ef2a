"""Special tokens that stand beside tokenizer.json are tokens, as `transformers` has them."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baton.errors import ModelLoadError
from baton.text import Tokenizer

from .tokenizer_kinds import tokenizer_of

TEXT = "a<|im_start|>hello <|im_end|> world</s><tool> <img>é<|new|>x"


def _folder(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    tokenizer_of("byte-level").save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | files.pop("tokenizer_config.json", {})
    for name, content in (files | {"tokenizer_config.json": config}).items():
        (folder / name).write_text(json.dumps(content))
    return folder


def _assert_as_transformers(folder: Path) -> Tokenizer:
    ours, theirs = Tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for add in (True, False):
        assert ours.encode(TEXT, add_special_tokens=add) == theirs(TEXT, add_special_tokens=add)["input_ids"]
    ids = ours.encode(TEXT)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.special_tokens == {name: str(token) for name, token in theirs.special_tokens_map.items()}
    assert ours.vocab_size == len(theirs)
    return ours


SIZE = tokenizer_of("byte-level").get_vocab_size()
LISTED = {
    "content": "<|im_end|>",
    "lstrip": False,
    "normalized": False,
    "rstrip": False,
    "single_word": False,
    "special": True,
}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"added_tokens_decoder": {str(SIZE): LISTED}}},
        {"tokenizer_config.json": {"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]}},
        {"tokenizer_config.json": {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}},
        {"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<img>", "im_end": "<|im_end|>"}}},
        {"tokenizer_config.json": {"image_token": "<img>", "eos_token": "<|im_end|>"}},
        {"tokenizer_config.json": {"eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": True}}},
        {"special_tokens_map.json": {"eos_token": {"content": "<|im_end|>", "rstrip": True}, "pad_token": "<tool>"}},
        {"added_tokens.json": {"<|im_end|>": SIZE, "<tool>": SIZE + 1}},
        {
            "added_tokens.json": {"<|im_end|>": SIZE + 1, "<tool>": SIZE},
            "tokenizer_config.json": {"eos_token": "<|im_end|>"},
        },
    ],
    ids=lambda files: json.dumps(files)[:60],
)
def test_declared_tokens_are_tokens_as_in_transformers(tmp_path: Path, files: dict[str, Any]) -> None:
    tokenizer = _assert_as_transformers(_folder(tmp_path / "model", dict(files)))
    if "<|im_end|>" in json.dumps(files):
        assert tokenizer.decode(tokenizer.encode("a<|im_end|>"), skip_special_tokens=False) == "a<|im_end|>"
        assert len(tokenizer.encode("<|im_end|>", add_special_tokens=False)) == 1


TOKEN = st.sampled_from(["<|im_start|>", "<|im_end|>", "</s>", "<s>", "<tool>", "<img>", "hello", "é"])
FLAG = st.booleans()


@st.composite
def _declared(draw: st.DrawFn, *, typed: bool = False) -> Any:
    content = draw(TOKEN)
    if draw(FLAG):
        return content
    return {"content": content, "lstrip": draw(FLAG), "rstrip": draw(FLAG)} | (
        {"__type": "AddedToken"} if typed else {}
    )


@st.composite
def _files(draw: st.DrawFn) -> dict[str, Any]:
    config: dict[str, Any] = {}
    files: dict[str, Any] = {"tokenizer_config.json": config}
    if draw(FLAG):
        contents = draw(st.lists(TOKEN, max_size=3, unique=True))
        config["added_tokens_decoder"] = {
            str(SIZE + i): LISTED | {"content": content, "special": draw(FLAG), "normalized": draw(FLAG)}
            for i, content in enumerate(contents)
        }
    elif draw(FLAG):
        files["added_tokens.json"] = {content: SIZE + i for i, content in enumerate(draw(st.lists(TOKEN, unique=True)))}
    for name in draw(st.lists(st.sampled_from(["bos_token", "eos_token", "pad_token", "image_token"]), unique=True)):
        config[name] = draw(_declared(typed=True))
    if draw(FLAG):
        files["special_tokens_map.json"] = {
            name: draw(_declared()) for name in draw(st.lists(st.sampled_from(["eos_token", "unk_token"]), unique=True))
        }
    if draw(FLAG):
        config["additional_special_tokens"] = draw(st.lists(TOKEN, max_size=2))
    return files


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=_files())
def test_any_declaration_is_read_as_transformers_reads_it(tmp_path: Path, files: dict[str, Any]) -> None:
    _assert_as_transformers(_folder(tmp_path / "model", files))


def test_a_declaration_that_is_none_names_the_files(tmp_path: Path) -> None:
    files = {"tokenizer_config.json": {"added_tokens_decoder": {"7": 5}}}
    with pytest.raises(ModelLoadError, match=r"tokenizer_config.json.* cannot be read"):
        Tokenizer(_folder(tmp_path, files))
