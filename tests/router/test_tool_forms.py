"""Calls of functions, by family: as models write them, however the text is cut, broken, cut short or hostile."""

import itertools
import json
import random
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from tests import template_kinds

from baton.errors import ConfigError
from baton.grammars import check, grammar_of
from baton.requests.tool_choice import forced_calls
from baton.requests.tools import FunctionDefinition, Tool
from baton.router.config import RouterConfig
from baton.router.openai import answer_forms
from baton.router.openai.answer_forms import AnswerForms
from baton.router.openai.parsers.call_parts import Offered
from baton.router.openai.parsers.first_call import FirstCall
from baton.router.openai.parsers.forced_calls import new_forced_parser
from baton.router.openai.parsers.strict_calls import STRICT_FORMS, strict_form
from baton.router.openai.parsers.tool_forms import TOOL_PARSERS, tool_form_of
from baton.router.openai.parts import AnswerParser, CallArguments, CallBegins, Part, Reasoning
from baton.text import Tokenizer

from .tokenizer_folder import make_tokenizer_folder

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "deep": {"type": "object"},
        "on": {"type": ["boolean", "null"]},
        "kind": {"anyOf": [{"type": "string"}, {"type": "number"}]},
        "unit": {"enum": ["C", "F"]},
        "at": {},
    },
}
FUNCTIONS = {"weather": SCHEMA, "now": {}, "a.b": {}}
WHOLE, STREAMED = Offered(FUNCTIONS), Offered(FUNCTIONS, streams=True)
ARGUMENTS = '{"city": "Paris", "days": 3}'


def joined(parts: list[Part]) -> list[Any]:
    """Return parts with texts joined and calls whole, without their ids."""
    shown: list[Any] = []
    places: list[int] = []
    for part in parts:
        if isinstance(part, CallBegins):
            assert part.index == len(places)
            assert part.call_id
            places.append(len(shown))
            shown.append((part.name, part.arguments))
        elif isinstance(part, CallArguments):
            name, arguments = shown[places[part.index]]
            shown[places[part.index]] = (name, arguments + part.arguments)
        elif shown and isinstance(part, str) and isinstance(shown[-1], str):
            shown[-1] += part
        elif shown and isinstance(part, Reasoning) and isinstance(shown[-1], Reasoning):
            shown[-1] = Reasoning(shown[-1].text + part.text)
        else:
            shown.append(part)
    return shown


def read(parser: AnswerParser, pieces: list[str]) -> list[Any]:
    return joined([part for piece in pieces for part in parser.push(piece, 0)] + parser.finish())


def parse(name: str, text: str, offered: Offered = WHOLE) -> list[Any]:
    """Return the parts of a text."""
    return read(TOOL_PARSERS[name](offered), [text])


