"""Tokenizer and chat template without `transformers`: the same ids and texts as it gives."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from baton.config import demo_model_path
from baton.errors import InvalidRequest, ModelLoadError
from baton.protocol import SamplingParams
from baton.requests.chat import ChatRequest
from baton.router.config import RouterConfig
from baton.router.openai.parsers.call_parts import Offered
from baton.router.openai.parsers.tool_forms import TOOL_PARSERS
from baton.router.openai.parts import AnswerParts, CallBegins
from baton.router.text_pool import TextPool
from baton.text import AnswerText, Tokenizer

from .tokenizer_folder import make_tokenizer_folder

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Naïve café — 12 é 🙂?"},
    {"role": "assistant", "content": "Yes "},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(make_tokenizer_folder(tmp_path_factory.mktemp("tokenizer")))


@pytest.mark.parametrize(
    "how",
    [
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"add_generation_prompt": False, "continue_final_message": True},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    ],
)
def test_a_rendered_chat_equals_that_of_transformers(tokenizer: Tokenizer, how: dict[str, Any]) -> None:
    theirs = tokenizer.hf.apply_chat_template(
        MESSAGES, tokenize=True, return_dict=False, **({"add_generation_prompt": True} | how)
    )
    assert tokenizer.render_chat(MESSAGES, **how) == theirs


def test_text_becomes_the_ids_that_transformers_gives(tokenizer: Tokenizer) -> None:
    for text in ("Hello world", "", "  naïve 🙂", "<|end|> in text"):
        assert tokenizer.encode(text) == tokenizer.hf(text)["input_ids"]
    assert tokenizer.eos_token_id == tokenizer.hf.eos_token_id


def test_a_template_that_raises_is_the_users_error(tmp_path: Path) -> None:
    folder = make_tokenizer_folder(tmp_path, chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        Tokenizer(folder).render_chat(MESSAGES)


@pytest.mark.parametrize("template", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"])
def test_a_template_reaches_nothing_outside_its_sandbox(tmp_path: Path, template: str) -> None:
    folder = make_tokenizer_folder(tmp_path, chat_template=template)
    with pytest.raises(InvalidRequest):
        Tokenizer(folder).render_chat(MESSAGES)


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"tokenizer.json"):
        Tokenizer(tmp_path)


def test_a_name_that_is_neither_here_nor_on_the_hub_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match=r"tokenizer='someone/nothing' .* hub cannot be reached"):
        Tokenizer("someone/nothing")
    with pytest.raises(ModelLoadError, match=r"tokenizer='\./no/folder' is neither a folder here nor"):
        Tokenizer("./no/folder")


@pytest.mark.parametrize(
    ("params", "end", "expected"),
    [
        (SamplingParams(), "length", ("hello world", None)),
        (SamplingParams(stop="wor"), None, ("hello ", "wor")),
        (SamplingParams(stop=["zzz", "lo w"]), None, ("hel", "lo w")),
        (SamplingParams(stop="wor", include_stop_str_in_output=True), None, ("hello wor", "wor")),
        (SamplingParams(stop="world!"), "length", ("hello world", None)),
        (SamplingParams(stop="hello", min_tokens=3), "length", ("hello world", None)),
        (SamplingParams(detokenize=False), "length", ("", None)),
    ],
)
def test_tokens_become_text_up_to_what_ends_it(
    tokenizer: Tokenizer, params: SamplingParams, end: str | None, expected: tuple[str, str | None]
) -> None:
    answer = AnswerText(tokenizer, [5], params)
    token_ids = tokenizer.encode("hello world")
    text, stop = "", None
    for i, token_id in enumerate(token_ids):
        piece, stop = answer.push(token_id, end if i == len(token_ids) - 1 else None)
        text += piece
        if stop is not None:
            break
    assert (text, stop) == expected


def test_the_token_that_ends_an_answer_is_not_in_its_text(tokenizer: Tokenizer) -> None:
    (last,) = tokenizer.encode("!")
    for includes, expected in ((False, ""), (True, "!")):
        params = SamplingParams(stop_token_ids=(last,), include_stop_str_in_output=includes)
        assert AnswerText(tokenizer, [5], params).push(last, "stop") == (expected, None)


def test_half_a_character_comes_out_when_it_is_whole_or_the_answer_ends(tokenizer: Tokenizer) -> None:
    smile = tokenizer.encode("\N{GRINNING FACE}")
    answer = AnswerText(tokenizer, [5], SamplingParams())
    assert [answer.push(t, None)[0] for t in smile] == [*[""] * (len(smile) - 1), "\N{GRINNING FACE}"]
    cut = AnswerText(tokenizer, [5], SamplingParams())
    assert "\N{REPLACEMENT CHARACTER}" in "".join(
        cut.push(t, "length" if t == smile[1] else None)[0] for t in smile[:2]
    )


def test_loading_a_tokenizer_loads_no_torch(tmp_path: Path) -> None:
    folder = make_tokenizer_folder(tmp_path)
    program = (
        "import sys; from baton.text import Tokenizer; "
        f"t = Tokenizer({str(folder)!r}); t.render_chat([{{'role': 'user', 'content': 'hi'}}]); "
        "bad = {'torch', 'triton', 'transformers'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_chat_has_the_tokenizers_own_special_tokens_only_where_they_are_asked_for() -> None:
    tokenizer = Tokenizer(demo_model_path())

    async def render() -> list[list[int]]:
        pool = TextPool(tokenizer, RouterConfig())
        shown = ChatRequest.model_validate({"messages": [{"role": "user", "content": "hi"}]}).for_template()
        try:
            return [await pool.render_chat(add_special_tokens=add, **shown) for add in (False, True)]
        finally:
            await pool.close()

    without, with_them = asyncio.run(render())
    assert with_them == [*tokenizer.encode(""), *without]
    assert len(with_them) == len(without) + 1


@pytest.mark.parametrize(
    ("template", "named", "ends"),
    [
        ("{% for m in messages %}{{ m.content }}<|user|>\n{% endfor %}", (), ["<|end|>", "<|user|>"]),
        ("{% for m in messages %}{{ m.content + ' <|end|>' }}{% endfor %}", (), ["<|end|>"]),
        ("{% for m in messages %}{{ m.content }}<|user|>{% endfor %}", (7,), [7, "<|end|>"]),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", (), ["<|end|>"]),
        ("{{ raise_exception('no') }}", (), ["<|end|>"]),
        (None, (), ["<|end|>"]),
    ],
)
def test_a_tokenizers_and_a_templates_own_ends_end_answers(
    tmp_path: Path, template: str | None, named: tuple[int, ...], ends: list[Any]
) -> None:
    tokenizer = Tokenizer(make_tokenizer_folder(tmp_path, chat_template=template))
    assert tokenizer.end_token_ids(named) == tuple(
        end if isinstance(end, int) else tokenizer.special_token_id(end) for end in ends
    )


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(stop="<|user|>"), ("hello world", "<|user|>")),
        (SamplingParams(stop=["x", "<|user|>"], include_stop_str_in_output=True), ("hello world<|user|>", "<|user|>")),
        (SamplingParams(stop="<|user|>", skip_special_tokens=False), ("hello world", "<|user|>")),
        (SamplingParams(stop="<|user|>", min_tokens=16), ("hello world!", None)),
        (SamplingParams(stop="world<"), ("hello world!", None)),
    ],
)
def test_a_special_token_is_a_stop_string_though_it_is_not_shown(
    tokenizer: Tokenizer, params: SamplingParams, expected: tuple[str, str | None]
) -> None:
    answer = AnswerText(tokenizer, [5], params)
    text, stop = "", None
    token_ids = tokenizer.encode("hello world<|user|>!")
    for i, token_id in enumerate(token_ids):
        piece, stop = answer.push(token_id, "length" if i == len(token_ids) - 1 else None)
        text += piece
        if stop is not None:
            break
    assert (text, stop) == expected


@pytest.mark.parametrize("is_special", [False, True])
def test_a_calls_marks_reach_its_parser_though_they_are_special_tokens(tmp_path: Path, is_special: bool) -> None:
    folder = make_tokenizer_folder(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    marks = ["<tool_call>", "</tool_call>"] if is_special else []
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"extra_special_tokens": marks}))
    tokenizer = Tokenizer(folder)
    parser = TOOL_PARSERS["hermes"](Offered())
    answer = AnswerParts(AnswerText(tokenizer, [5], SamplingParams(), parser.marks), parser)
    token_ids = tokenizer.encode('Well<|user|> <tool_call>{"name": "f", "arguments": {}}</tool_call>')
    parts = [part for token_id in token_ids for part in answer.push(token_id, None)[0]]
    *text, call = parts
    assert isinstance(call, CallBegins)
    assert ("".join(map(str, text)), call.name, call.arguments) == ("Well ", "f", "{}")
