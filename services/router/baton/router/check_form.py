"""The process that makes grammars to see whether they can be: one that takes too long, or too much memory, ends with it."""

from __future__ import annotations

from typing import Any

import msgspec

from baton.errors import InvalidRequest
from baton.grammars import check
from baton.router.frames import answer_frames
from baton.structured_outputs import StructuredOutputs


def check_form(request: dict[str, Any]) -> dict[str, Any]:
    """Check a form; return why it is refused, if it is."""
    try:
        check(msgspec.convert(request, StructuredOutputs))
    except InvalidRequest as error:
        return {"refusal": str(error), "field": error.field}
    except MemoryError:
        return {"reason": "it needs too much memory"}
    return {}


if __name__ == "__main__":
    answer_frames(check_form)