TWO = [("weather", ARGUMENTS), ("now", "{}")]
SAID: list[tuple[str, str, list[Any]]] = [
    (
        "hermes",
        f'Well <tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>\n<tool_call>{{"name": "now"}}</tool_call>\n',
        ["Well ", *TWO],
    ),
    (
        "granite",
        f'<|tool_call|>[{{"name": "weather", "arguments": {ARGUMENTS}}}, {{"name": "now", "arguments": {{}}}}]',
        TWO,
    ),
    (
        "granite-20b-fc",
        f'<function_call> {{"name": "weather", "arguments": {ARGUMENTS}}} <function_call> {{"name": "now"}}',
        TWO,
    ),
    ("llama3_json", f'{{"name": "weather", "parameters": {ARGUMENTS}}}; {{"name": "now", "parameters": {{}}}}', TWO),
    ("llama3_json", f'<|python_tag|>{{"type": "function", "name": "weather", "parameters": {ARGUMENTS}}}', TWO[:1]),
    (
        "internlm",
        f'Well <|action_start|><|plugin|>\n{{"name": "weather", "parameters": {ARGUMENTS}}}<|action_end|>',
        ["Well ", TWO[0]],
    ),
    ("jamba", f'<tool_calls>[{{"name": "weather", "arguments": {ARGUMENTS}}}, {{"name": "now"}}]</tool_calls>', TWO),
    (
        "minimax",
        f'<tool_calls>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n{{"name": "now"}}\n</tool_calls>',
        TWO,
    ),
    (
        "phi4_mini_json",
        f'functools[{{"name": "weather", "arguments": {ARGUMENTS}}}, {{"name": "now", "arguments": {{}}}}]',
        TWO,
    ),
    ("xlam", f'[{{"name": "weather", "arguments": {ARGUMENTS}}}, {{"name": "now", "arguments": {{}}}}]', TWO),
    ("xlam", f'Well ```json\n[{{"name": "weather", "arguments": {ARGUMENTS}}}]\n```', ["Well ", TWO[0]]),
    (
        "mistral",
        f'[TOOL_CALLS] [{{"name": "weather", "arguments": {ARGUMENTS}}}, {{"name": "now", "arguments": {{}}}}]',
        TWO,
    ),
    ("mistral", f"Well [TOOL_CALLS]weather{ARGUMENTS}[TOOL_CALLS]now{{}}", ["Well ", *TWO]),
    ("mistral", f"[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{ARGUMENTS}", TWO[:1]),
    ("pythonic", '[weather(city="Paris", days=3), now()]', TWO),
    ("llama4_pythonic", "<|python_start|>[weather(city='Paris', days=3), now()]<|python_end|>", TWO),
    ("lfm2", 'Well <|tool_call_start|>[weather(city="Paris", days=3), now()]<|tool_call_end|>', ["Well ", *TWO]),
    ("olmo3", '<function_calls>\nweather(city="Paris", days=3)\nnow()\n</function_calls>', TWO),
    (
        "deepseek_v3",
        f"Well <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{ARGUMENTS}\n```<｜tool▁call▁end｜>\n"
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ["Well ", *TWO],
    ),
    (
        "deepseek_v31",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{ARGUMENTS}<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        TWO,
    ),
    (
        "kimi_k2",
        "Well <|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
        f"{ARGUMENTS}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{{}}<|tool_call_end|>"
        "<|tool_calls_section_end|>",
        ["Well ", *TWO],
    ),
    (
        "qwen3_coder",
        "Well <tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        ["Well ", *TWO],
    ),
    (
        "qwen3_xml",
        "<function=weather><parameter=city>Paris</parameter><parameter=days>3</parameter></function></tool_call>",
        TWO[:1],
    ),
    (
        "glm45",
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3"
        "</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
        TWO,
    ),
    (
        "seed_oss",
        "<seed:tool_call><function=weather><parameter=city>Paris</parameter><parameter=days>3</parameter></function>"
        "</seed:tool_call>",
        TWO[:1],
    ),
    (
        "minimax_m2",
        '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Paris</parameter>\n<parameter name="days">3'
        '</parameter>\n</invoke>\n<invoke name="now">\n</invoke>\n</minimax:tool_call>',
        TWO,
    ),
    (
        "deepseek_v32",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">Paris'
        '</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        "</｜DSML｜function_calls>",
        TWO[:1],
    ),
    (
        "step3",
        '<｜tool_calls_begin｜><｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="weather"><steptml:parameter '
        'name="city">Paris</steptml:parameter><steptml:parameter name="days">3</steptml:parameter></steptml:invoke>'
        "<｜tool_call_end｜><｜tool_calls_end｜>",
        TWO[:1],
    ),
    (
        "openai",
        "<|channel|>commentary<|message|>Well <|end|><|start|>assistant<|channel|>commentary to=functions.weather "
        f"<|constrain|>json<|message|>{ARGUMENTS}<|call|>",
        ["Well ", TWO[0]],
    ),
    ("openai", f" to=functions.weather<|channel|>commentary json<|message|>{ARGUMENTS}", TWO[:1]),
]


@pytest.mark.parametrize(("name", "text", "parts"), SAID, ids=[f"{name}-{i}" for i, (name, _, _) in enumerate(SAID)])
def test_calls_are_read_as_each_family_writes_them(name: str, text: str, parts: list[Any]) -> None:
    for shown in (parse(name, text), parse(name, text, STREAMED), read(TOOL_PARSERS[name](STREAMED), list(text))):
        assert _spaced(shown) == parts


@pytest.mark.parametrize(
    ("name", "text"),
    [(name, text) for name, text, _ in SAID],
    ids=[f"{name}-{i}" for i, (name, _, _) in enumerate(SAID)],
)
def test_a_call_that_is_cut_short_loses_none_of_its_text(name: str, text: str) -> None:
    """Whole answers show it as text, unless only closing tags are missing."""
    for end in range(len(text)):
        parts = parse(name, text[:end])
        assert all(json.loads(part[1]) is not None for part in parts if isinstance(part, tuple))
        said = "".join(part for part in parts if isinstance(part, str))
        if not any(isinstance(part, tuple) for part in parts) and name != "openai":
            skipped = [*TOOL_PARSERS[name](WHOLE).marks]
            assert _without(said, skipped) == _without(text[:end], skipped)


