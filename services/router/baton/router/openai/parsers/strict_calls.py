"""Strict functions: a form in which text is free, and a call, once it begins, is one of those offered, with valid arguments.

Each family's is a structural tag of the calls as it writes them; `baton.tag_grammars` makes a grammar of it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from baton.requests.tools import FunctionDefinition
from baton.router.openai.parsers.python_formats import python_call
from baton.structured_outputs import StructuredOutputs
from baton.tag_grammars import in_sequence, may_be, parameters_format

Format = dict[str, Any]
NewFormat = Callable[[Sequence[FunctionDefinition]], Format]
_ARGUMENTS, _PARAMETERS = '{"name": %s, "arguments": ', '{"name": %s, "parameters": '
_LINE = may_be("\n")
_SPACE = may_be({"type": "regex", "pattern": "[ \\n]{1,8}"})


def strict_form(family: str, functions: Sequence[FunctionDefinition]) -> StructuredOutputs | None:
    """Return the form of answers with functions of which one is strict; None if none is, or the family has no such form."""
    if family not in STRICT_FORMS or not any(function.strict for function in functions):
        return None
    return StructuredOutputs(structural_tag={"type": "structural_tag", "format": STRICT_FORMS[family](functions)})


# -- arguments as JSON ------------------------------------------------------------------------------------------


def _json_calls(functions: Sequence[FunctionDefinition], head: str, end: str) -> list[Format]:
    """Return a tag of each call; in `head` stands %s for its name as JSON, or {} for the name itself."""
    return [
        {
            "type": "tag",
            "begin": head.replace("%s", json.dumps(each.name, ensure_ascii=False)).replace("{}", each.name),
            "content": _arguments(each),
            "end": end,
        }
        for each in functions
    ]


def _arguments(function: FunctionDefinition) -> Format:
    schema = (function.parameters if function.strict else None) or {"type": "object"}
    return {"type": "json_schema", "json_schema": schema}


def _listed(tags: Sequence[Format], separator: str) -> Format:
    return {"type": "tags_with_separator", "tags": list(tags), "separator": separator, "at_least_one": True}


def _behind(trigger: str, content: Format, end: str = "") -> Format:
    """Return free text in which a trigger begins calls."""
    return _triggered(trigger, [{"type": "tag", "begin": trigger, "content": content, "end": end}])


def _triggered(trigger: str, tags: Sequence[Format]) -> Format:
    return {"type": "triggered_tags", "triggers": [trigger], "tags": list(tags)}


def _single(functions: Sequence[FunctionDefinition], trigger: str, head: str, end: str) -> Format:
    """One call behind each trigger."""
    return _triggered(trigger, _json_calls(functions, trigger + head, end))


def _many(
    functions: Sequence[FunctionDefinition], opens: str, head: str, end: str, closes: str, *, line: bool = False
) -> Format:
    """Calls one behind another between tags, each on a line of its own if the model wants, the first if it may."""
    return _section(opens, _json_calls(functions, head, end), closes, line=line)


def _section(opens: str, calls: Sequence[Format], closes: str, *, line: bool) -> Format:
    call = in_sequence({"type": "or", "elements": list(calls)}, _LINE)
    return _behind(opens, in_sequence(*([_LINE] if line else []), {"type": "plus", "content": call}), closes)


def _in_list(functions: Sequence[FunctionDefinition], opens: str, closes: str = "") -> Format:
    """A list of calls as JSON between tags."""
    calls = _listed(_json_calls(functions, _ARGUMENTS, "}"), ", ")
    return _behind(opens, in_sequence("[", _SPACE, calls, _SPACE, "]"), closes)


def _phi(functions: Sequence[FunctionDefinition]) -> Format:
    return _behind("functools[", _listed(_json_calls(functions, _ARGUMENTS, "}"), ", "), "]")


def _mistral(functions: Sequence[FunctionDefinition]) -> Format:
    """As a list, or as newer models write a call: its name and arguments."""
    calls = _listed(_json_calls(functions, _ARGUMENTS, "}"), ", ")
    named = [in_sequence(each.name, may_be("[ARGS]"), _arguments(each)) for each in functions]
    older = in_sequence(may_be(" "), "[", calls, "]")
    return _behind("[TOOL_CALLS]", {"type": "or", "elements": [older, *named]})


def _kimi(functions: Sequence[FunctionDefinition]) -> Format:
    number, middle = {"type": "regex", "pattern": "[0-9]{1,4}"}, "<|tool_call_argument_begin|>"
    tags = [
        {
            "type": "tag",
            "begin": f"<|tool_call_begin|>functions.{each.name}:",
            "content": in_sequence(number, middle, _arguments(each)),
            "end": "<|tool_call_end|>",
        }
        for each in functions
    ]
    return _section("<|tool_calls_section_begin|>", tags, "<|tool_calls_section_end|>", line=False)


def _whole_answer(calls: Format, first: str, also: str = "") -> Format:
    """An answer that is calls and begins as such, or behind a tag, or text that begins otherwise."""
    text = {"type": "regex", "pattern": f"\\s*[^\\s\\{first}](.|\\n)*"}
    ways = [calls, may_be(text), *([in_sequence(also, calls)] if also else [])]
    return {"type": "or", "elements": ways}


def _llama(functions: Sequence[FunctionDefinition]) -> Format:
    return _whole_answer(_listed(_json_calls(functions, _PARAMETERS, "}"), "; "), "{", "<|python_tag|>")


# -- arguments one by one ---------------------------------------------------------------------------------------


def _by_parameters(
    functions: Sequence[FunctionDefinition],
    opens: str,
    closes: str,
    function: tuple[str, str],
    ends_function: str,
    **written: Any,
) -> Format:
    """Functions in a block, whose arguments stand between tags."""
    calls = [
        {
            "type": "tag",
            "begin": f"{function[0]}{each.name}{function[1]}",
            "content": _parameters(each, written),
            "end": ends_function,
        }
        for each in functions
    ]
    return _section(opens, calls, closes, line=True)


def _glm(functions: Sequence[FunctionDefinition]) -> Format:
    """A block is one function, which begins with its name."""
    written: dict[str, Any] = {"name": ("<arg_key>", "</arg_key>"), "begin": "<arg_value>", "end": "</arg_value>"}
    tags = [
        {
            "type": "tag",
            "begin": f"<tool_call>{each.name}",
            "content": _parameters(each, written),
            "end": "</tool_call>",
        }
        for each in functions
    ]
    return _triggered("<tool_call>", tags)


def _parameters(function: FunctionDefinition, written: Mapping[str, Any]) -> Format:
    if not function.strict:
        return {"type": "any_text"}
    return in_sequence(_LINE, parameters_format(function.parameters or {}, **written))


# -- as Python --------------------------------------------------------------------------------------------------


def _python(functions: Sequence[FunctionDefinition], closes: str = "]", trigger: str = "") -> Format:
    tags = [python_call(each.name, each.parameters if each.strict else None) for each in functions]
    calls = in_sequence("[", _listed(tags, ", "), closes)
    return _behind(trigger, calls) if trigger else _whole_answer(calls, "[")


def _llama4_python(functions: Sequence[FunctionDefinition]) -> Format:
    calls = _python(functions)["elements"][0]
    return _whole_answer(calls, "[", "<|python_start|>")


_of = functools.partial
_DEEPSEEK_BEGIN, _DEEPSEEK_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_XML: dict[str, Any] = {
    "function": ("<function=", ">"),
    "ends_function": "</function>",
    "name": ("<parameter=", ">"),
    "end": "</parameter>",
}
STRICT_FORMS: Mapping[str, NewFormat] = {
    **dict.fromkeys(
        ("hermes", "granite4", "ernie45"),
        _of(_single, trigger="<tool_call>", head="\n" + _ARGUMENTS, end="}\n</tool_call>"),
    ),
    "longcat": _of(_single, trigger="<longcat_tool_call>", head=_ARGUMENTS, end="}</longcat_tool_call>"),
    "internlm": _of(_single, trigger="<|action_start|>", head="<|plugin|>\n" + _PARAMETERS, end="}<|action_end|>"),
    "granite-20b-fc": _of(_single, trigger="<function_call>", head=" " + _ARGUMENTS, end="}"),
    "granite": _of(_in_list, opens="<|tool_call|>"),
    **dict.fromkeys(("jamba", "hunyuan_a13b"), _of(_in_list, opens="<tool_calls>", closes="</tool_calls>")),
    "minimax": _of(_many, opens="<tool_calls>", head=_ARGUMENTS, end="}", closes="</tool_calls>", line=True),
    "phi4_mini_json": _phi,
    "mistral": _mistral,
    "deepseek_v3": _of(
        _many,
        opens=_DEEPSEEK_BEGIN,
        head="<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n",
        end="\n```<｜tool▁call▁end｜>",
        closes=_DEEPSEEK_END,
    ),
    "deepseek_v31": _of(
        _many,
        opens=_DEEPSEEK_BEGIN,
        head="<｜tool▁call▁begin｜>{}<｜tool▁sep｜>",
        end="<｜tool▁call▁end｜>",
        closes=_DEEPSEEK_END,
    ),
    "kimi_k2": _kimi,
    **dict.fromkeys(("llama3_json", "llama4_json"), _llama),
    **dict.fromkeys(
        ("qwen3_coder", "qwen3_xml", "mimo", "step3p5"),
        _of(_by_parameters, opens="<tool_call>", closes="</tool_call>", **_XML),
    ),
    "seed_oss": _of(_by_parameters, opens="<seed:tool_call>", closes="</seed:tool_call>", **_XML),
    **dict.fromkeys(("glm45", "glm47"), _glm),
    "minimax_m2": _of(
        _by_parameters,
        opens="<minimax:tool_call>",
        closes="</minimax:tool_call>",
        function=('<invoke name="', '">'),
        ends_function="</invoke>",
        name=('<parameter name="', '">'),
        end="</parameter>",
    ),
    "deepseek_v32": _of(
        _by_parameters,
        opens="<｜DSML｜function_calls>",
        closes="</｜DSML｜function_calls>",
        function=('<｜DSML｜invoke name="', '">'),
        ends_function="</｜DSML｜invoke>",
        name=('<｜DSML｜parameter name="', ">"),
        end="</｜DSML｜parameter>",
        kinds=('" string="true"', '" string="false"'),
    ),
    "pythonic": _python,
    "llama4_pythonic": _llama4_python,
    "lfm2": _of(_python, closes="]<|tool_call_end|>", trigger="<|tool_call_start|>"),
}
"""Of each family in whose calls arguments can be held to a schema."""
BARE = frozenset(
    name for name, made in STRICT_FORMS.items() if made is _glm or getattr(made, "func", None) is _by_parameters
)
"""Of those, whose strings stand as bare text between tags."""
