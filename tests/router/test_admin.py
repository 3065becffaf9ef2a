"""What admins ask of a router: with a key of their own, of all workers."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.processes import HANG_S

from baton.errors import ConfigError
from baton.router.auth import ADMIN_PATHS
from baton.router.config import RouterConfig

from .cluster import Cluster, cluster, wait_until

KEY, ADMIN_KEY = "a-key-of-clients", "a-key-of-admins"
PROMPT = [20 + i % 60 for i in range(64)]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    workers = [{"worker_id": "d0"}, {"worker_id": "d1", "max_sleep": 0}]
    with cluster(
        *(tmp_path_factory.mktemp("admin"), workers),
        api_key=(KEY,),
        admin_api_key=ADMIN_KEY,
        enable_tokenizer_info_endpoint=True,
    ) as made:
        yield made


@pytest.fixture
def admin(guarded: Cluster) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    with httpx.Client(base_url=guarded.url, headers=headers, timeout=30) as client:
        yield client
        assert client.post("/wake_up").status_code == 200


def complete(guarded: Cluster, **settings: Any) -> Any:
    return guarded.client(api_key=KEY).completions.create(model="tiny", prompt=PROMPT, max_tokens=4, **settings)


def method_of(path: str) -> str:
    return "GET" if path in ("/is_sleeping", "/server_info") else "POST"


@pytest.mark.parametrize("path", sorted(ADMIN_PATHS))
def test_no_key_of_clients_opens_what_is_for_admins(guarded: Cluster, path: str) -> None:
    for headers in ({}, {"authorization": f"Bearer {KEY}"}, {"authorization": ADMIN_KEY}, {"x-api-key": ADMIN_KEY}):
        answer = httpx.request(method_of(path), guarded.url + path, headers=headers)
        assert answer.status_code == 401
        assert "admin" in answer.json()["error"]["message"]


def test_the_key_of_admins_opens_nothing_else(guarded: Cluster, admin: httpx.Client) -> None:
    assert admin.get("/v1/models").status_code == 401


def test_without_a_key_nobody_is_an_admin_and_hears_how_to_be(tmp_path: Any) -> None:
    with cluster(tmp_path, []) as made:
        for path in ADMIN_PATHS:
            answer = httpx.request(method_of(path), made.url + path)
            assert answer.status_code == 403
            assert "--admin-api-key" in answer.json()["error"]["message"]
        missing = httpx.get(made.url + "/tokenizer_info")
        assert missing.status_code == 404
        assert "--enable-tokenizer-info-endpoint" in missing.json()["error"]["message"]


def test_one_key_is_not_for_both() -> None:
    with pytest.raises(ConfigError, match="admin_api_key"):
        RouterConfig(api_key=("k",), admin_api_key="k")


def test_a_cache_that_is_reset_is_not_found_again(guarded: Cluster, admin: httpx.Client) -> None:
    def num_cached() -> int:
        return max(complete(guarded).usage.prompt_tokens_details.cached_tokens for _ in range(4))

    assert num_cached() > 0
    assert guarded.ask(lambda state: len(state.index)) > 0
    assert admin.post("/reset_prefix_cache").json() == {"success": True}
    wait_until(lambda: guarded.ask(lambda state: len(state.index)) == 0)
    assert complete(guarded).usage.prompt_tokens_details.cached_tokens == 0


def test_a_model_that_sleeps_refuses_until_it_is_woken_up(guarded: Cluster, admin: httpx.Client) -> None:
    assert admin.get("/is_sleeping").json() == {"is_sleeping": False}
    assert admin.post("/sleep?level=0").json() == {"status": "sleeping", "level": 0}
    assert admin.get("/is_sleeping").json() == {"is_sleeping": True}
    with pytest.raises(openai.InternalServerError) as refused:
        complete(guarded)
    assert refused.value.status_code == 503
    assert "POST /wake_up" in refused.value.message
    assert int(refused.value.response.headers["retry-after"]) > 1
    assert "sleep" in httpx.get(guarded.url + "/ready").json()["error"]["message"]
    assert admin.post("/wake_up").json() == {"status": "awake", "tags": None}
    assert admin.get("/is_sleeping").json() == {"is_sleeping": False}
    assert complete(guarded).choices[0].text


def test_a_depth_that_one_worker_does_not_know_leaves_all_awake(guarded: Cluster, admin: httpx.Client) -> None:
    refused = admin.post("/sleep")
    assert refused.status_code == 400
    assert "d1: level=1" in refused.json()["error"]["message"]
    assert complete(guarded).choices[0].text


def test_a_worker_that_is_lost_meanwhile_leaves_the_others_awake(tmp_path: Path) -> None:
    with (
        cluster(tmp_path, [{"worker_id": "d0"}, {"worker_id": "d1"}], admin_api_key=ADMIN_KEY) as made,
        httpx.Client(base_url=made.url, headers={"authorization": f"Bearer {ADMIN_KEY}"}, timeout=HANG_S) as admin,
    ):
        silent = made.workers["d1"].process
        assert silent is not None
        silent.send_signal(signal.SIGSTOP)
        try:
            refused = admin.post("/sleep?level=0")
            assert refused.status_code == 503
            assert "d1 was lost" in refused.json()["error"]["message"]
            assert made.client().completions.create(model="tiny", prompt=PROMPT, max_tokens=4).choices[0].text
        finally:
            silent.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("query", "field"),
    [("sleep?level=2", "level"), ("sleep?level=x", "level"), ("sleep?mode=keep", "mode"), ("wake_up?tags=x", "tags")],
)
def test_what_is_not_served_is_named(guarded: Cluster, admin: httpx.Client, query: str, field: str) -> None:
    refused = admin.post(f"/{query}")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == field


def test_requests_are_ended_by_their_ids(guarded: Cluster, admin: httpx.Client) -> None:
    client = guarded.client(api_key=KEY)
    streams = [
        client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=1900, stream=True, extra_headers={"x-request-id": name}
        )
        for name in ("one", "other")
    ]
    for stream in streams:
        next(stream)
    assert admin.post("/abort_requests", json={"request_ids": ["one", "nobody"]}).json()["aborted"] == 1
    with pytest.raises(openai.APIError, match="An admin"):
        list(streams[0])
    next(streams[1])
    assert admin.post("/abort_requests", json={"request_ids": "one"}).status_code == 400
    for nobody in ({"request_ids": []}, []):
        assert admin.post("/abort_requests", json=nobody).json()["aborted"] == 0
    assert admin.post("/abort_requests").json() == {"status": "aborted", "aborted": 1}
    with pytest.raises(openai.APIError, match="An admin"):
        list(streams[1])


def test_settings_are_shown_without_secrets(guarded: Cluster, admin: httpx.Client) -> None:
    shown = admin.get("/server_info?config_format=json")
    assert shown.json()["vllm_config"]["workers"]["d0"]["legs"] == ["decode"]
    for secret in (KEY, ADMIN_KEY):
        assert secret not in shown.text
    assert isinstance(admin.get("/server_info").json()["vllm_config"], str)


def test_the_tokenizer_is_described_to_clients(guarded: Cluster) -> None:
    info = httpx.get(guarded.url + "/tokenizer_info", headers={"authorization": f"Bearer {KEY}"}).json()
    assert info["tokenizer_class"]
    assert "messages" in info["chat_template"]
