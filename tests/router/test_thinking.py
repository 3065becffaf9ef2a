"""What a model thinks is told apart from what it answers: by form, however the text is cut, whole and streamed."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.errors import ConfigError, UnsupportedFeature
from baton.protocol import SamplingParams
from baton.requests.chat import ChatRequest
from baton.router.config import RouterConfig
from baton.router.openai.answer_forms import AnswerForms
from baton.router.openai.parsers.call_parts import Offered
from baton.router.openai.parsers.reasoning_forms import REASONING_FORMS, reasoning_form_of
from baton.router.openai.parsers.thinking import ThinkingForm, ThinkingParser
from baton.router.openai.parsers.tool_forms import TOOL_PARSERS
from baton.router.openai.parts import AnswerParser, CallBegins, Reasoning
from baton.text import Tokenizer
from baton.thinking import Thinking

from .cluster import Cluster, cluster
from .tokenizer_folder import CHAT_TEMPLATE, make_tokenizer_folder

MESSAGES: Any = [{"role": "user", "content": "hello world"}]
TOOLS: Any = [{"type": "function", "function": {"name": "sum", "parameters": {"type": "object"}}}]
CALL = '<tool_call>{"name": "sum", "arguments": {"a": 1}}</tool_call>'
OPENED = CHAT_TEMPLATE.replace(
    "'<|assistant|>' -", "'<|assistant|>' + ('<think></think>' if enable_thinking is false else '<think>') -"
)


def joined(parser: AnswerParser, pieces: list[str]) -> list[Any]:
    """Return an answer's parts, those of a kind in one; calls without their ids."""
    parts: list[Any] = [part for piece in pieces for part in parser.push(piece, 0)] + parser.finish()
    shown: list[Any] = []
    for part in parts:
        if isinstance(part, CallBegins):
            shown.append((part.name, part.arguments))
        elif isinstance(part, Reasoning) and shown and isinstance(shown[-1], Reasoning):
            shown[-1] = Reasoning(shown[-1].text + part.text)
        elif isinstance(part, str) and shown and isinstance(shown[-1], str):
            shown[-1] += part
        else:
            shown.append(part)
    return shown


def thinking_form(name: str) -> ThinkingForm:
    form = REASONING_FORMS[name]
    assert isinstance(form, ThinkingForm)
    return form


def think(text: str, *, form: str = "qwen3", is_inside: bool = False, calls: bool = False) -> list[Any]:
    answer = TOOL_PARSERS["hermes"](Offered()) if calls else None
    return joined(ThinkingParser(thinking_form(form), answer, is_inside=is_inside), [text])


def test_thoughts_come_without_their_tags_and_the_space_around_them() -> None:
    assert think("<think>\nOne.\n\nTwo.\n</think>\n\nHi there.\n") == [Reasoning("One.\n\nTwo."), "Hi there.\n"]
    assert think("One.</think>Hi", is_inside=True) == [Reasoning("One."), "Hi"]
    assert think(" \n<think></think>Hi") == ["Hi"]


def test_an_answer_that_is_cut_while_it_thinks_has_thoughts_alone() -> None:
    assert think("<think>\nOne. Tw") == [Reasoning("One. Tw")]
    assert think("One. </thi", is_inside=True) == [Reasoning("One. </thi")]
    assert think("<think>\n") == []


def test_an_answer_without_thoughts_is_text_and_later_tags_are_too() -> None:
    for text in ("Hi", " Hi\n", "I <think> so </think>.", "<thin", "  ", ""):
        assert "".join(think(text)) == text
    assert think("<think>a</think>Write <think>b</think>") == [Reasoning("a"), "Write <think>b</think>"]


def test_calls_are_read_behind_thoughts_and_not_within() -> None:
    text = f"<think>I could say {CALL}</think>\n{CALL}"
    assert think(text, calls=True) == [Reasoning(f"I could say {CALL}"), ("sum", '{"a": 1}')]
    assert think(CALL, calls=True) == [("sum", '{"a": 1}')]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("granite", "Here is my thought process:\nOne.\nHere is my response:\nHi"),
        ("granite", "Here's my thought process: One. Here's my response: Hi"),
        ("magistral", "[THINK]One.[/THINK]Hi"),
        ("seed_oss", "<seed:think>One.</seed:think>Hi"),
        ("glm45", "\n<think>One.</think>\nHi"),
    ],
)
def test_each_family_has_its_own_tags(form: str, text: str) -> None:
    assert think(text, form=form) == [Reasoning("One."), "Hi"]


def test_calls_may_begin_in_place_of_the_end_of_thoughts() -> None:
    begins = "<|tool_calls_section_begin|>"
    assert think(f"<think>One.{begins}", form="kimi_k2") == [Reasoning("One."), begins]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "think>", " ", "\n", "a", "b c", CALL])),
    st.booleans(),
    st.data(),
)
def test_an_answer_has_the_same_parts_however_it_is_cut(words: list[str], is_inside: bool, data: st.DataObject) -> None:
    text = "".join(words)
    edges = [0, *sorted(data.draw(st.sets(st.integers(0, len(text))))), len(text)]

    def parse(pieces: list[str]) -> list[Any]:
        return joined(ThinkingParser(ThinkingForm(), TOOL_PARSERS["hermes"](Offered()), is_inside=is_inside), pieces)

    assert parse([text[a:b] for a, b in itertools.pairwise(edges)]) == parse([text])


def test_a_prompt_tells_where_its_answer_begins() -> None:
    form = ThinkingForm()
    assert form.place("<|user|>x<|end|><|assistant|><think>\n") == "inside"
    assert form.place("<|assistant|><think>\n\n</think>\n\n") == "behind"
    assert form.place("say <think><|end|><|assistant|>") == "before"
    assert thinking_form("deepseek_r1").place("<|assistant|>") == "inside"
    assert form.place("<|assistant|><think>\nThe sum", continues=True) == "inside"
    assert form.place("<|assistant|><think>a</think> The sum", continues=True) == "behind"
    assert form.place("<|assistant|>The sum is", continues=True) == "behind"


