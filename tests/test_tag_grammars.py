"""Structural tags: each kind of format lets come what it says, and nothing else; what is none is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from baton.errors import InvalidRequest
from baton.grammars import check, grammar_of
from baton.structured_outputs import StructuredOutputs

TOKENIZER = LLTokenizer("byte")
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"$ref": "#/$defs/n"}, "unit": {"enum": ["C", "F"]}},
    "$defs": {"n": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
ANY: dict[str, Any] = {"type": "any_text"}
TAGS: dict[str, Any] = {
    "type": "triggered_tags",
    "triggers": ["<f"],
    "tags": [
        {"type": "tag", "begin": "<f=a>", "content": {"type": "json_schema", "json_schema": CITY}, "end": "</f>"},
        {"type": "tag", "begin": "<f=b>", "content": ANY, "end": ["</f>", "</g>"]},
    ],
}
LISTED: dict[str, Any] = {
    "type": "tags_with_separator",
    "separator": ", ",
    "tags": [{"type": "tag", "begin": "<", "content": {"type": "const_string", "value": "q"}, "end": ">"}],
}


def const(value: str) -> dict[str, Any]:
    return {"type": "const_string", "value": value}


def form_of(wanted: Any) -> StructuredOutputs:
    return StructuredOutputs(structural_tag={"type": "structural_tag", "format": wanted})


def takes(wanted: dict[str, Any], text: str) -> bool:
    """Whether a text is a whole answer."""
    form = form_of(wanted)
    check(form)
    matcher = LLMatcher(TOKENIZER, grammar_of(form), log_level=0)
    tokens = TOKENIZER.tokenize_str(text)
    return matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting()


KINDS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    (const("a/b"), ["a/b"], ["a", "c"]),
    ({"type": "json_schema", "json_schema": CITY}, ['{"city": "x"}'], ['{"days": 1}', "{}"]),
    ({"type": "regex", "pattern": r"/[0-9]+\/"}, ["/12/"], ["12"]),
    ({"type": "grammar", "grammar": 'root ::= "x" "y"?'}, ["x", "xy"], ["y"]),
    (ANY, ["", "a\n<b>"], []),
    (
        {"type": "sequence", "elements": [const("<t>"), ANY, const("</t>"), const("!")]},
        ["<t>a<b</t>!"],
        ["<t></t>", "<t>"],
    ),
    (
        {"type": "sequence", "elements": [ANY, {"type": "tag", "begin": "<", "content": const("q"), "end": ">"}]},
        ["so <q>"],
        ["so <r>", "so"],
    ),
    ({"type": "or", "elements": [const("a"), const("b")]}, ["a", "b"], ["ab", ""]),
    ({"type": "optional", "content": const("a")}, ["", "a"], ["aa"]),
    ({"type": "star", "content": const("a")}, ["", "aaa"], ["b"]),
    ({"type": "plus", "content": const("a")}, ["a", "aaa"], [""]),
    ({"type": "tag", "begin": "<", "content": const("q"), "end": [">", "/>"]}, ["<q>", "<q/>"], ["<q"]),
    (TAGS, ["", "hi < f", 'a <f=a>{"city":"x"}</f> b <f=b>any < thing</g>'], ["<f=c>", "<f=a>{}</f>", "<f=b>"]),
    (TAGS | {"stop_after_first": True}, ["hi", "x <f=b></f>"], ["<f=b></f> so"]),
    (TAGS | {"at_least_one": True}, ["<f=b></f> so <f=b></f>"], ["so", ""]),
    (TAGS | {"at_least_one": True, "stop_after_first": True}, ["<f=b></f>"], ["<f=b></f> so"]),
    (LISTED, ["", "<q>", "<q>, <q>"], ["<q>,"]),
    (LISTED | {"at_least_one": True}, ["<q>, <q>"], [""]),
    (LISTED | {"stop_after_first": True}, ["<q>"], ["<q>, <q>"]),
    (
        {"type": "qwen_xml_parameter", "json_schema": CITY},
        [
            "<parameter=city>\nParis <x>\n</parameter>\n<parameter=days>\n3\n</parameter>",
            "<parameter=city></parameter><parameter=unit>C</parameter>",
        ],
        [
            "<parameter=days>3</parameter>",
            "<parameter=city></parameter><parameter=days>x",
            "<parameter=city></parameter><parameter=unit>K",
        ],
    ),
]


@pytest.mark.parametrize(
    ("wanted", "right", "wrong"), KINDS, ids=[f"{i}-{w['type']}" for i, (w, _, _) in enumerate(KINDS)]
)
def test_each_kind_lets_come_what_it_says(wanted: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if not takes(wanted, text)] == []
    assert [text for text in wrong if takes(wanted, text)] == []


@pytest.mark.parametrize(
    ("wanted", "field", "word"),
    [
        (7, "structural_tag", "an object with a type"),
        ({"type": "dispatch"}, "structural_tag.type", "known are const_string"),
        ({"type": ["or"]}, "structural_tag.type", "known are"),
        (const(5), "structural_tag.value", "must be a string"),  # type: ignore[arg-type]
        ({"type": "or", "elements": []}, "structural_tag.elements", "not empty"),
        ({"type": "json_schema", "json_schema": "x"}, "structural_tag.json_schema", "is an object"),
        ({"type": "grammar", "grammar": 'root ::= "a'}, "structural_tag.grammar", "GBNF"),
        ({"type": "any_text", "excludes": ["a"]}, "structural_tag.excludes", "excludes nothing"),
        ({"type": "sequence", "elements": [ANY, ANY]}, "structural_tag.type", "const_string or a tag"),
        ({"type": "tag", "begin": "a", "content": ANY, "end": 5}, "structural_tag.end", "a string"),
        (TAGS | {"triggers": ["<g"]}, "structural_tag", "one of the triggers"),
        ({"type": "qwen_xml_parameter", "json_schema": True}, "structural_tag.json_schema", "with properties"),
        (
            {"type": "qwen_xml_parameter", "json_schema": CITY | {"required": 5}},
            "structural_tag.json_schema.required",
            "list of names",
        ),
        ({"type": "sequence", "elements": [ANY, const("")]}, "structural_tag", "must not be empty"),
    ],
    ids=str,
)
def test_what_is_no_format_is_refused_by_what_is_wrong(wanted: Any, field: str, word: str) -> None:
    with pytest.raises(InvalidRequest, match=word) as caught:
        check(form_of(wanted))
    assert caught.value.field == field


@pytest.mark.parametrize("defined", [5, ["x"], {}])
def test_a_parameter_that_refers_to_nothing_is_any_text(defined: Any) -> None:
    schema = {"properties": {"x": {"$ref": "#/$defs/x"}}, "required": ["x"], "$defs": defined}
    assert takes({"type": "qwen_xml_parameter", "json_schema": schema}, "<parameter=x>a</parameter>")


def test_formats_that_are_too_deep_are_refused() -> None:
    wanted = const("a")
    for _ in range(40):
        wanted = {"type": "optional", "content": wanted}
    with pytest.raises(InvalidRequest, match="32 deep"):
        check(form_of(wanted))
