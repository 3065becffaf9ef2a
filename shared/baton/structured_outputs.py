"""StructuredOutputs: the form that an answer must have, as vLLM's users name it. No torch, no library.

Exactly one kind says what the answer is; options may stand beside it. `baton.grammars` makes a grammar of it.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from baton.errors import refuse
from baton.vllm_names import STRUCTURED, own_names

KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
MAX_NBYTES = 256 * 1024
"""Of a schema, pattern, grammar or list of choices, as text: real ones have a hundredth of it."""
MAX_CHOICES = 10_000
_JSON_KINDS = ("json", "json_object")


class _NamedAsInVllm(msgspec.StructMeta):
    """Lets callers write vLLM's names that change nothing, and says of each other one why it is not taken."""

    def __call__(cls, *args: Any, **given: Any) -> Any:
        fields = cls.__struct_fields__
        if not all(map(fields.__contains__, given)):
            given = own_names(STRUCTURED, given, own=fields)
        return super().__call__(*args, **given)


class StructuredOutputs(msgspec.Struct, metaclass=_NamedAsInVllm, frozen=True, kw_only=True, omit_defaults=True):
    """What an answer must be: exactly one of the kinds. Names and meanings are vLLM's.

    A JSON Schema, and a structural tag, may be given as objects; they are kept as text, in which keys keep their order, as
    the answer's do. Construction raises `InvalidRequest` naming the field; whether a grammar can be made of it
    `baton.grammars.check` says.
    """

    json: str | dict[str, Any] | None = None
    """A JSON Schema."""
    regex: str | None = None
    """A regular expression that the whole answer matches."""
    choice: tuple[str, ...] | None = None
    """The answer is one of these."""
    grammar: str | None = None
    """A context-free grammar, in Lark's form or GBNF."""
    json_object: bool | None = None
    """Any JSON object."""
    structural_tag: str | dict[str, Any] | None = None
    """Free text with parts that begin with a trigger and follow a schema."""
    disable_any_whitespace: bool = False
    """Of JSON: whether nothing stands between its parts."""
    disable_additional_properties: bool = False
    """Of a schema: whether objects have no other properties than it names, where it does not say."""
    whitespace_pattern: str | None = None
    """Of JSON: a regular expression of what may stand between its parts."""

    def __post_init__(self) -> None:
        kinds = [kind for kind in KINDS if getattr(self, kind) not in (None, False)]
        if len(kinds) != 1:
            given = " and ".join(kinds) or "none"
            limit = f"exactly one of {', '.join(KINDS)} says what an answer is, and there is {given}"
            raise refuse("structured_outputs", given, limit, "Give one.")
        set_field = msgspec.structs.force_setattr
        for field in ("json", "structural_tag"):
            if getattr(self, field) is not None:
                set_field(self, field, _json_text(field, getattr(self, field)))
        if self.choice is not None:
            set_field(self, "choice", _choices(self.choice))
        for field in ("json", "regex", "grammar", "structural_tag", "whitespace_pattern"):
            _check_text(field, getattr(self, field))
        for field in ("json_object", "disable_any_whitespace", "disable_additional_properties"):
            if not isinstance(getattr(self, field), bool | None):
                raise refuse(field, getattr(self, field), "it must be true or false")
        self._check_options()

    @property
    def kind(self) -> str:
        """Which of the kinds this is."""
        return next(kind for kind in KINDS if getattr(self, kind) not in (None, False))

    def _check_options(self) -> None:
        if self.disable_any_whitespace and self.whitespace_pattern is not None:
            limit = "disable_any_whitespace leaves no whitespace"
            raise refuse("whitespace_pattern", self.whitespace_pattern, limit, "Give one of the two.")
        for field in ("disable_any_whitespace", "whitespace_pattern"):
            if getattr(self, field) and self.kind not in _JSON_KINDS:
                limit = f"it is about JSON, and the answer is a {self.kind}"
                raise refuse(field, getattr(self, field), limit, "Leave it out.")


def _json_text(field: str, value: Any) -> str:
    """Return an object as JSON; text stays as it is."""
    if isinstance(value, type) and hasattr(value, "model_json_schema"):  # pydantic's models
        value = value.model_json_schema()
    if isinstance(value, str):
        return value
    if not isinstance(value, dict | bool):
        raise refuse(field, value, "it must be an object, or its JSON")
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise refuse(field, value, "it cannot be written as JSON") from None


def _choices(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise refuse("choice", value, "it must be a list of strings")
    choices = tuple(value)
    if not choices or len(choices) > MAX_CHOICES:
        raise refuse("choice", f"{len(choices)} entries", f"1 to {MAX_CHOICES} are taken")
    wrong = next((each for each in choices if not isinstance(each, str) or not each), None)
    if wrong is not None:
        raise refuse("choice", wrong, "each must be a string, none empty")
    if sum(len(each.encode()) for each in choices) > MAX_NBYTES:
        raise refuse("choice", f"{len(choices)} entries", f"at most {MAX_NBYTES} bytes are taken in all")
    return choices


def _check_text(field: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not value:
        raise refuse(field, value, "it must be text, and not empty")
    if len(value) > MAX_NBYTES or len(value.encode()) > MAX_NBYTES:
        raise refuse(field, f"{len(value)} characters", f"at most {MAX_NBYTES} bytes are taken")
