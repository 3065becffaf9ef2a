"""The form that an answer must have, in the three ways of saying it: OpenAI's, vLLM's, and vLLM's older one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from baton.errors import InvalidRequest, refuse
from baton.requests.closed import Closed
from baton.requests.fields import FirstError, TextOrObject
from baton.structured_outputs import MAX_CHOICES, MAX_NBYTES, StructuredOutputs

Text = Annotated[str, Field(min_length=1, max_length=MAX_NBYTES)]
Choices = Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES), FirstError()]


class JsonSchemaFormat(Closed):
    """What `response_format.json_schema` holds."""

    model_config = ConfigDict(serialize_by_alias=True)
    name: Annotated[str, Field(max_length=256)] | None = None
    description: Annotated[str, Field(max_length=65_536)] | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = None
    """Taken, and without effect: the schema is always kept to."""


class ResponseFormat(Closed):
    """OpenAI's: text, any JSON object, JSON of a schema; and vLLM's structural tag."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None
    format: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _fits_its_type(self) -> ResponseFormat:
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema_ is None):
            raise InvalidRequest("json_schema.schema is missing. Give it.", field="json_schema.schema")
        if self.type != "json_schema" and self.json_schema is not None:
            way_out = "Set type to json_schema, or leave json_schema out."
            raise refuse("type", self.type, "there is a json_schema", way_out)
        return self

    def form(self) -> StructuredOutputs | None:
        """Return the form; None: text is free."""
        match self.type:
            case "text":
                return None
            case "json_object":
                return StructuredOutputs(json_object=True)
            case "json_schema" if self.json_schema is not None:
                return StructuredOutputs(json=self.json_schema.schema_)  # type: ignore[arg-type]
            case _:
                return StructuredOutputs(structural_tag=self.model_dump(exclude_none=True))


class StructuredOutputsRequest(Closed):
    """vLLM's `structured_outputs`: exactly one kind, and options."""

    model_config = ConfigDict(serialize_by_alias=True)
    ignored = frozenset(["disable_fallback"])
    json_: TextOrObject | None = Field(None, alias="json")
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None
    json_object: bool | None = None
    structural_tag: TextOrObject | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: Text | None = None

    def form(self) -> StructuredOutputs | None:
        """Return the form; None: nothing is asked for."""
        given = self.model_dump(exclude_none=True)
        return StructuredOutputs(**given) if given else None


class HasForm(Closed):
    """The fields of a request that say what form its answer has."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsRequest | None = None
    # vLLM's older names of the same
    guided_json: TextOrObject | None = None
    guided_regex: Text | None = None
    guided_choice: Choices | None = None
    guided_grammar: Text | None = None
    guided_whitespace_pattern: Text | None = None
    guided_decoding_backend: Annotated[str, Field(max_length=64)] | None = None
    """Taken, and without effect: one library makes every grammar."""

    def form(self) -> tuple[str, StructuredOutputs] | None:
        """Return what says how the answer must be, and the field it stands in; None: it is free.

        Raises:
            InvalidRequest: two fields say it, or one says nothing that can be done.
        """
        found = [(name, form) for name in _PLACES if (form := self._form_in(name)) is not None]
        if not found:
            if self.guided_whitespace_pattern is not None:
                limit = "there is no guided_json, which it is about"
                raise refuse("guided_whitespace_pattern", self.guided_whitespace_pattern, limit, "Leave it out.")
            return None
        if len(found) > 1:
            first, second = found[0][0], found[1][0]
            raise InvalidRequest(f"{first} and {second} both say what form the answer has. Give one.", field=second)
        return found[0]

    def _form_in(self, name: str) -> StructuredOutputs | None:
        given = getattr(self, name)
        if given is None:
            return None
        try:
            if isinstance(given, ResponseFormat | StructuredOutputsRequest):
                return given.form()
            options: dict[str, Any] = {}
            if name == "guided_json" and self.guided_whitespace_pattern is not None:
                options["whitespace_pattern"] = self.guided_whitespace_pattern
            return StructuredOutputs(**{name.removeprefix("guided_"): given}, **options)
        except InvalidRequest as error:
            raise in_field(name, error) from None


_PLACES = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")


def in_field(name: str, error: InvalidRequest) -> InvalidRequest:
    """Say an error of a form, whose message begins with its own field, as one of the request's field `name`."""
    own = error.field or ""
    if name.startswith("guided_"):
        place = name if f"guided_{own}" != "guided_whitespace_pattern" else "guided_whitespace_pattern"
    elif name == "response_format":
        place = f"{name}.json_schema.schema" if own == "json" else name
    elif name == "tools":
        place = name
    else:
        place = name if own == name else f"{name}.{own}"
    message = str(error)
    if own and message.startswith(f"{own}="):
        message = place + message.removeprefix(own)
    return type(error)(message, field=place, code=error.code)
