"""From structural tags to a grammar of llguidance's: the `format` objects that xgrammar has, and the older structures.

    {"type": "triggered_tags", "triggers": ["<f"], "tags": [{"begin": "<f=a>", "content": {...}, "end": "</f>"}]}

Where a text holds special tokens of the model, the grammar names them: no pattern of text matches those.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llguidance import grammar_from

from baton.errors import refuse, show

MAX_DEPTH = 32
_FIELD = "structural_tag"
_TEXT = "TEXT"


def tag_grammar(
    tag: Any, special: Mapping[str, int], with_options: Callable[[Mapping[str, Any] | bool], Mapping[str, Any]]
) -> str:
    """Return the grammar of a structural tag.

    Args:
        tag: with a `format`, or with `structures` and `triggers`.
        special: the model's special tokens.
        with_options: says in a schema how JSON is written.

    Raises:
        InvalidRequest: it is none, or of a kind that is not known here.
    """
    if not isinstance(tag, dict):
        raise refuse(_FIELD, tag, "it must be an object")
    wanted = tag["format"] if "format" in tag else _triggered(tag)
    return _Grammar(special, with_options).of(wanted)


def _triggered(tag: Mapping[str, Any]) -> dict[str, Any]:
    """Return the older form as a format."""
    try:
        structures, triggers = tag["structures"], tag["triggers"]
        tags = [
            {
                "begin": each["begin"],
                "content": {"type": "json_schema", "json_schema": each.get("schema") or {}},
                "end": each["end"],
            }
            for each in structures
        ]
    except (TypeError, KeyError, AttributeError):
        limit = "it must be an object with a format, or with structures (each with begin, schema and end) and triggers"
        raise refuse(_FIELD, tag, limit) from None
    if not tags:
        raise refuse(_FIELD, tag, "its structures are none")
    return {"type": "triggered_tags", "triggers": triggers, "tags": tags}


class _Grammar:
    """Rules of one grammar, as they are made."""

    def __init__(
        self, special: Mapping[str, int], with_options: Callable[[Mapping[str, Any] | bool], Mapping[str, Any]]
    ) -> None:
        self._special = special
        names = sorted(special, key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, names))) if names else None
        self._with_options = with_options
        self._rules = [f"{_TEXT}: /(.|\\n)*/"]
        self._others: list[dict[str, Any]] = []
        """Grammars that stand beside."""
        self._kinds: Mapping[str, Callable[[Mapping[str, Any], int], str]] = {
            "const_string": lambda each, _: self._literal(_text(each, "value")) or '""',
            "json_schema": lambda each, _: self._json(each.get("json_schema")),
            "regex": lambda each, _: self._regex(_text(each, "pattern")),
            "grammar": lambda each, _: self._beside(_text(each, "grammar")),
            "any_text": lambda each, _: self._any_text(each),
            "sequence": self._sequence,
            "or": lambda each, depth: self._either(self._all(each, "elements", depth)),
            "optional": lambda each, depth: f"({self._in(each, 'content', depth)})?",
            "star": lambda each, depth: f"({self._in(each, 'content', depth)})*",
            "plus": lambda each, depth: f"({self._in(each, 'content', depth)})+",
            "tag": self._tag,
            "triggered_tags": self._triggered_tags,
            "tags_with_separator": self._tags_with_separator,
            "qwen_xml_parameter": self._qwen_parameters,
        }

    def of(self, wanted: Any) -> str:
        """Return the whole of it."""
        start = self._format(wanted, 0)
        lark = "\n".join(["%llguidance {}", f"start: {start}", *self._rules])
        return json.dumps({"grammars": [{"name": "tags", "lark_grammar": lark}, *self._others]})

    def _format(self, wanted: Any, depth: int) -> str:
        if not isinstance(wanted, dict):
            raise refuse(_FIELD, wanted, "a format is an object with a type")
        if depth > MAX_DEPTH:
            raise refuse(_FIELD, "given", f"its formats are more than {MAX_DEPTH} deep")
        kind = wanted.get("type")
        made = self._kinds.get(kind) if isinstance(kind, str) else None
        if made is None:
            raise refuse(f"{_FIELD}.type", kind, f"known are {', '.join(self._kinds)}")
        return made(wanted, depth + 1)

    def _in(self, wanted: Mapping[str, Any], key: str, depth: int) -> str:
        return self._format(wanted.get(key), depth)

    def _all(self, wanted: Mapping[str, Any], key: str, depth: int) -> list[str]:
        return [self._format(each, depth) for each in _list(wanted, key)]

    def _either(self, choices: Sequence[str]) -> str:
        return "(" + " | ".join(choices) + ")"

    # -- texts --------------------------------------------------------------------------------------------

    def _parts(self, text: str) -> list[str]:
        """Return a text as what stands in a rule, special tokens by their numbers."""
        parts, at = [], 0
        for found in self._marks.finditer(text) if self._marks is not None else ():
            parts += [_quoted(text[at : found.start()])] if found.start() > at else []
            parts.append(f"<[{self._special[found[0]]}]>")
            at = found.end()
        return parts + ([_quoted(text[at:])] if at < len(text) else [])

    def _literal(self, text: str) -> str:
        return " ".join(self._parts(text))

    def _until(self, text: str) -> str:
        """Return any text up to the first `text`, that included."""
        if not text:
            raise refuse(_FIELD, text, "what ends any_text must not be empty")
        first, *rest = self._parts(text)
        if first.startswith("<["):
            return " ".join([_TEXT, first, *rest])
        return " ".join([self._rule(f"{_TEXT} {first}", "[lazy]"), *rest])

    def _rule(self, body: str, options: str = "") -> str:
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        return name

    def _regex(self, pattern: str) -> str:
        escaped = re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", pattern, flags=re.DOTALL).replace("\n", r"\n")
        name = f"T{len(self._rules)}"
        self._rules.append(f"{name}: /{escaped}/")
        return name

    def _json(self, schema: Any) -> str:
        if not isinstance(schema, dict | bool):
            raise refuse(f"{_FIELD}.json_schema", schema, "a JSON Schema is an object")
        return self._rule(f"%json {json.dumps(self._with_options(schema))}")

    def _beside(self, text: str) -> str:
        try:
            made = grammar_from("grammar", text)
        except (ValueError, RecursionError) as error:
            raise refuse(f"{_FIELD}.grammar", text, str(error)[:200], "Write it in Lark's form, or as GBNF.") from None
        name = f"g{len(self._others)}"
        self._others.append({"name": name, "lark_grammar": made})
        return f"@{name}"

    def _any_text(self, wanted: Mapping[str, Any]) -> str:
        if wanted.get("excludes"):
            raise refuse(f"{_FIELD}.excludes", wanted["excludes"], "any_text excludes nothing here but its end")
        return _TEXT

    # -- kinds --------------------------------------------------------------------------------------------

    def _sequence(self, wanted: Mapping[str, Any], depth: int) -> str:
        elements, parts, at = _list(wanted, "elements"), [], 0
        while at < len(elements):
            each, at = elements[at], at + 1
            if not (isinstance(each, dict) and each.get("type") == "any_text" and at < len(elements)):
                parts.append(self._format(each, depth))
                continue
            behind, at = elements[at], at + 1
            self._any_text(each)
            kind = behind.get("type") if isinstance(behind, dict) else None
            if kind == "const_string":
                parts.append(self._until(_text(behind, "value")))
            elif kind == "tag":
                parts += [self._until(_text(behind, "begin")), *self._rest_of_tag(behind, depth)]
            else:
                limit = "behind any_text stands a const_string or a tag, by whose beginning its end is known"
                raise refuse(f"{_FIELD}.type", kind, limit)
        return "(" + " ".join(parts) + ")"

    def _tag(self, wanted: Mapping[str, Any], depth: int, *, begun: str = "") -> str:
        """Return a tag, behind what of its beginning stands there."""
        begin = self._literal(_text(wanted, "begin")[len(begun) :])
        return self._rule(" ".join(filter(None, [begin, *self._rest_of_tag(wanted, depth)])))

    def _rest_of_tag(self, wanted: Mapping[str, Any], depth: int) -> list[str]:
        ends = wanted.get("end")
        ends = ends if isinstance(ends, list) else [ends]
        if not ends or not all(isinstance(each, str) for each in ends):
            raise refuse(f"{_FIELD}.end", wanted.get("end"), "it must be a string, or a list of such")
        content = wanted.get("content")
        if isinstance(content, dict) and content.get("type") == "any_text":
            self._any_text(content)
            return [self._either([self._until(each) if each else _TEXT for each in ends])]
        return [self._format(content, depth), self._either([self._literal(each) or '""' for each in ends])]

    def _triggered_tags(self, wanted: Mapping[str, Any], depth: int) -> str:
        tags, triggers = _list(wanted, "tags"), _list(wanted, "triggers")
        if wanted.get("excludes"):
            raise refuse(f"{_FIELD}.excludes", wanted["excludes"], "text excludes nothing here but triggers")
        by_trigger: dict[str, list[str]] = {}
        for tag in tags:
            begin = _text(tag, "begin")
            trigger = next((t for t in triggers if isinstance(t, str) and t and begin.startswith(t)), None)
            if trigger is None:
                raise refuse(_FIELD, begin, "what begins a structure must begin with one of the triggers")
            by_trigger.setdefault(trigger, []).append(self._tag(tag, depth, begun=trigger))
        behind_text = self._either(
            [f"{self._until(trigger)} {self._either(bodies)}" for trigger, bodies in by_trigger.items()]
        )
        at_once = self._either(
            [f"{self._literal(trigger)} {self._either(bodies)}" for trigger, bodies in by_trigger.items()]
        )
        end = self._rule(_TEXT)
        match bool(wanted.get("at_least_one")), bool(wanted.get("stop_after_first")):
            case False, False:
                return f"({behind_text}* {end})"
            case False, True:
                return f"({behind_text} | {end})"
            case True, False:
                return f"({at_once} {behind_text}* {end})"
            case _:
                return at_once

    def _tags_with_separator(self, wanted: Mapping[str, Any], depth: int) -> str:
        tags = self._either([self._tag(each, depth) for each in _list(wanted, "tags")])
        separator = self._literal(_text(wanted, "separator"))
        made = tags if wanted.get("stop_after_first") else f"{tags} ({separator} {tags})*"
        return f"({made})" if wanted.get("at_least_one") else f"({made})?"

    def _qwen_parameters(self, wanted: Mapping[str, Any], depth: int) -> str:
        return self._format(parameters_format(wanted.get("json_schema"), ("<parameter=", ">"), "</parameter>"), depth)


def parameters_format(
    schema: Any, name: tuple[str, str], end: str, *, begin: str = "", kinds: tuple[str, str] = ("", "")
) -> dict[str, Any]:
    """Return the format of an object whose properties stand one by one, strings as they are, in the schema's order.

    A line may break where the model breaks it: around values, and behind properties.

    name: what stands around a property's name. begin, end: what stands around a value, if the name's end does not begin
    it. kinds: what stands behind the name of a string, and of another value.
    """
    if not isinstance(schema, dict) or not isinstance(schema.get("properties", {}), dict):
        raise refuse(f"{_FIELD}.json_schema", schema, "it must be the schema of an object with properties")
    required, line = schema.get("required") or [], may_be("\n")
    if not isinstance(required, list):
        raise refuse(f"{_FIELD}.json_schema.required", required, "it must be a list of names")
    elements = []
    for key, value in schema.get("properties", {}).items():
        is_string, content = _bare_value(schema, value)
        named = f"{name[0]}{key}{kinds[0 if is_string else 1]}{name[1]}"
        if content["type"] == "any_text":
            bare = {"type": "tag", "begin": begin, "content": content, "end": end}
        else:
            bare = in_sequence(begin, line, content, line, end)
        made = in_sequence(named, *([line] if begin else []), bare, line)
        elements.append(made if key in required else may_be(made))
    return in_sequence(*elements)


def in_sequence(*elements: str | dict[str, Any]) -> dict[str, Any]:
    """Return the format of elements one behind the other; texts are themselves."""
    return {"type": "sequence", "elements": [_as_format(each) for each in elements or ("",)]}


def may_be(content: str | dict[str, Any]) -> dict[str, Any]:
    """Return the format of what may be left out."""
    return {"type": "optional", "content": _as_format(content)}


def _as_format(content: str | dict[str, Any]) -> dict[str, Any]:
    return {"type": "const_string", "value": content} if isinstance(content, str) else content


def _bare_value(root: Mapping[str, Any], schema: Any) -> tuple[bool, dict[str, Any]]:
    """Return whether a value is written as a bare string, and its format: of one that may be a string any text."""
    found = schema
    for _ in range(MAX_DEPTH):
        reference = found.get("$ref") if isinstance(found, dict) else None
        if not isinstance(reference, str) or not reference.startswith(("#/$defs/", "#/definitions/")):
            break
        _, place, named = reference.split("/", 2)
        defined = root.get(place)
        found = defined.get(named, {}) if isinstance(defined, dict) else {}
    found = found if isinstance(found, dict) else {}
    values = found.get("enum", [found["const"]] if "const" in found else None)
    if isinstance(values, list) and values and all(isinstance(each, str) for each in values):
        return True, {"type": "or", "elements": [{"type": "const_string", "value": each} for each in values]}
    kinds = found.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "string" in kinds or (not any(kinds) and not isinstance(values, list)):
        return True, {"type": "any_text"}
    beside = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return False, {"type": "json_schema", "json_schema": {**schema, **beside}}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _text(wanted: Any, key: str) -> str:
    value = wanted.get(key) if isinstance(wanted, dict) else None
    if not isinstance(value, str):
        raise refuse(f"{_FIELD}.{key}", show(value), "it must be a string")
    return value


def _list(wanted: Mapping[str, Any], key: str) -> list[Any]:
    value = wanted.get(key)
    if not isinstance(value, list) or not value:
        raise refuse(f"{_FIELD}.{key}", show(value), "it must be a list that is not empty")
    return value
