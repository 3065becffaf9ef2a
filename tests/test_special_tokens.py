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

from . import template_kinds
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


CONTENTS = ["<|im_start|>", "<|im_end|>", "</s>", "<s>", "<tool>", "<img>", "hello", "é"]
TOKEN, FLAG = st.sampled_from(CONTENTS), st.booleans()


@st.composite
def _files(draw: st.DrawFn) -> dict[str, Any]:
    """Write some of the files; a token's flags are the same wherever it stands."""
    forms = {content: draw(st.none() | st.fixed_dictionaries({"lstrip": FLAG, "rstrip": FLAG})) for content in CONTENTS}

    def declared(**more: Any) -> Any:
        content = draw(TOKEN)
        flags = forms[content]
        return content if flags is None else {"content": content, "normalized": False} | flags | more

    config: dict[str, Any] = {}
    files: dict[str, Any] = {"tokenizer_config.json": config}
    if draw(FLAG):
        contents = draw(st.lists(TOKEN, max_size=3, unique=True))
        config["added_tokens_decoder"] = {
            str(SIZE + i): LISTED | {"content": content, "special": draw(FLAG)} | (forms[content] or {})
            for i, content in enumerate(contents)
        }
    elif draw(FLAG):
        files["added_tokens.json"] = {content: SIZE + i for i, content in enumerate(draw(st.lists(TOKEN, unique=True)))}
    for name in draw(st.lists(st.sampled_from(["bos_token", "eos_token", "pad_token", "image_token"]), unique=True)):
        config[name] = declared(__type="AddedToken")
    if draw(FLAG):
        names = draw(st.lists(st.sampled_from(["eos_token", "unk_token"]), unique=True))
        files["special_tokens_map.json"] = {name: declared() for name in names}
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


END_OF_TURN = {
    "chatml": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "qwen2.5": "<|im_end|>",
    "smollm3": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma2": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "phi3": "<|end|>",
    "macro": "<|end|>",
}


@pytest.mark.parametrize("kind", template_kinds.ALL)
def test_a_templates_own_end_of_a_turn_is_found(kind: str, tmp_path: Path) -> None:
    config = {
        "eos_token": "</s>",
        "bos_token": "<s>",
        "extra_special_tokens": [*set(END_OF_TURN.values()), "<|im_start|>", "<start_of_turn>"],
        "chat_template": template_kinds.ALL[kind],
    }
    tokenizer = Tokenizer(_folder(tmp_path / "model", {"tokenizer_config.json": config}))
    ends = dict.fromkeys(["</s>", END_OF_TURN.get(kind, "</s>")])
    assert tokenizer.end_token_ids() == tuple(tokenizer.special_token_id(end) for end in ends)
