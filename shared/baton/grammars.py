"""From a form to a grammar of llguidance's, and whether it can be one; what the library cannot express is refused by its word.

The router asks before a worker sees it; a worker trusts nobody and has the same limits. No torch, no tokenizer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from

from baton.errors import InvalidRequest, refuse, show
from baton.structured_outputs import StructuredOutputs
from baton.tag_grammars import tag_grammar

LIMITS = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=250_000,
    verbose_errors=False,
)
"""Of making a grammar, and of each of its tokens: in steps, so that they end alike on a fast machine and a slow one."""
WHITESPACE = r" |\n[ \t]{0,40}"
"""Between the parts of JSON: a space, or a line with its indent. With any whitespace small models write nothing else."""
MAX_MULTIPLE = 100_000
"""Of the least common multiple of all `multipleOf`: the library makes a state for each remainder, without counting them."""
_UNKNOWN_KEYS = re.compile(r'Unimplemented keys: \[(".*")\]')


def grammar_of(form: StructuredOutputs, special: Mapping[str, int] | None = None) -> str:
    """Return the form as llguidance takes it; `special` are the tokens that no pattern of text matches.

    Raises:
        InvalidRequest: it is not even written as it must be.
    """
    match form.kind:
        case "json" | "json_object":
            return _json_grammar(form)
        case "regex":
            return LLMatcher.grammar_from_regex(form.regex or "")
        case "choice":
            words = " | ".join(json.dumps(each) for each in dict.fromkeys(form.choice or ()))
            return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {words}")  # one lexeme, however many there are
        case "grammar":
            return _cfg_grammar(form.grammar or "")
        case _:
            return tag_grammar(_read("structural_tag", form.structural_tag), special or {}, _spaced)


def check(form: StructuredOutputs) -> None:
    """Make the form's grammar over bytes, and see that an answer can begin; may take long, so the caller can end it.

    Raises:
        InvalidRequest: none can be made: names the kind, and what in it the library cannot express.
    """
    matcher = LLMatcher(LLTokenizer("byte"), grammar_of(form), limits=LIMITS, log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise refused(form, matcher.get_error())
    if warnings := matcher.get_grammar_warnings():
        raise refused(form, warnings[0])


def refused(form: StructuredOutputs, reason: str) -> InvalidRequest:
    """Put what the library says into our words."""
    kind = form.kind
    value = getattr(form, kind)
    if "NoExtensionBias" in reason:
        reason = "no answer can ever be complete"
    elif keys := _UNKNOWN_KEYS.search(reason):
        reason = f"it uses {keys[1].replace(chr(34), '')}, which no answer can be held to"
    elif "fuel" in reason or "too large" in reason or "too complex" in reason or "limit" in reason:
        reason = f"it is too large or too complex ({_first_line(reason)})"
    else:
        reason = _in_one_line(reason)
    return refuse(kind, value, reason, "Change it, or leave it out and check what comes.")


def _json_grammar(form: StructuredOutputs) -> str:
    schema: Any = {"type": "object"} if form.json is None else _read("json", form.json)
    if form.disable_additional_properties:
        schema = _closed(schema)
    options: dict[str, Any] = {"lenient": False, "whitespace_flexible": not form.disable_any_whitespace}
    if not form.disable_any_whitespace:
        options["whitespace_pattern"] = form.whitespace_pattern or WHITESPACE
    if not isinstance(schema, dict | bool):
        raise refuse("json", form.json, "a JSON Schema is an object")
    _check_multiples("json", schema)
    return json.dumps({"grammars": [{"json_schema": _with_options(schema, options)}]})


def _with_options(schema: Mapping[str, Any] | bool, options: dict[str, Any]) -> dict[str, Any]:
    """Say how the schema is compiled, in place of what it may say itself."""
    return (dict(schema) if isinstance(schema, Mapping) else {"allOf": [schema]}) | {"x-guidance": options}


def _check_multiples(field: str, schema: Any) -> None:
    multiple = math.lcm(*_multiples(schema))
    if multiple > MAX_MULTIPLE:
        limit = (
            f"the least common multiple of all its multipleOf is {show(multiple)}, and at most {MAX_MULTIPLE} is taken"
        )
        raise refuse(field, schema, limit)


def _spaced(schema: Mapping[str, Any] | bool) -> Mapping[str, Any]:
    _check_multiples("structural_tag", schema)
    return _with_options(schema, {"lenient": False, "whitespace_flexible": True, "whitespace_pattern": WHITESPACE})


def _closed(schema: Any) -> Any:
    """Close the objects of a schema that do not say whether they are."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {
        key: value if key in ("enum", "const", "default", "examples") else _closed(value)
        for key, value in schema.items()
    }
    if "properties" in closed or closed.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def _multiples(schema: Any) -> Iterator[int]:
    """Find the digits of each `multipleOf`, as whole numbers."""
    if isinstance(schema, list):
        for each in schema:
            yield from _multiples(each)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            if key == "multipleOf" and isinstance(value, int | float) and math.isfinite(value):
                yield Fraction(str(value)).numerator or 1
            else:
                yield from _multiples(value)


def _cfg_grammar(text: str) -> str:
    try:
        return grammar_from("grammar", text)
    except (ValueError, RecursionError) as error:
        raise refuse("grammar", text, _in_one_line(str(error)), "Write it in Lark's form, or as GBNF.") from None


def _read(field: str, text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refuse(field, text, f"it cannot be read as JSON ({_first_line(str(error))})") from None


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]


def _in_one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().rstrip(".")[:300]
