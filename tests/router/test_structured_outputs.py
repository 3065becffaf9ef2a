"""Forms that no answer can be held to are refused before a worker sees them, and soon, whatever they hold."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from .cluster import Cluster, cluster

HANG_S = 60.0
DEEP: Any = json.loads('{"properties":{"a":' * 30 + "{}" + "}}" * 30)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("forms"), [{"worker_id": "d0", "legs": ["decode"]}]) as made:
        yield made


def refusal(serving: Cluster, **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 4} | fields
    answer = httpx.post(f"{serving.url}/v1/completions", json=body, timeout=HANG_S)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def of_schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}


@pytest.mark.parametrize(
    ("fields", "field", "word"),
    [
        (of_schema({"not": {}}), "response_format.json_schema.schema", "uses not"),
        (of_schema({"type": "array", "uniqueItems": True}), "response_format.json_schema.schema", "uniqueItems"),
        (of_schema({"type": "string", "format": "colour"}), "response_format.json_schema.schema", "colour"),
        (of_schema({"$ref": "http://x.example/y"}), "response_format.json_schema.schema", "http://x.example/y"),
        (of_schema({"type": "string", "pattern": "(?=a)"}), "response_format.json_schema.schema", "look-around"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "cannot be read as JSON"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "regex"),
        ({"structured_outputs": {"grammar": "start: nowhere"}}, "structured_outputs.grammar", "nowhere"),
        (
            {"structured_outputs": {"structural_tag": {"triggers": []}}},
            "structured_outputs.structural_tag",
            "structures",
        ),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs", "exactly one of"),
        ({"structured_outputs": {"regex": "a"}, "guided_json": {}}, "guided_json", "both say"),
        ({"guided_regex": "(a"}, "guided_regex", "regex"),
        ({"guided_grammar": 'root ::= "a'}, "guided_grammar", ""),
        ({"guided_choice": []}, "guided_choice", "at least 1"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "guided_json"),
    ],
    ids=str,
)
def test_what_no_answer_can_be_held_to_is_refused_by_its_field(
    serving: Cluster, fields: dict[str, Any], field: str, word: str
) -> None:
    error = refusal(serving, **fields)
    assert error["param"] == field
    assert word in error["message"]


HOSTILE = [
    of_schema({"$ref": "#"}),
    of_schema({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}),
    of_schema({"allOf": [{"anyOf": [{"properties": {f"{k}{i}": {"const": 1}}} for k in "ab"]} for i in range(20)]}),
    of_schema({"allOf": [{"type": "integer", "multipleOf": 7919}, {"type": "integer", "multipleOf": 7907}]}),
    of_schema({"enum": list(range(10**5))}),
    {"guided_choice": [f"{i}" for i in range(10**5)]},
    {"guided_regex": "(a|" * 90_000},
    {"structured_outputs": {"json": '{"properties":{"a":' * 10_000}},
    {"structured_outputs": {"grammar": "start: " + "(" * 100_000}},
    {
        "structured_outputs": {
            "grammar": 'start: %json {"allOf":[{"type":"integer","multipleOf":7919},'
            '{"type":"integer","multipleOf":7907}]}'
        }
    },
]


@pytest.mark.parametrize("fields", HOSTILE, ids=lambda fields: str(fields)[:60])
def test_hostile_forms_are_refused_and_harm_no_neighbour(serving: Cluster, fields: dict[str, Any]) -> None:
    with ThreadPoolExecutor(1) as threads:
        hostile = threads.submit(refusal, serving, **fields)
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 4}
        while not hostile.done():
            answer = httpx.post(f"{serving.url}/v1/completions", json=body, timeout=HANG_S)
            assert answer.status_code == 200
            time.sleep(0.05)
        assert hostile.result()["param"]


def test_forms_within_the_bounds_pass_again_and_again(serving: Cluster) -> None:
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
    for form in ({"json": DEEP}, {"choice": [f"{i}" for i in range(5000)]}, {"regex": "(a{1,1000}){1,1000}"}):
        for _ in range(2):
            answer = httpx.post(
                f"{serving.url}/v1/completions", json=body | {"structured_outputs": form}, timeout=HANG_S
            )
            assert answer.status_code == 200, answer.text