def _spaced(parts: list[Any]) -> list[Any]:
    """Return parts with arguments as Python writes JSON, which some parsers write anew."""
    return [(part[0], json.dumps(json.loads(part[1]))) if isinstance(part, tuple) else part for part in parts]


def _without(text: str, tags: list[str]) -> str:
    for tag in sorted(tags, key=len, reverse=True):
        text = text.replace(tag, "")
    return text


WORDS = sorted(
    {word for _, text, _ in SAID for word in text.replace("<", "\0<").replace(">", ">\0").split("\0") if word}
)
OTHERS = ["<", ">", "{", "}", "[", "]", '"', "\\", "(", " ", "\n", "a", "```", "=", "</", "name", "<|"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(WORDS + OTHERS), max_size=12), st.booleans(), st.data())
def test_a_text_has_the_same_parts_however_it_is_cut(words: list[str], streams: bool, data: st.DataObject) -> None:
    text = "".join(words)
    edges = [0, *sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8))), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    offered = STREAMED if streams else WHOLE
    for name, new_parser in TOOL_PARSERS.items():
        assert read(new_parser(offered), pieces) == parse(name, text, offered), name


@pytest.mark.parametrize("name", TOOL_PARSERS)
def test_a_long_and_hostile_text_is_read_to_its_end(name: str) -> None:
    """Nested, opened again and again, or never closed."""
    opens = TOOL_PARSERS[name](WHOLE).marks[:1] or ("[",)
    for word in (opens[0], "[", '{"name": "weather", "arguments": {', "weather(", '"', "\\", "<function=weather>", " "):
        for offered in (WHOLE, STREAMED):
            text = opens[0] + word * (60_000 // len(word))
            parts = read(TOOL_PARSERS[name](offered), [text[i : i + 40] for i in range(0, len(text), 40)])
            assert sum(len(part) for part in parts if isinstance(part, str)) <= len(text)


# -- one family, in detail ------------------------------------------------------------------------------------


CALL = '<tool_call>{"name": "sum", "arguments": {"a": 1}}</tool_call>'


@pytest.mark.parametrize("offered", [WHOLE, STREAMED])
def test_arguments_are_passed_on_as_the_model_wrote_them(offered: Offered) -> None:
    for arguments in (
        '{"id":123456789012345678901234,"x":1.10}',
        '{ "a" : [1e5,\n -0.0] }',
        '{"s": "\\u00e9\\/ \\"}"}',
    ):
        text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
        assert parse("hermes", text, offered) == [("f", arguments)]
    assert parse("hermes", '<tool_call>{"name": "f", "arguments": [1, 2]}</tool_call>', offered) == [("f", "[1, 2]")]
    assert parse("hermes", '<tool_call>{"name": "f", "arguments": "x"}</tool_call>', offered) == [("f", "x")]


def test_arguments_of_a_stream_come_while_they_are_written() -> None:
    parser = TOOL_PARSERS["hermes"](STREAMED)
    pieces = ['<tool_call>{"name": "f", "arg', 'uments": ', '{"a": "', "long ", 'text"', "}", "}</tool_call>"]
    parts = [parser.push(piece, 0) for piece in pieces]
    assert parts[:2] == [[], []]
    assert isinstance(parts[2][0], CallBegins)
    assert [part.arguments for each in parts for part in each if isinstance(part, CallArguments)] == [
        '{"a": "',
        "long ",
        'text"',
        "}",
    ]


def test_parameters_are_taken_for_arguments_and_nothing_for_no_arguments() -> None:
    assert parse("hermes", '<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>') == [("f", '{"a": 1}')]
    for nothing in ("", ', "arguments": null', ', "arguments": {}'):
        assert parse("hermes", f'<tool_call>{{"name": "f"{nothing}}}</tool_call>') == [("f", "{}")]
    assert parse("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', STREAMED) == [
        ("f", '{"a": 1}')
    ]


def test_who_wants_one_call_gets_the_first() -> None:
    for text, parts in (
        (f"Well {CALL}\n{CALL}\n{CALL} ok", ["Well ", ("sum", '{"a": 1}'), " ok"]),
        (f'{CALL}<tool_call>{{"name": "f"}}', [("sum", '{"a": 1}')]),
    ):
        assert read(FirstCall(TOOL_PARSERS["hermes"](WHOLE)), [text]) == parts
        assert read(FirstCall(TOOL_PARSERS["hermes"](STREAMED)), [text]) == parts


def test_white_space_after_a_call_is_shown_only_before_text() -> None:
    assert parse("hermes", f"{CALL}\n{CALL}\n") == [("sum", '{"a": 1}'), ("sum", '{"a": 1}')]
    assert parse("hermes", f"{CALL}\nSo be it") == [("sum", '{"a": 1}'), "\nSo be it"]


@pytest.mark.parametrize("offered", [WHOLE, STREAMED])
def test_what_is_no_call_stays_text(offered: Offered) -> None:
    for text in (
        "<tool_call>{nonsense}</tool_call>",
        "<tool_call>[1]</tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>" + "[" * 9999,
        "<tool_call>{",
        "a <tool",
        "",
    ):
        assert "".join(parse("hermes", text, offered)) == text


def test_broken_arguments_of_a_whole_answer_are_text() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": oops}}</tool_call>'
    assert parse("hermes", text) == [text]
    assert parse("hermes", text, STREAMED) == [("f", '{"a": oops}')]  # it was shown while it was written


def test_an_answer_that_ends_in_place_of_the_closing_tag_is_a_call() -> None:
    assert parse("hermes", '<tool_call>{"name": "f"}') == [("f", "{}")]


def test_a_call_that_never_ends_is_given_up_as_text() -> None:
    parser = TOOL_PARSERS["hermes"](STREAMED)
    text = "<tool_call>" + "x" * (1 << 20)
    for piece in ("<tool_call>", *["x" * 16] * (1 << 16)):
        assert parser.push(piece, 0) == []
    assert parser.push("y" * 1025, 0) == [text + "y" * 1025]


def test_an_answer_that_only_looks_like_calls_is_text_and_streams() -> None:
    """Where calls need no tag."""
    for name, text in (
        ("llama3_json", '{"name": "Alice", "parameters": {}}'),
        ("llama3_json", '{"age": 7, "name": "now"}'),
        ("pythonic", "[1, 2, 3]"),
        ("pythonic", "[link](https://a.b)"),
        ("xlam", "[1, 2]"),
    ):
        assert parse(name, text) == [text]
        parser = TOOL_PARSERS[name](STREAMED)
        assert read(parser, list(text)) == [text]
    parser = TOOL_PARSERS["llama3_json"](STREAMED)
    assert [part for piece in ('{"a', 'ge": 7') for part in parser.push(piece, 0)] == ['{"age": 7']


def test_ids_are_such_as_templates_take_back() -> None:
    (call,) = TOOL_PARSERS["mistral"](STREAMED).push("[TOOL_CALLS]now{", 0)[:1]
    assert isinstance(call, CallBegins)
    assert len(call.call_id) == 9
    text = "<|tool_call_begin|>functions.now:7<|tool_call_argument_begin|>"
    (call,) = TOOL_PARSERS["kimi_k2"](STREAMED).push(text, 0)
    assert isinstance(call, CallBegins)
    assert (call.name, call.call_id) == ("now", "functions.now:7")


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("city", "3", "3"),
        ("city", "null", "null"),
        ("city", " two\nlines ", " two\nlines "),
        ("days", " 3 ", 3),
        ("days", "three", "three"),
        ("days", "1.10", 1.1),
        ("deep", '{"a": [1]}', {"a": [1]}),
        ("deep", "{broken", "{broken"),
        ("on", "True", True),
        ("on", "null", None),
        ("kind", "2.5", 2.5),
        ("kind", "two", "two"),
        ("unit", "C", "C"),
        ("at", "[1]", [1]),
        ("at", "x", "x"),
        ("other", "false", False),
        ("other", '"q"', "q"),
    ],
)
def test_bare_values_get_the_types_of_the_schema(key: str, written: str, value: Any) -> None:
    text = f"<tool_call><function=weather><parameter={key}>\n{written}\n</parameter></function></tool_call>"
    ((_, arguments),) = parse("qwen3_coder", text)
    assert json.loads(arguments) == {key: value}


