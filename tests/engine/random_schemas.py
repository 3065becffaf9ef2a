"""Random JSON Schemas, and whether the demo model's answers follow them.

    python -m tests.engine.random_schemas 500        two seeds each; prints what does not, and how many do

Every string and list is bounded, so that an answer is complete well before `MAX_TOKENS`. A `time` has no bound: its
seconds may have any number of digits.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema

from baton.llm import LLM, SamplingParams, StructuredOutputsParams

MAX_TOKENS = 900
PROMPT = "Give it as JSON: "
_FORMATS = ("date", "uuid", "ipv4")
_PATTERNS = ("^[a-z]{1,6}$", "^[A-Z][a-z]{0,5}(-[0-9]{1,3})?$", "^(ab|cd){1,3}$", "x[0-9]{2}$")


def random_schema(seed: int) -> dict[str, Any]:
    """Return an object's schema: nested, with alternatives, references and keywords of every type."""
    drawn = random.Random(seed)
    schema = _object(drawn, 3)
    if drawn.random() < 0.3:
        leaf = _any(drawn, 1)
        schema["$defs"] = {"leaf": leaf}
        schema["properties"]["ref"] = {"$ref": "#/$defs/leaf"}
        schema["required"].append("ref")
    return schema


def _any(drawn: random.Random, depth: int) -> dict[str, Any]:
    kinds: list[Callable[[random.Random, int], dict[str, Any]]] = [_string, _number, _choice, _plain]
    if depth > 0:
        kinds += [_object, _array, _either, _all]
    return drawn.choice(kinds)(drawn, depth)


def _object(drawn: random.Random, depth: int) -> dict[str, Any]:
    names = drawn.sample(["id", "name", "größe", "a b", "tags", "x-y", "note"], drawn.randint(1, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _any(drawn, depth - 1) for name in names},
        "required": drawn.sample(names, drawn.randint(0, len(names))),
        "additionalProperties": False,
    }
    return schema


def _array(drawn: random.Random, depth: int) -> dict[str, Any]:
    least = drawn.randint(0, 2)
    if drawn.random() < 0.3:
        return {"type": "array", "prefixItems": [_any(drawn, 0), _any(drawn, 0)], "items": False, "minItems": 2}
    return {
        "type": "array",
        "items": _any(drawn, depth - 1),
        "minItems": least,
        "maxItems": least + drawn.randint(0, 2),
    }


def _string(drawn: random.Random, depth: int) -> dict[str, Any]:
    match drawn.randrange(3):
        case 0:
            return {"type": "string", "minLength": drawn.randint(0, 3), "maxLength": drawn.randint(3, 12)}
        case 1:
            return {"type": "string", "pattern": drawn.choice(_PATTERNS), "maxLength": 16}
        case _:
            return {"type": "string", "format": drawn.choice(_FORMATS)}


def _number(drawn: random.Random, depth: int) -> dict[str, Any]:
    low = drawn.randint(-500, 500)
    if drawn.random() < 0.5:
        return {"type": "integer", "minimum": low, "maximum": low + drawn.randint(0, 1000)}
    return {"type": "integer", "minimum": 0, "exclusiveMaximum": 1000, "multipleOf": drawn.choice([2, 5, 7])}


def _choice(drawn: random.Random, depth: int) -> dict[str, Any]:
    values = [1, -2.5, "red", 'with "quotes" and \\', None, True, {"k": [1, 2]}, "é漢"]
    return {"enum": drawn.sample(values, drawn.randint(1, 4))}


def _plain(drawn: random.Random, depth: int) -> dict[str, Any]:
    return drawn.choice([{"type": "boolean"}, {"type": "null"}, {"const": "fixed"}, {"type": ["boolean", "null"]}])


def _either(drawn: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_any(drawn, depth - 1) for _ in range(drawn.randint(1, 3))]}


def _all(drawn: random.Random, depth: int) -> dict[str, Any]:
    return {"allOf": [{"type": "integer", "minimum": 0}, {"maximum": drawn.randint(0, 99)}]}


def params_of(schema: dict[str, Any], draw: int) -> SamplingParams:
    """Return how an answer of a schema is asked for."""
    form = StructuredOutputsParams(json=schema)
    return SamplingParams(temperature=1.0, seed=draw, max_tokens=MAX_TOKENS, structured_outputs=form)


def wrong_of(schema: dict[str, Any], text: str, finish_reason: str | None) -> str | None:
    """Say what is wrong with an answer that does not follow its schema."""
    try:
        assert finish_reason == "stop", finish_reason
        jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)
    except (AssertionError, ValueError, jsonschema.ValidationError) as error:
        return f"{json.dumps(schema)}: {text[:200]!r}: {str(error)[:200]}"
    return None


def wrong_answers(llm: LLM, seeds: range) -> Iterator[str]:
    """Ask for an answer of each schema, with two seeds; yield what is wrong with those that do not follow it."""
    asked = [(random_schema(seed), draw) for seed in seeds for draw in (0, 1)]
    params = [params_of(schema, draw) for schema, draw in asked]
    outputs = llm.generate([PROMPT] * len(asked), params, use_tqdm=False)
    for (schema, draw), output in zip(asked, outputs, strict=True):
        (choice,) = output.outputs
        wrong = wrong_of(schema, choice.text, choice.finish_reason)
        if wrong is not None:
            yield f"seed {draw}, {wrong}"


def main(count: int) -> None:
    llm = LLM(use_tqdm=False, kv_cache_memory_bytes=2**29, max_num_seqs=64, max_model_len=1024)
    num_wrong = 0
    for first in range(0, count, 25):
        for wrong in wrong_answers(llm, range(first, min(first + 25, count))):
            num_wrong += 1
            print(wrong, flush=True)
        print(f"{min(first + 25, count)} schemas, {num_wrong} wrong", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
