"""A conversation reaches every kind of template whole, or what is left out is refused by name."""

import functools
import itertools
import json
from typing import Any
from unittest.mock import Mock

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.chat_template import ChatTemplate, ContentFormat, TemplateRefused

from . import template_kinds as kinds

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
QUESTION = "What is 2+2?"
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "abcdefghi", "type": "function", "function": {"name": "get_sum", "arguments": '{"a": 2}'}}],
}
TOOLS = [{"type": "function", "function": {"name": "get_sum", "parameters": {"type": "object", "properties": {}}}}]


def parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


def user(content: Any = QUESTION) -> dict[str, Any]:
    return {"role": "user", "content": content}


def render(source: str, *messages: dict[str, Any], how: ContentFormat = "auto", **options: Any) -> str:
    return ChatTemplate(source, TOKENS, how).render(messages, **options)


def refusal(source: str, *messages: dict[str, Any], **options: Any) -> TemplateRefused:
    with pytest.raises(TemplateRefused) as refused:
        render(source, *messages, **options)
    return refused.value


@pytest.mark.parametrize("name", kinds.ALL)
def test_one_part_and_its_text_are_the_same_prompt(name: str) -> None:
    source = kinds.ALL[name]
    text = render(source, user(), {"role": "assistant", "content": "4"}, user("And 3+3?"))
    assert QUESTION in text
    assert text == render(source, user(parts(QUESTION)), {"role": "assistant", "content": parts("4")}, user("And 3+3?"))


@pytest.mark.parametrize("name", kinds.TAKE_TEXT)
def test_parts_are_joined_for_a_template_that_takes_text(name: str) -> None:
    source = kinds.TAKE_TEXT[name]
    assert render(source, user(parts("one", "two"))) == render(source, user("one\ntwo"))


@pytest.mark.parametrize("name", kinds.TAKE_BOTH)
def test_parts_are_left_to_a_template_that_takes_them(name: str) -> None:
    assert "onetwo" in render(kinds.TAKE_BOTH[name], user(parts("one", "two")))


def test_text_becomes_a_part_for_a_template_that_takes_parts_alone() -> None:
    assert render(kinds.PARTS_ALONE, user()) == f"USER: {QUESTION}<end_of_utterance>\nASSISTANT:"


@pytest.mark.parametrize("name", ["qwen3", "qwen2.5", "llama3", "mistral", "deepseek", "macro"])
def test_a_tools_result_in_parts_is_its_text(name: str) -> None:
    def result(content: Any) -> dict[str, Any]:
        return {"role": "tool", "tool_call_id": "abcdefghi", "content": content}

    source = kinds.ALL[name]
    conversation = [user()] if name == "macro" else [user(), CALL]
    text = render(source, *conversation, result("it is 4"))
    assert "it is 4" in text
    assert "'text'" not in text
    assert text == render(source, *conversation, result(parts("it is 4")))


def test_the_form_of_content_can_be_told() -> None:
    assert "one\ntwo" in render(kinds.PARTS_IN_A_MACRO, user(parts("one", "two")), how="string")
    shown = "{{ messages[0].content }}"
    assert render(shown, user("x"), how="openai") == "[{'type': 'text', 'text': 'x'}]"


@pytest.mark.parametrize("name", ["qwen3", "qwen2.5", "llama2", "mistral", "deepseek", "gemma3"])
def test_a_developer_is_the_system_where_the_template_has_no_other_place(name: str) -> None:
    source = kinds.ALL[name]
    text = render(source, {"role": "developer", "content": "Be brief."}, user())
    assert "Be brief." in text
    assert text == render(source, {"role": "system", "content": "Be brief."}, user())


def test_a_developer_whom_the_template_shows_stays_one() -> None:
    assert "<|developer|># Instr" in render(kinds.KNOWS_DEVELOPERS, {"role": "developer", "content": "x"}, user())
    assert "<|im_start|>developer" in render(kinds.CHATML, {"role": "developer", "content": "x"}, user())


@pytest.mark.parametrize(
    ("name", "role"), [("qwen3", "function"), ("deepseek", "function"), ("phi3", "system"), ("phi3", "developer")]
)
def test_a_role_that_the_template_drops_is_refused_by_name(name: str, role: str) -> None:
    error = refusal(kinds.ALL[name], user(), {"role": role, "name": "f", "content": "a"}, user())
    assert error.field == "messages[1].role"
    assert f"messages[1].role={role!r} is not valid" in str(error)
    assert "--chat-template" in str(error)


def test_a_message_without_text_may_be_dropped() -> None:
    assert render(kinds.PHI3, {"role": "system", "content": " "}, user()) == render(kinds.PHI3, user())


def test_what_the_template_itself_refuses_is_told_in_its_words() -> None:
    assert "System role not supported" in str(refusal(kinds.GEMMA2, {"role": "developer", "content": "x"}, user()))
    assert "roles must alternate" in str(refusal(kinds.LLAMA2, user(), user()))


def test_a_message_that_is_lost_where_it_stands_is_refused() -> None:
    system = [{"role": "system", "content": f"Rule {i}."} for i in range(2)]
    assert "Rule 1." in render(kinds.DEEPSEEK_R1, system[1], user())
    assert refusal(kinds.DEEPSEEK_R1, *system, user()).field == "messages[0].content"
    assert refusal(kinds.SMOLLM3, user(), system[0], user()).field == "messages[1].content"


def test_no_part_is_lost_on_a_template_that_reads_the_first_alone() -> None:
    text = render(kinds.GEMMA3, {"role": "system", "content": parts("Be brief.", "Be kind.")}, user())
    assert "Be brief.\nBe kind." in text


