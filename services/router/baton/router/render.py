"""The process that renders chat templates: a template that never ends, or grows, ends with it."""

from __future__ import annotations

from typing import Any

from baton.chat_template import ChatTemplate, TemplateRefused
from baton.router.frames import answer_frames

_NUM_TEMPLATES = 16
"""Compiled ones that are kept: requests may bring their own."""
_templates: dict[str, ChatTemplate] = {}


def render(request: dict[str, Any]) -> dict[str, Any]:
    """Render what `for_template` of a request gave; return its text, or why there is none."""
    try:
        text = _template(request).render(
            request["messages"],
            tools=request["tools"],
            add_generation_prompt=request["add_generation_prompt"],
            continue_final_message=request["continue_final_message"],
            documents=request["documents"],
            kwargs=request["kwargs"],
        )
    except TemplateRefused as error:
        return {"error": str(error), "field": error.field}
    except Exception as error:  # MemoryError among them
        return {"reason": type(error).__name__}
    if len(text) > request["max_len"]:
        return {"reason": f"it gives {len(text)} characters, and at most {request['max_len']} are taken"}
    return {"text": text}


def _template(request: dict[str, Any]) -> ChatTemplate:
    source = request["template"]
    if source not in _templates:
        if len(_templates) == _NUM_TEMPLATES:
            del _templates[next(iter(_templates))]
        _templates[source] = ChatTemplate(source, request["special_tokens"], request["content_format"])
    return _templates[source]


if __name__ == "__main__":
    answer_frames(render)
