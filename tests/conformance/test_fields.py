"""Each field of OpenAI's and vLLM's requests is sent, and what becomes of it is what the page says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.router.cluster import Cluster, cluster

from baton.errors import InvalidRequest
from baton.requests.refusals import read_value

from .fields import ELSEWHERE, EMBEDDINGS, ROUTES, Route, With


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("conformance"), [{"worker_id": "d0", "step_ms": 0.5}]) as made:
        yield made


def named(route: Route) -> list[str]:
    return sorted(route.openai_fields() | route.vllm_fields())


def body_of(route: Route, name: str, value: Any) -> dict[str, Any]:
    others = value.others if isinstance(value, With) else {}
    body = route.least | others | {name: value.value if isinstance(value, With) else value}
    if route is EMBEDDINGS and "messages" in body:
        del body["input"]
    return body


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_every_field_of_openai_and_vllm_is_decided(route: Route) -> None:
    unknown = [name for name in named(route) if route.what(name) is None]
    assert unknown == []
    assert [name for name in named(route) if name not in route.values] == []


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_what_is_sent_is_answered_as_the_table_says(serving: Cluster, route: Route) -> None:
    wrong = []
    with httpx.Client(base_url=serving.url, timeout=60) as http:

        def ask(name: str, value: Any) -> tuple[int, str | None]:
            body = body_of(route, name, value)
            if route is EMBEDDINGS:  # no worker here makes any
                try:
                    read_value(route.model, body)
                except InvalidRequest as error:
                    return error.status, error.field
                return 200, None
            answer = http.post(route.path, json=body)
            return answer.status_code, None if answer.status_code < 400 else answer.json()["error"]["param"]

        for name in named(route):
            what, value = route.what(name), route.values[name]
            served = what in ("honoured", "without effect") and name not in ELSEWHERE
            neutral = route.model.unserved[name].neutral if name in route.model.unserved else ()
            answers = [(value, ask(name, value), served), *((each, ask(name, each), True) for each in neutral)]
            if name in ELSEWHERE and route is EMBEDDINGS:
                continue
            for sent, (status, field), is_served in answers:
                if (status == 200) != is_served or (not is_served and (status not in (400, 404) or field != name)):
                    wrong.append((name, sent, status, field))
    assert wrong == []


def test_an_unknown_field_is_refused_by_name_on_every_route(serving: Cluster) -> None:
    for route in ROUTES:
        answer = httpx.post(f"{serving.url}{route.path}", json=route.least | {"no_such_field": 1})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "no_such_field")