def test_python_is_read_and_never_run() -> None:
    deep = {"s": 'a"\n', "n": -1.5, "l": [1, [True, None]], "d": {"k": "v"}, "j": False}
    ((name, arguments),) = parse("pythonic", "[a.b(s='a\"\\n', n=-1.5, l=(1, [True, None]), d={'k': 'v'}, j=false)]")
    assert (name, json.loads(arguments)) == ("a.b", deep)
    for text in (
        "[now(x=__import__('os').getcwd())]",
        "[now(x=1+1)]",
        "[now(*[1])]",
        "[now(**{})]",
        "[now(1)]",
        "[now(x=f'{1}')]",
        "[now(x={1: 2})]",
        "[now() for x in y]",
        "[now(x=b'1')]",
        f"[now(x={'[' * 60}{']' * 60})]",
        f"[now(x='{'a' * 40_000}')]",
        f"[now(x={'9' * 5000})]",
        "[now(x='\\ud800')]",
        "[now()",
    ):
        assert parse("pythonic", text) == [text]


def test_harmony_tells_thoughts_apart_only_where_it_reads_them() -> None:
    text = "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>final<|message|>Hi"
    from baton.router.openai.parsers.harmony import HarmonyParser

    assert read(HarmonyParser(None), list(text)) == [Reasoning("One."), "Hi"]
    assert parse("openai", text) == ["One.Hi"]
    assert read(HarmonyParser(None), ["Hi there"]) == ["Hi there"]
    call = "<|channel|>commentary to=functions.now<|message|>{}<|call|>"
    assert read(HarmonyParser(None), [call]) == ["{}"]
    assert parse("openai", call.replace("{}", "{oops")) == ["{oops"]


