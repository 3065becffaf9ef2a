"""The lines of a batch: how one of the input is read, and how one of the output or of the errors is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

_KEYS = {"custom_id", "method", "url", "body"}
_MAX_ID = 512


@dataclass(frozen=True, slots=True)
class Line:
    """A request."""

    number: int
    """From 1 on, as editors count."""
    custom_id: str
    url: str
    body: dict[str, Any]


class BrokenLine(ValueError):
    """A line that is no request: its own error, and no other line's."""

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.custom_id = custom_id


def read_numbered(file: Path, max_nbytes: int) -> Iterator[tuple[int, bytes]]:
    """Return the lines that are not empty, with their numbers; of one that is too long, `max_nbytes` and one more."""
    with open(file, "rb") as lines:
        number = 0
        while raw := lines.readline(max_nbytes + 2):
            number += 1
            part = raw
            while part and not part.endswith(b"\n"):  # the rest of a line that is too long
                part = lines.readline(max_nbytes + 2)
            if raw.strip():
                yield number, raw.strip()


def read_line(number: int, raw: bytes, endpoint: str | None, seen: set[str], max_nbytes: int) -> Line:
    """Check one line; its `custom_id` is taken into `seen`. `endpoint` None: a line may name any path.

    Raises:
        BrokenLine: it is no request of this batch.
    """
    if len(raw) > max_nbytes:
        raise BrokenLine("line_too_long", f"Line {number} is longer than {max_nbytes} bytes, the limit of a body.")
    try:
        given = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BrokenLine("invalid_json_line", f"Line {number} is not valid JSON: {error}.") from None
    if not isinstance(given, dict):
        raise BrokenLine("invalid_json_line", f"Line {number} is no JSON object.")
    custom_id = given.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MAX_ID:
        message = f"Line {number}: custom_id is not valid: it must be a string of 1 to {_MAX_ID} characters."
        raise BrokenLine("missing_required_parameter", message)
    if custom_id in seen:
        message = f"Line {number}: custom_id={custom_id[:80]!r} is not valid: an earlier line has it."
        raise BrokenLine("duplicate_custom_id", message, custom_id)
    seen.add(custom_id)
    _check(number, given, endpoint, custom_id)
    return Line(number, custom_id, given["url"], given["body"])


def _check(number: int, given: dict[str, Any], endpoint: str | None, custom_id: str) -> None:
    def broken(field: str, limit: str) -> BrokenLine:
        shown = repr(given.get(field))[:80]
        return BrokenLine(f"invalid_{field}", f"Line {number}: {field}={shown} is not valid: {limit}.", custom_id)

    if unknown := sorted(given.keys() - _KEYS):
        raise broken(unknown[0][:40], f"a line has {', '.join(sorted(_KEYS))}, and nothing else")
    if given.get("method") != "POST":
        raise broken("method", "it must be POST")
    url = given.get("url")
    if endpoint is None and not (isinstance(url, str) and url.startswith("/")):
        raise broken("url", "it must be a path, such as /v1/chat/completions")
    if endpoint is not None and url != endpoint:
        raise broken("url", f"it must be the endpoint of the batch, {endpoint}")
    body = given.get("body")
    if not isinstance(body, dict):
        raise broken("body", "it must be an object")
    if body.get("stream"):
        raise BrokenLine("invalid_body", f"Line {number}: stream is not valid: answers are written whole.", custom_id)


def line_id(batch_id: str, number: int) -> str:
    """Return the id of a line's answer, which says whose it is."""
    return f"batch_req_{batch_id.removeprefix('batch_')}_{number}"


def number_of(answer: bytes) -> int:
    """Return the number of the input's line that a line of results answers."""
    return int(orjson.loads(answer)["id"].rpartition("_")[2])


def answer_line(batch_id: str, line: Line, status: int, request_id: str, body: bytes) -> bytes:
    """Write the answer that a route gave."""
    whole = {
        "id": line_id(batch_id, line.number),
        "custom_id": line.custom_id,
        "response": {"status_code": status, "request_id": request_id, "body": orjson.Fragment(body or b"null")},
        "error": None,
    }
    return orjson.dumps(whole) + b"\n"


def error_line(batch_id: str, number: int, custom_id: str | None, code: str, message: str) -> bytes:
    """Write why a line was never answered."""
    whole = {
        "id": line_id(batch_id, number),
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }
    return orjson.dumps(whole) + b"\n"
