"""What a helper process does: frames from standard input, an answer to each on standard output, until input ends.

A frame is its length, in 4 bytes, and a msgpack value; one that holds numbers beyond 64 bits is JSON. None asks: are you
there?
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

import msgspec

_MEMORY_NBYTES = 2 * 2**30


def answer_frames(answer_of: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Serve one parent, within bounded memory."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_NBYTES, _MEMORY_NBYTES))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while (frame := _read_frame(source)) is not None:
        request = json.loads(frame) if frame.startswith(b"{") else msgspec.msgpack.decode(frame)
        answer = msgspec.msgpack.encode(answer_of(request) if request else {})
        sink.write(len(answer).to_bytes(4, "little") + answer)
        sink.flush()


def _read_frame(source: BinaryIO) -> bytes | None:
    """Read the next frame's value; None at the end."""
    head = source.read(4)
    if len(head) < 4:
        return None
    return source.read(int.from_bytes(head, "little"))