# -- which form ------------------------------------------------------------------------------------------------


def test_a_form_is_chosen_by_the_template() -> None:
    for template, name in (
        (template_kinds.QWEN3, "hermes"),
        (template_kinds.LLAMA3, "llama3_json"),
        (template_kinds.MISTRAL, "mistral"),
        (template_kinds.CHATML, "hermes"),
        ("{{ '<tool_call>\\n<function=f>' }}", "qwen3_coder"),
        ("{{ '<｜tool▁sep｜>' + name + '\\n' + '```json' }}", "deepseek_v3"),
        ("{{ name + '<｜tool▁sep｜>' }}", "deepseek_v31"),
        ("{{ '<|start|>assistant<|channel|>final' }}", "openai"),
    ):
        assert tool_form_of(template) == name


def test_a_form_is_chosen_by_its_name_or_comes_as_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(make_tokenizer_folder(tmp_path))

    def forms(name: str) -> AnswerForms:
        return AnswerForms(RouterConfig(tool_call_parser=name), tokenizer)

    assert forms("auto").calls is TOOL_PARSERS["hermes"]
    assert forms("glm45").calls is TOOL_PARSERS["glm45"]
    assert forms("none").calls is None
    with pytest.raises(ConfigError, match=r"tool_call_parser='mine' is not known.*hermes"):
        forms("mine")
    plugin = EntryPoint("mine", f"{FirstCall.__module__}:FirstCall", "baton.tool_parsers")
    monkeypatch.setattr(answer_forms, "entry_points", lambda **chosen: EntryPoints([plugin]).select(**chosen))
    plugged: Any = forms("mine").calls
    assert plugged is FirstCall


# -- forced ----------------------------------------------------------------------------------------------------


def forced(text: str, choice: Any, pieces: int = 1) -> list[Any]:
    tools = [Tool.model_validate({"type": "function", "function": {"name": name}}) for name in FUNCTIONS]
    calls = forced_calls(choice, tools)
    assert calls is not None
    return read(new_forced_parser(calls, STREAMED), list(text) if pieces > 1 else [text])


@pytest.mark.parametrize("pieces", [1, 2])
def test_forced_calls_are_json_whatever_the_models_form(pieces: int) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    assert forced(ARGUMENTS, named, pieces) == [("weather", ARGUMENTS)]
    assert forced('{"city": "Pa', named, pieces) == [("weather", '{"city": "Pa')]  # as far as it came
    text = f'[{{"name": "weather", "parameters": {ARGUMENTS}}}, {{"name": "now", "parameters": {{}}}}]'
    assert forced(text, "required", pieces) == TWO


