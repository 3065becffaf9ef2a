"""The functions that a model may call."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from baton.requests.closed import Closed
from baton.requests.unserved import FUNCTION, SENT_BACK, TOOL

MAX_TOOLS = 128


class FunctionDefinition(Closed):
    """A function that the model may call."""

    unserved = FUNCTION
    ignored = SENT_BACK
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: Annotated[str, Field(max_length=65_536)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Closed):
    """One entry of tools."""

    unserved = TOOL
    ignored = SENT_BACK
    type: Literal["function"] = "function"
    function: FunctionDefinition
