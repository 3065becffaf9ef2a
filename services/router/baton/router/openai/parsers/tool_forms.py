"""How models write calls, by vLLM's names for it, and which of the forms a chat template speaks of."""

from __future__ import annotations

import functools
import re
import uuid
from collections.abc import Callable, Mapping

from baton.router.openai.parsers.call_parts import Offered
from baton.router.openai.parsers.harmony import HarmonyParser
from baton.router.openai.parsers.json_calls import is_json, may_be_json_calls, read_json_calls
from baton.router.openai.parsers.named_calls import NamedCalls, NamedForm
from baton.router.openai.parsers.parameter_calls import ParameterCalls, ParameterForm
from baton.router.openai.parsers.pythonic import may_be_python_calls, read_python_calls, read_python_lines
from baton.router.openai.parsers.tagged_calls import JSON_HEAD, Head, TaggedCalls, TaggedForm
from baton.router.openai.parts import AnswerParser

NewToolParser = Callable[[Offered], AnswerParser]
"""Makes the parser of one choice."""

_NAMED_HEAD = Head(
    re.compile(r"\s*([\w.\-]{1,256})\s*(?:\[CALL_ID\]\s*(\w{1,64})\s*)?(?:\[ARGS\]\s*)?(?=\{)"), is_in_object=False
)


def _read_mistral_calls(body: str) -> list[tuple[str, str]] | None:
    """Return the calls behind one tag: a list as older models write it, or one name and its arguments."""
    named = _NAMED_HEAD.pattern.match(body)
    if named is None:
        return read_json_calls(body)
    arguments = body[named.end() :].strip()
    return [(named[1], arguments)] if is_json(arguments) else None


def _short_id() -> str:
    """Make an id of nine letters and digits, as Mistral's templates demand."""
    return uuid.uuid4().hex[:9]


def _read_kimi_head(head: str) -> tuple[str, str | None]:
    """Return the name in `functions.name:0`, and all of it as the id: the template wants it back."""
    name = head.rpartition(":")[0] or head
    return name.removeprefix("functions."), head


_HERMES = TaggedForm(("<tool_call>",), ("</tool_call>",))
_TOOL_CALLS = TaggedForm(("<tool_calls>",), ("</tool_calls>",))
_LLAMA_JSON = TaggedForm(("<|python_tag|>",), bare="{", may_be=may_be_json_calls)

_TAGGED: Mapping[str, TaggedForm] = {
    **dict.fromkeys(("hermes", "granite4", "ernie45"), _HERMES),
    **dict.fromkeys(("llama3_json", "llama4_json"), _LLAMA_JSON),
    **dict.fromkeys(("jamba", "hunyuan_a13b", "minimax"), _TOOL_CALLS),
    "granite": TaggedForm(("<|tool_call|>", "<tool_call>")),
    "granite-20b-fc": TaggedForm(("<function_call>",)),
    "internlm": TaggedForm(("<|action_start|>",), ("<|action_end|>",), skips=("<|plugin|>",)),
    "longcat": TaggedForm(("<longcat_tool_call>",), ("</longcat_tool_call>",)),
    "phi4_mini_json": TaggedForm(("functools[",)),
    "xlam": TaggedForm(
        ("<tool_call>", "[TOOL_CALLS]", "```json"), ("</tool_call>", "```"), bare="[{", may_be=may_be_json_calls
    ),
    "mistral": TaggedForm(
        ("[TOOL_CALLS]",),
        read=_read_mistral_calls,
        heads=(JSON_HEAD, _NAMED_HEAD),
        marks=("[ARGS]", "[CALL_ID]"),
        new_id=_short_id,
    ),
    "pythonic": TaggedForm(bare="[", read=read_python_calls, heads=(), may_be=may_be_python_calls),
    "llama4_pythonic": TaggedForm(
        ("<|python_start|>",),
        ("<|python_end|>",),
        bare="[",
        read=read_python_calls,
        heads=(),
        may_be=may_be_python_calls,
    ),
    "lfm2": TaggedForm(("<|tool_call_start|>",), ("<|tool_call_end|>",), read=read_python_calls, heads=()),
    "olmo3": TaggedForm(("<function_calls>",), ("</function_calls>",), read=read_python_lines, heads=()),
}

