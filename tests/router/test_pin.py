"""A pinned request goes the way that its header says, if whoever sends it may say so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from baton.errors import InvalidRequest
from baton.router.auth import NotAuthorized
from baton.router.config import RouterConfig
from baton.router.http_config import HttpConfig
from baton.router.pin import Pin, read_pin

from .cluster import Cluster, cluster

WORKERS: list[dict[str, Any]] = [
    {"worker_id": "p0", "legs": ["prefill"]},
    {"worker_id": "p1", "legs": ["prefill"]},
    {"worker_id": "d0", "legs": ["decode"]},
    {"worker_id": "d1", "legs": ["decode"]},
]
LOCAL = RouterConfig()


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("pin"), WORKERS) as made:
        yield made


def ask(serving: Cluster, pin: str, **headers: str) -> httpx.Response:
    body = {"prompt": [40] * 40, "max_tokens": 12, "temperature": 0, "return_token_ids": True}
    headers |= {"x-baton-pin": pin, "x-baton-explain": "1"}
    return httpx.post(f"{serving.url}/v1/completions", json=body, headers=headers)


@pytest.mark.parametrize("decode", ["d0", "d1"])
@pytest.mark.parametrize("prefill", [None, "p0", "p1"])
def test_a_pinned_request_goes_to_the_workers_that_it_names(serving: Cluster, decode: str, prefill: str | None) -> None:
    way = "path=local" if prefill is None else f"prefill={prefill}"
    route = ask(serving, f"{way}; decode={decode}").headers["x-baton-route"]
    shown = "path=local" if prefill is None else "path=remote"
    assert route.startswith(f"{shown}; decode={decode}; " + (f"prefill={prefill}; " if prefill else "cost_ms="))


@pytest.mark.parametrize("pin", ["path=local; decode=d0; replay=5", "prefill=p1; decode=d0; replay=1"])
def test_a_request_is_replayed_elsewhere_after_the_tokens_that_its_pin_says(serving: Cluster, pin: str) -> None:
    plain = ask(serving, "path=local; decode=d1").json()["choices"][0]
    told = ask(serving, pin, **{"x-request-id": pin.replace("; ", ".").replace("=", "-")})
    assert told.json()["choices"][0]["token_ids"] == plain["token_ids"]
    params = {"id": told.headers["x-request-id"]}
    routes = httpx.get(f"{serving.url}/debug/route", params=params).json()["routes"]
    assert [each["chosen"]["decode"] for each in routes] == ["d0", "d1"]


@pytest.mark.parametrize("pin", ["decode=nobody", "decode=p0", "prefill=d0"])
def test_a_worker_that_is_not_there_or_has_not_the_leg_is_refused_by_name(serving: Cluster, pin: str) -> None:
    answer = ask(serving, pin)
    assert answer.status_code == 400
    assert f"x-baton-pin='{pin}' is not valid: no live worker of this name" in answer.json()["error"]["message"]


def test_what_a_pin_leaves_out_is_chosen_as_always() -> None:
    assert read_pin(None, LOCAL) is None
    assert read_pin("decode=d", LOCAL) == Pin(decode="d")
    assert read_pin(" path=local;replay=3; ", LOCAL) == Pin("local", replay=3)
    assert read_pin("prefill=p", LOCAL) == Pin("remote", prefill="p")


@pytest.mark.parametrize(
    "pin",
    [
        *("", ";", "decode", "decode=", "worker=d0", "decode=a; decode=b", "path=auto", "path=local; prefill=p0"),
        *("replay=0", "replay=-1", "replay=1.5", "replay=\u0663", "replay=1000000", "decode=a=b; path"),
    ],
)
def test_another_form_is_refused(pin: str) -> None:
    with pytest.raises(InvalidRequest, match="it must be path=local"):
        read_pin(pin, LOCAL)


def test_strangers_of_a_public_router_choose_no_workers(tmp_path: Path) -> None:
    public = RouterConfig(host="0.0.0.0")
    with pytest.raises(NotAuthorized, match="for those who have a key"):
        read_pin("decode=d0", public)
    assert read_pin("decode=d0", RouterConfig(host="0.0.0.0", api_key=("key",))) == Pin(decode="d0")
    anonymous = HttpConfig(allow_anonymous=True)
    with cluster(tmp_path, WORKERS[2:3], host="0.0.0.0", http=anonymous) as open_to_all:
        assert ask(open_to_all, "decode=d0").status_code == 401
