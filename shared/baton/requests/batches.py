"""Requests for batches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from baton.requests.closed import Closed
from baton.requests.unserved import BATCH

_Key = Annotated[str, Field(max_length=64)]
_Value = Annotated[str, Field(max_length=512)]


class BatchRequest(Closed):
    """POST /v1/batches: the lines of a file, each a request, answered when there is time."""

    unserved = BATCH
    input_file_id: Annotated[str, Field(max_length=64)]
    endpoint: Annotated[str, Field(max_length=64)]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[_Key, _Value], Field(max_length=16)] | None = None
