"""The models' common rule: a field that is not named is refused by name."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Closed(BaseModel):
    """A closed model."""

    model_config = ConfigDict(extra="forbid", strict=True)
