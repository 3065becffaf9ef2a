"""The process that renders chat templates: a template that never ends, or grows, ends with it.

Reads requests from standard input and answers on standard output, each a length and a msgpack value, until input ends.
A request that holds numbers beyond 64 bits is JSON.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any, BinaryIO

import msgspec

from baton.chat_template import ChatTemplate, TemplateRefused

_MEMORY_NBYTES = 2 * 2**30


def main() -> None:
    """Serve one parent."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_NBYTES, _MEMORY_NBYTES))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    templates: dict[str, ChatTemplate] = {}
    while (frame := _read_frame(source)) is not None:
        request = json.loads(frame) if frame.startswith(b"{") else msgspec.msgpack.decode(frame)
        answer = msgspec.msgpack.encode(_answer(request, templates) if request else {})  # None asks: are you there?
        sink.write(len(answer).to_bytes(4, "little") + answer)
        sink.flush()


def _read_frame(source: BinaryIO) -> bytes | None:
    """Read the next frame's body; None at the end."""
    head = source.read(4)
    if len(head) < 4:
        return None
    return source.read(int.from_bytes(head, "little"))


def _answer(request: dict[str, Any], templates: dict[str, ChatTemplate]) -> dict[str, Any]:
    try:
        source = request["template"]
        if source not in templates:
            templates[source] = ChatTemplate(source, request["special_tokens"], request["content_format"])
        text = templates[source].render(
            request["messages"],
            tools=request["tools"],
            add_generation_prompt=request["add_generation_prompt"],
            continue_final_message=request["continue_final_message"],
            kwargs=request["kwargs"],
        )
    except TemplateRefused as error:
        return {"error": str(error), "field": error.field}
    except Exception as error:  # MemoryError among them
        return {"reason": type(error).__name__}
    if len(text) > request["max_len"]:
        return {"reason": f"it gives {len(text)} characters, and at most {request['max_len']} are taken"}
    return {"text": text}


if __name__ == "__main__":
    main()
