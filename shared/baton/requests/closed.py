"""The models' common rule: a field that is not named is refused by name, unless it asks for nothing."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, model_validator

from baton.errors import InvalidRequest, refuse, unsupported


class Unserved(NamedTuple):
    """A field that other servers know."""

    reason: str
    """Why a request with it is refused."""
    neutral: tuple[object, ...] = ()
    """Values that ask for nothing; null is one always."""


class Closed(BaseModel):
    """A closed model: a field that is not its own is left out if it is null, neutral or ignored, else refused."""

    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra={"additionalProperties": False})
    unserved: ClassVar[Mapping[str, Unserved]] = {}
    ignored: ClassVar[frozenset[str]] = frozenset()
    """Fields that change nothing here, whatever they hold: clients send them along."""

    @model_validator(mode="after")
    def _is_closed(self) -> Self:
        others = self.__pydantic_extra__
        if others:
            for name, value in others.items():
                if value is not None and name not in self.ignored:
                    self._check_other(name, value)
            others.clear()
        return self

    def _check_other(self, name: str, value: object) -> None:
        field = self.unserved.get(name)
        if field is None:
            own = [field.alias or own for own, field in type(self).model_fields.items()]
            raise _unknown(name, value, [*own, *self.unserved])
        if value not in field.neutral:
            raise unsupported(name, value, field.reason)


def _unknown(name: str, value: object, known: list[str]) -> InvalidRequest:
    name = name[:80]  # it may be of megabytes
    close = difflib.get_close_matches(name, known, 1)
    way_out = f"Leave it out, or write {close[0]}." if close else "Leave it out."
    return refuse(name, value, "there is no such parameter", way_out, code="unknown_parameter")