def test_text_that_a_template_changes_is_not_lost() -> None:
    quoted = 'He said "no"\n\tand left'
    assert json.dumps(quoted) in render(kinds.LLAMA3, user(), CALL, {"role": "tool", "content": quoted})
    assert "A-B" in render("{{ messages[0].content | replace(' ', '-') }}", user("A B"))
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nFour."}
    assert "hm" not in render(kinds.QWEN3, user(), thought, user("Sure?"))


@pytest.mark.parametrize("name", ["chatml", "phi3", "gemma2", "llama2", "deepseek", "gemma3"])
def test_tools_without_a_place_are_refused(name: str) -> None:
    error = refusal(kinds.ALL[name], user(), tools=TOOLS)
    assert error.field == "tools"
    assert "no place for tools" in str(error)


@pytest.mark.parametrize("name", ["qwen3", "qwen2.5", "llama3", "mistral"])
def test_tools_reach_a_template_that_has_a_place(name: str) -> None:
    assert "get_sum" in render(kinds.ALL[name], user(), tools=TOOLS)


@pytest.mark.parametrize("name", ["qwen3", "qwen2.5", "llama3", "mistral", "deepseek"])
def test_a_call_without_content_is_shown(name: str) -> None:
    text = render(kinds.ALL[name], user(), CALL, {"role": "tool", "tool_call_id": "abcdefghi", "content": "4"})
    assert "get_sum" in text
    assert '{"a": 2}' in text
    assert "None" not in text


def test_calls_without_a_place_are_refused() -> None:
    assert refusal(kinds.CHATML, user(), CALL).field == "messages[1].tool_calls"
    for_tools = render(kinds.SMOLLM3, user(), CALL, {"role": "tool", "content": "it is 4"})
    assert "it is 4" in for_tools  # made so, for a model that knows tools
    assert "assistant\n<|im_end|>" in render(kinds.CHATML, user(), {"role": "assistant", "content": None}, user())


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"id": 123456789012345678901234, "x": 1.10}', '{"id": 123456789012345678901234, "x": 1.10}'),
        ('{"x":1e5,"y":[-0, 1E400, 0.30]}', '{"x": 1e5, "y": [-0, 1E400, 0.30]}'),
        ('{"n": %s}' % ("9" * 5000), '{"n": %s}' % ("9" * 5000)),
        ("", "{}"),
        ("{cut", "{cut"),
    ],
)
def test_numbers_of_earlier_calls_are_shown_as_they_were_written(arguments: str, shown: str) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    assert shown in render(kinds.QWEN3, user(), call)


def test_arguments_are_text_for_a_template_that_joins_them() -> None:
    for arguments in ('{"x":1.10}', {"x": 1.5}):
        call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        shown = arguments if isinstance(arguments, str) else json.dumps(arguments)
        assert f"f\n{shown}" in render(kinds.DEEPSEEK_R1, user(), call)


def test_a_number_of_an_earlier_call_is_a_number_for_the_template() -> None:
    source = "{% set x = messages[1].tool_calls[0].function.arguments.x %}{{ x }} {{ x + 1 }} {{ x is number }}{{ messages[0].content }}{{ messages[1].tool_calls[0].function.name }}"
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1.10}'}}]}
    assert render(source, user("!"), call) == "1.10 2.1 True!f"


def test_large_numbers_of_a_tools_schema_are_no_error() -> None:
    schema = {"type": "object", "properties": {"id": {"type": "integer", "maximum": 10**30}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    assert str(10**30) in render(kinds.QWEN3, user(), tools=tools)


def test_a_keyword_that_the_template_does_not_read_changes_nothing() -> None:
    assert render(kinds.CHATML, user(), kwargs={"enable_thinking": False}) == render(kinds.CHATML, user())
    assert render(kinds.QWEN3, user(), kwargs={"enable_thinking": False}).endswith("</think>\n\n")


def test_a_template_is_tried_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Mock(wraps=jinja2.Template.render)
    monkeypatch.setattr(jinja2.Template, "render", lambda *given: counted(*given))
    template = ChatTemplate(kinds.QWEN3, TOKENS)
    template.render([user()], tools=TOOLS)
    assert counted.call_count > 1
    counted.reset_mock()
    template.render([user("Another?")], tools=TOOLS)
    assert counted.call_count == 1


@pytest.mark.parametrize("name", ["chatml", "qwen3", "llama3", "gemma3", "macro"])
def test_an_answer_in_parts_can_be_continued(name: str) -> None:
    source = kinds.ALL[name]
    begun = [user(), {"role": "assistant", "content": parts("It is ")}]
    text = render(source, *begun, continue_final_message=True, add_generation_prompt=False)
    assert text.endswith(("It is ", "It is"))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(kinds.ALL)),
    st.lists(
        st.tuples(st.sampled_from(["system", "developer", "user", "assistant", "tool"]), st.integers(0, 2)), min_size=1
    ),
)
def test_every_text_of_any_conversation_reaches_the_prompt_or_is_refused(
    name: str, turns: list[tuple[str, int]]
) -> None:
    words = itertools.count()
    messages: list[dict[str, Any]] = []
    for role, num_parts in turns:
        texts = [f"word{next(words)}end" for _ in range(max(num_parts, 1))]
        messages.append(
            {"role": role, "tool_call_id": "abcdefghi", "content": parts(*texts) if num_parts else texts[0]}
        )
    try:
        text = template_of(name).render(messages)
    except TemplateRefused:
        return
    assert [word for word in range(next(words)) if f"word{word}end" not in text] == []
    assert "'text'" not in text


@functools.cache
def template_of(name: str) -> ChatTemplate:
    return ChatTemplate(kinds.ALL[name], TOKENS)
