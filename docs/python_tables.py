"""Tables of the Python interface: what `SamplingParams` takes, what `LLM` gives."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
from docs.api_words import WORDS
from docs.markdown import default, rows

from baton.llm import CompletionOutput, RequestOutput
from baton.protocol import SamplingParams

_FILLED_IN = "bad_words_ids"
"""Not for users to set."""
_OUTPUTS: dict[str, Any] = {"request": RequestOutput, "completion": CompletionOutput}


def sampling_table() -> str:
    """Return the fields of `SamplingParams`."""
    fields = [each for each in msgspec.structs.fields(SamplingParams) if each.name != _FILLED_IN]
    return rows(("name", "default", ""), [(f"`{f.name}`", default(f.default), sampling_words(f.name)) for f in fields])


def sampling_words(name: str) -> str:
    """Say what a parameter means: as in the API, unless Python's differs."""
    return WORDS.get(f"SamplingParams.{name}") or WORDS.get(name) or WORDS.get(f"CompletionRequest.{name}", "")


def output_table(name: str) -> str:
    """Return the attributes of an answer."""
    return rows(
        ("attribute", ""),
        [(f"`{f.name}`", f"`{str(f.type).replace(' | ', ' or ')}`") for f in dataclasses.fields(_OUTPUTS[name])],
    )