_DEEPSEEK_SECTION = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_DEEPSEEK_END = "<｜tool▁call▁end｜>"
_NAMED: Mapping[str, NamedForm] = {
    "deepseek_v3": NamedForm(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        "```json\n",
        (f"```{_DEEPSEEK_END}", _DEEPSEEK_END),
        _DEEPSEEK_SECTION,
        ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
    ),
    "deepseek_v31": NamedForm("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", (_DEEPSEEK_END,), _DEEPSEEK_SECTION),
    "kimi_k2": NamedForm(
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        ("<|tool_call_end|>",),
        ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        read_head=_read_kimi_head,
    ),
}

_QWEN = ParameterForm(
    "<tool_call>",
    "</tool_call>",
    ("<parameter=", ">"),
    "</parameter>",
    ("<function=", ">"),
    "</function>",
    may_lack_opens=True,
)
_GLM = ParameterForm("<tool_call>", "</tool_call>", ("<arg_key>", "<arg_value>"), "</arg_value>")
_PARAMETERS: Mapping[str, ParameterForm] = {
    **dict.fromkeys(("qwen3_coder", "qwen3_xml", "mimo", "step3p5"), _QWEN),
    **dict.fromkeys(("glm45", "glm47"), _GLM),
    "seed_oss": ParameterForm(
        "<seed:tool_call>",
        "</seed:tool_call>",
        ("<parameter=", ">"),
        "</parameter>",
        ("<function=", ">"),
        "</function>",
    ),
    "minimax_m2": ParameterForm(
        "<minimax:tool_call>",
        "</minimax:tool_call>",
        ('<parameter name="', ">"),
        "</parameter>",
        ('<invoke name="', '">'),
        "</invoke>",
    ),
    "deepseek_v32": ParameterForm(
        "<｜DSML｜function_calls>",
        "</｜DSML｜function_calls>",
        ('<｜DSML｜parameter name="', ">"),
        "</｜DSML｜parameter>",
        ('<｜DSML｜invoke name="', '">'),
        "</｜DSML｜invoke>",
        marks=("｜DSML｜",),
    ),
    "step3": ParameterForm(
        "<｜tool_call_begin｜>function<｜tool_sep｜>",
        "<｜tool_call_end｜>",
        ('<steptml:parameter name="', ">"),
        "</steptml:parameter>",
        ('<steptml:invoke name="', '">'),
        "</steptml:invoke>",
        skips=("<｜tool_calls_begin｜>", "<｜tool_calls_end｜>"),
        marks=("<｜tool_call_begin｜>", "<｜tool_sep｜>"),
    ),
}

TOOL_PARSERS: Mapping[str, NewToolParser] = {
    **{name: functools.partial(TaggedCalls, form) for name, form in _TAGGED.items()},
    **{name: functools.partial(NamedCalls, form) for name, form in _NAMED.items()},
    **{name: functools.partial(ParameterCalls, form) for name, form in _PARAMETERS.items()},
    "openai": functools.partial(HarmonyParser, tells_thoughts=False),
}

_SIGNS = (
    ("<|channel|>", "openai"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("｜DSML｜", "deepseek_v32"),
    ("<steptml:", "step3"),
    ("<｜tool▁sep｜>", "```json", "deepseek_v3"),
    ("<｜tool▁sep｜>", "deepseek_v31"),
    ("<minimax:tool_call>", "minimax_m2"),
    ("<seed:tool_call>", "seed_oss"),
    ("<arg_key>", "glm45"),
    ("<function=", "qwen3_coder"),
    ("<longcat_tool_call>", "longcat"),
    ("functools[", "phi4_mini_json"),
    ("<|/tool|>", "phi4_mini_json"),
    ("<|action_start|>", "internlm"),
    ("<|tool_call_start|>", "lfm2"),
    ("<function_calls>", "olmo3"),
    ("<|tool_call|>", "granite"),
    ("<function_call>", "granite-20b-fc"),
    ("<tool_calls>", "jamba"),
    ("<tool_call>", "hermes"),
    ("[func_name1(", "pythonic"),
    ("ipython", "llama3_json"),
)
"""What in a template tells the form that stands behind it, the surest first."""


def tool_form_of(template: str) -> str:
    """Return the name of the form that a chat template speaks of; hermes where it speaks of none."""
    return next((name for *signs, name in _SIGNS if all(sign in template for sign in signs)), "hermes")
