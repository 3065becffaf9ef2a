"""Which of a model's templates renders: its own by name, one for tools, or the one that the operator chose."""

import json
from pathlib import Path
from typing import Any

import pytest

from baton.errors import ConfigError, InvalidRequest
from baton.template_files import ChatTemplates
from baton.text import Tokenizer

from .router.tokenizer_folder import make_tokenizer_folder

PLAIN = "plain {{ messages[0].content }}"
WITH_TOOLS = "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}{{ messages[0].content }}"
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]


def make_folder(folder: Path, *, entry: Any = None, files: dict[str, str] | None = None) -> Path:
    """Write a tokenizer with an entry in tokenizer_config.json and template files."""
    make_tokenizer_folder(folder, chat_template=entry)
    for name, text in (files or {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


NAMED = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": WITH_TOOLS}]
FILES = {"chat_template.jinja": PLAIN, "additional_chat_templates/tool_use.jinja": WITH_TOOLS}


@pytest.mark.parametrize(
    "how",
    [
        {"entry": NAMED},
        {"files": FILES},
        {"entry": "old", "files": FILES},
        {"entry": PLAIN, "files": {"additional_chat_templates/tool_use.jinja": WITH_TOOLS}},
        {"entry": [*NAMED[1:]], "files": {"chat_template.jinja": PLAIN}},
        {"files": {"chat_template.json": json.dumps({"chat_template": NAMED})}},
    ],
)
def test_the_template_for_tools_renders_when_tools_are_given(tmp_path: Path, how: dict[str, Any]) -> None:
    tokenizer = Tokenizer(make_folder(tmp_path, **how))
    assert tokenizer.decode(tokenizer.render_chat(MESSAGES)) == "plain hi"
    assert tokenizer.decode(tokenizer.render_chat(MESSAGES, tools=TOOLS)) == "look hi"


@pytest.mark.parametrize("how", [{"entry": NAMED}, {"files": FILES}])
def test_transformers_takes_the_same_ones(tmp_path: Path, how: dict[str, Any]) -> None:
    tokenizer = Tokenizer(make_folder(tmp_path, **how))
    for tools in (None, TOOLS):
        theirs = tokenizer.hf.apply_chat_template(MESSAGES, tools=tools, tokenize=False)
        assert tokenizer.decode(tokenizer.render_chat(MESSAGES, tools=tools)) == theirs


def test_a_chosen_template_is_a_name_a_file_or_a_text(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", files=FILES)
    mine = tmp_path / "mine.jinja"
    mine.write_text("mine {{ messages[0].content }}")
    for chosen, shown in (("tool_use", "hi"), (str(mine), "mine hi"), ("{{ messages[0].content }}?", "hi?")):
        tokenizer = Tokenizer(folder, chat_template=chosen)
        assert tokenizer.decode(tokenizer.render_chat(MESSAGES)) == shown


@pytest.mark.parametrize(
    ("chosen", "wrong"),
    [("nowhere.jinja", "neither a file nor the name .* default, tool_use"), ("{% if %}", "is not valid")],
)
def test_a_chosen_template_that_is_none_is_refused_at_start(tmp_path: Path, chosen: str, wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        Tokenizer(make_folder(tmp_path, files=FILES), chat_template=chosen)


def test_a_damaged_list_of_templates_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Tokenizer(make_folder(tmp_path, entry=[{"name": "default"}]))


@pytest.mark.parametrize("sources", [{}, {"tool_use": WITH_TOOLS}, {"a": PLAIN, "b": PLAIN}])
def test_without_a_template_to_take_the_way_out_is_told(sources: dict[str, str]) -> None:
    templates = ChatTemplates(sources, {})
    with pytest.raises(InvalidRequest, match="--chat-template") as refused:
        templates.source(with_tools=False)
    assert all(name in str(refused.value) for name in sources)
    assert ChatTemplates({"only": PLAIN}, {}).source(with_tools=False) == PLAIN
