"""Where a request leaves sampling out, the model's generation_config.json holds, or what was given over it."""

import json
from pathlib import Path
from typing import Any

import pytest

from baton.errors import ConfigError
from baton.generation_defaults import generation_defaults


def _folder(folder: Path, **content: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return folder


def test_a_models_own_defaults_hold(tmp_path: Path) -> None:
    folder = _folder(tmp_path, do_sample=True, top_k=1, temperature=0.6, eos_token_id=[2], max_new_tokens=7, top_p=None)
    assert generation_defaults(folder) == {"top_k": 1, "temperature": 0.6}
    assert generation_defaults(folder, override='{"temperature": 0.1, "min_p": 0.2}') == {
        "top_k": 1,
        "temperature": 0.1,
        "min_p": 0.2,
    }
    assert generation_defaults(folder, "none", {"top_p": 0.5}) == {"top_p": 0.5}
    assert generation_defaults(folder, "vllm") == {}


def test_a_model_that_does_not_sample_takes_the_likeliest_token(tmp_path: Path) -> None:
    assert generation_defaults(_folder(tmp_path, do_sample=False, top_p=0.3)) == {"temperature": 0.0}


def test_a_model_without_the_file_has_none(tmp_path: Path) -> None:
    assert generation_defaults(tmp_path) == generation_defaults(tmp_path / "nowhere") == {}


def test_another_folder_may_hold_the_file(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert generation_defaults(tmp_path, str(_folder(other, min_p=0.5))) == {"min_p": 0.5}


@pytest.mark.parametrize(
    ("source", "override", "said"),
    [
        ("auto", '{"temperature": -1}', r"override_generation_config: temperature=-1 is not valid"),
        ("auto", "{", r"override_generation_config='{' is not valid: .*Give JSON"),
        ("auto", "[]", r"override_generation_config='\[\]' is not valid: it must be an object"),
        ("auto", '{"max_new_tokens": 5}', r"max_new_tokens.*some of temperature, top_p"),
        ("nowhere", None, r"generation_config='nowhere' is not valid.*Give a folder"),
    ],
)
def test_what_cannot_hold_is_refused(tmp_path: Path, source: str, override: str | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        generation_defaults(tmp_path, source, override)
    with pytest.raises(ConfigError, match=r"generation_config.json.*top_p"):
        generation_defaults(_folder(tmp_path, top_p=0))
