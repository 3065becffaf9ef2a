"""Logits processors: code of an installed package that changes a row's logits before each draw, by name. No torch here.

A package names its classes as entry points of the group `baton.logits_processors`; a class has the part of vLLM's
`AdapterLogitsProcessor` that says what one request needs:

    class Never:
        def __init__(self, vllm_config, device, is_pin_memory): ...
        def new_req_logits_processor(self, params):          # params.extra_args: what the request gave
            banned = params.extra_args["token_id"]
            def process(output_ids, logits):                 # or (prompt_ids, output_ids, logits)
                logits[banned] = -float("inf")
                return logits                                # [vocab]
            return process                                   # None: this request is left alone

What it returns must be a pure function of its arguments: after a lost worker, a preemption or a move it is made anew, and
called with the tokens that are there. The router knows names only; workers load the classes.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import msgspec

from baton.errors import InvalidRequest, refuse

GROUP = "baton.logits_processors"
MAX_PROCESSORS = 16
"""Of a request: each is called at every token."""


class ProcessorCall(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A processor that a request names, and what it gives it."""

    name: str
    args: dict[str, Any] = {}


def find_processor(name: str) -> EntryPoint:
    """Find an installed processor.

    Raises:
        InvalidRequest: there is none of this name.
    """
    for found in entry_points(group=GROUP, name=name):
        return found
    names = ", ".join(sorted({each.name for each in entry_points(group=GROUP)})) or "none"
    limit = f"it must be the name of an installed one, and there are: {names}"
    raise refuse("logits_processors", name, limit, f"Install a package with an entry point in {GROUP}.")


def calls_of(given: Any) -> tuple[ProcessorCall, ...]:
    """Read what a request names: names, or objects with a name and args.

    Raises:
        InvalidRequest: it is neither.
    """
    if isinstance(given, (str, bytes, dict)) or not hasattr(given, "__iter__"):
        raise refuse("logits_processors", given, "it must be a list of names, or of {name, args}")
    items = list(given)
    if len(items) > MAX_PROCESSORS:
        raise refuse("logits_processors", f"{len(items)} entries", f"at most {MAX_PROCESSORS} are taken")
    return tuple(map(_call_of, items))


def _call_of(item: Any) -> ProcessorCall:
    if isinstance(item, ProcessorCall):
        return item
    if isinstance(item, str):
        return ProcessorCall(item)
    if isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("args") or {}, dict):
        if not item.keys() <= {"name", "args"}:
            raise refuse("logits_processors", item, "an entry has a name and args, nothing else")
        return ProcessorCall(item["name"], item.get("args") or {})
    way_out = "Code is given as LLM(logits_processors=[...]), or installed." if callable(item) else ""
    raise InvalidRequest(
        f"logits_processors has {type(item).__name__}: an entry is a name, or {{name, args}}. {way_out}".rstrip(),
        field="logits_processors",
    )