STRICT = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "on": {"type": "boolean"},
        "to": {"type": "object", "properties": {"x": {"$ref": "#/$defs/x"}}, "additionalProperties": False},
    },
    "$defs": {"x": {"enum": [1, "a"]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
UNBOUND = {"olmo3", "openai", "step3", "xlam"}
"""Families whose calls no grammar is made of."""
BEGINNINGS = {
    **dict.fromkeys(("llama3_json", "llama4_json"), "{"),
    **dict.fromkeys(("pythonic", "llama4_pythonic"), "["),
    **dict.fromkeys(("deepseek_v3", "deepseek_v31"), "<｜tool▁calls▁begin｜>"),
    "kimi_k2": "<|tool_calls_section_begin|>",
}
"""Of calls, where it is not the parser's first tag."""
OTHERWISE = {
    text for _, text, _ in SAID if "[CALL_ID]" in text or '"type"' in text or "='" in text or text.startswith("<func")
}
"""As models write too, but not where they are held to a schema."""


def test_calls_of_every_other_family_can_be_held_to_a_schema() -> None:
    assert TOOL_PARSERS.keys() - STRICT_FORMS.keys() == UNBOUND


@pytest.mark.parametrize("family", STRICT_FORMS)
def test_whatever_a_strict_form_lets_come_is_read_as_a_valid_call(family: str) -> None:
    """Draws what the form allows behind the beginning of a call, as a model that knows nothing would."""
    form = strict_form(family, [FunctionDefinition.model_validate({"name": "f", "parameters": STRICT, "strict": True})])
    assert form is not None
    check(form)
    drawn, tokenizer = random.Random(family), LLTokenizer("byte")
    for _ in range(4):
        matcher = LLMatcher(tokenizer, grammar_of(form))
        text = tokenizer.tokenize_str(BEGINNINGS.get(family) or TOOL_PARSERS[family](WHOLE).marks[0])
        assert matcher.consume_tokens(text), matcher.get_error()
        while not matcher.is_accepting():
            assert len(text) < 2000, bytes(text)
            mask = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            text.append(drawn.choice([int(token) for token in np.flatnonzero(mask)]))
            assert matcher.consume_token(text[-1])
        parts = parse(family, bytes(text).decode(), Offered({"f": STRICT}))
        assert [part[0] for part in parts] == ["f"] * len(parts), bytes(text).decode()
        for _, arguments in parts:
            jsonschema.validate(json.loads(arguments), STRICT)


@pytest.mark.parametrize("text", sorted({text for name, text, _ in SAID if name in STRICT_FORMS} - OTHERWISE))
def test_a_strict_form_takes_calls_as_each_family_writes_them(text: str) -> None:
    family = next(name for name, said, _ in SAID if said == text)
    form = strict_form(
        family, [FunctionDefinition.model_validate({"name": "weather", "parameters": STRICT, "strict": True})]
    )
    assert form is not None
    tokenizer = LLTokenizer("byte")
    tokens = tokenizer.tokenize_str(text[: text.index("3") + 1])
    assert LLMatcher(tokenizer, grammar_of(form)).validate_tokens(tokens) == len(tokens)


def test_a_strict_function_is_called_as_its_schema_says_and_text_is_free() -> None:
    tools = [{"name": "weather", "parameters": SCHEMA | {"required": ["days"]}, "strict": True}, {"name": "now"}]
    functions = [FunctionDefinition.model_validate(tool) for tool in tools]
    assert strict_form("openai", functions) is None
    assert strict_form("hermes", functions[1:]) is None
    form = strict_form("hermes", functions)
    assert form is not None
    check(form)
    for text, fits in (
        ("Well, <tool> it is.", True),
        ('Well <tool_call>\n{"name": "weather", "arguments": {"days": 3}}\n</tool_call> so', True),
        ('<tool_call>\n{"name": "weather", "arguments": {"days": "three', False),
        ('<tool_call>\n{"name": "weather", "arguments": {}}', False),
        ('<tool_call>\n{"name": "now", "arguments": {"x": 1}}\n</tool_call>', True),
        ('<tool_call>\n{"name": "other"', False),
    ):
        tokenizer = LLTokenizer("byte")
        matcher = LLMatcher(tokenizer, grammar_of(form))
        tokens = tokenizer.tokenize_str(text)
        assert (matcher.validate_tokens(tokens) == len(tokens)) == fits, text
        if fits:
            assert all(json.loads(part[1]) is not None for part in parse("hermes", text) if isinstance(part, tuple))