def test_a_form_is_chosen_by_the_template_or_by_its_name(tmp_path: Path) -> None:
    assert reasoning_form_of("{{ '<think>' }}") == "qwen3"
    assert reasoning_form_of("{{ '[THINK]' }}") == "mistral"
    assert reasoning_form_of(CHAT_TEMPLATE) == "none"
    tokenizer = Tokenizer(make_tokenizer_folder(tmp_path, chat_template=OPENED))

    def forms(name: str) -> AnswerForms:
        return AnswerForms(RouterConfig(reasoning_parser=name), tokenizer)

    assert forms("auto").thinking == REASONING_FORMS["qwen3"]
    assert forms("granite").thinking == REASONING_FORMS["granite"]
    request = ChatRequest.model_validate({"messages": MESSAGES})
    assert forms("none").of(request, [1, 2], SamplingParams()) == (SamplingParams(), None)
    with pytest.raises(ConfigError, match=r"reasoning_parser='qwen4' is not known.*qwen3"):
        forms("qwen4")


def test_a_form_and_a_budget_go_with_the_marks_of_thoughts(tmp_path: Path) -> None:
    tokenizer = Tokenizer(make_tokenizer_folder(tmp_path, chat_template=OPENED))
    forms = AnswerForms(RouterConfig(), tokenizer)
    form, bounded = {"response_format": {"type": "json_object"}}, {"thinking_token_budget": 5}
    opened, closed = "<|assistant|><think>", "<|assistant|><think></think>"
    for prompt, fields, thinking in (
        (opened, form, Thinking(is_open=True)),
        ("<|assistant|>", form, Thinking()),
        (opened, bounded, Thinking(is_open=True, budget=5)),
        ("<|assistant|>", form | bounded, Thinking(budget=5)),
        (closed, form | bounded, None),
        (opened, {"thinking_token_budget": -1}, None),
        (opened, {}, None),
    ):
        request = ChatRequest.model_validate({"messages": MESSAGES, **fields})
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        params, new_parser = forms.of(request, ids, request.sampling_params())
        assert params.thinking == thinking
        assert (new_parser is not None) == (prompt is not closed)


@pytest.mark.parametrize("parser", ["none", "gpt_oss"])
def test_a_budget_of_thoughts_that_nothing_tells_is_refused(parser: str, tmp_path: Path) -> None:
    forms = AnswerForms(RouterConfig(reasoning_parser=parser), Tokenizer(make_tokenizer_folder(tmp_path)))
    request = ChatRequest.model_validate({"messages": MESSAGES, "thinking_token_budget": 0})
    with pytest.raises(UnsupportedFeature, match=r"thinking_token_budget=0 is not valid: .*--reasoning-parser"):
        forms.of(request, [1, 2], SamplingParams())


# -- to clients ---------------------------------------------------------------------------------------------------

SAID = f"One.\n</think>\n\nWell {CALL}"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("thinker")
    tokenizer = Tokenizer(make_tokenizer_folder(folder / "script"))
    script = tokenizer.encode(SAID, add_special_tokens=False)
    worker = {"worker_id": "d0", "script_ids": script, "answer_len": len(script) + 1}
    with cluster(folder, [worker], chat_template=OPENED) as made:
        yield made


@pytest.fixture(scope="module")
def client(thinker: Cluster) -> openai.OpenAI:
    return thinker.client()


def test_a_message_has_its_thoughts_beside_its_text_and_calls(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS)
    message: Any = answer.choices[0].message
    assert (message.reasoning, message.reasoning_content, message.content) == ("One.", "One.", "Well ")
    assert [call.function.name for call in message.tool_calls] == ["sum"]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.usage is not None
    details = answer.usage.completion_tokens_details
    assert details is not None
    assert details.reasoning_tokens is not None
    assert 0 < details.reasoning_tokens < answer.usage.completion_tokens


def test_a_stream_adds_up_to_the_message(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    chunks: Any = list(
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, tools=TOOLS, stream=True, stream_options=options
        )
    )
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    thoughts = ("".join(getattr(delta, name, "") for delta in deltas) for name in ("reasoning", "reasoning_content"))
    assert list(thoughts) == ["One.", "One."]
    assert "".join(delta.content or "" for delta in deltas) == "Well "
    assert next(call.function.name for delta in deltas for call in delta.tool_calls or []) == "sum"
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS).usage
    assert whole is not None
    assert chunks[-1].usage.completion_tokens_details == whole.completion_tokens_details


def test_who_wants_no_thoughts_gets_none_and_they_are_counted(client: openai.OpenAI) -> None:
    hidden: Any = {"include_reasoning": False}
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body=hidden)
    message: Any = answer.choices[0].message
    assert (message.reasoning, message.content) == (None, f"Well {CALL}")
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens
    chunks = client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body=hidden, stream=True)
    assert not any(hasattr(chunk.choices[0].delta, "reasoning") for chunk in chunks)


def test_thinking_is_switched_off_by_the_template(client: openai.OpenAI) -> None:
    for off in ({"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}):
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body=off)
        message: Any = answer.choices[0].message
        assert (message.reasoning, message.content) == (None, f"One.\n</think>\n\nWell {CALL}")


def test_an_answer_that_is_cut_while_it_thinks_has_no_content(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2)
    message: Any = answer.choices[0].message
    assert message.content is None
    assert SAID.startswith(message.reasoning)
    assert answer.choices[0].finish_reason == "length"
