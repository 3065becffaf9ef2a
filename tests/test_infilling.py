"""A gap is shown in the form that each family learned."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tokenizer_kinds import tokenizer_of
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from baton import infilling
from baton.infilling import infilling_of
from baton.text import Tokenizer

BYTE_LEVEL, LLAMA_2 = "byte-level", "byte fallback with prefix space"


def tokenizer_with(kind: str, form: tuple[str, ...], folder: Path) -> Tokenizer:
    tokenizer = Backend.from_str(tokenizer_of(kind).to_str())  # a copy: the kinds are shared
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in form])
    tokenizer.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


@pytest.mark.parametrize("form", [form for form in infilling._FORMS if len(form) == 3])
def test_a_gap_is_the_text_with_the_familys_tokens_around(form: tuple[str, ...], tmp_path: Path) -> None:
    tokenizer = tokenizer_with(BYTE_LEVEL, form, tmp_path)
    found = infilling_of(tokenizer)
    assert found is not None
    prefix, suffix = "def f(x):\n    ", "\n    return x"
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in (prefix, suffix)]
    assert ids[1] == found.suffix_ids(tokenizer, suffix)
    before, behind, middle = form
    whole = tokenizer.encode(f"{before}{prefix}{behind}{suffix}{middle}", add_special_tokens=False)
    assert found.prompt([], *ids) == whole
    assert found.ends == ()


def test_code_llama_reads_no_space_before_a_suffix_and_ends_with_a_token_of_its_own(tmp_path: Path) -> None:
    form = infilling._FORMS[-1]
    tokenizer = tokenizer_with(LLAMA_2, form, tmp_path)
    found = infilling_of(tokenizer)
    assert found is not None
    assert found.ends == (tokenizer.token_id("▁<EOT>"),)
    assert [tokenizer.token(each) for each in found.suffix_ids(tokenizer, "dd")] == ["d", "d"]
    assert [tokenizer.token(each) for each in tokenizer.encode("dd", add_special_tokens=False)] == ["▁d", "d"]


def test_a_model_without_such_tokens_has_no_form(tmp_path: Path) -> None:
    assert infilling_of(tokenizer_with(BYTE_LEVEL, (), tmp_path)) is None
    assert infilling_of(tokenizer_with(BYTE_LEVEL, infilling._FORMS[0][:2], tmp_path)) is None
