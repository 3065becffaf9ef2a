"""Sleep and forgotten caches of a real deployment, seen by several routers."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest
from tests.cluster import ADMIN_KEY, Cluster, prompt_of
from tests.processes import HANG_S, eventually


@pytest.fixture
def admin(cluster: Cluster) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    with httpx.Client(base_url=cluster.routers["2p2d"].url, headers=headers, timeout=HANG_S) as client:
        yield client
        assert client.post("/wake_up").status_code == 200
    cluster.assert_quiet()


def test_all_workers_sleep_for_all_routers_and_answer_the_same_when_awake(
    cluster: Cluster, admin: httpx.Client
) -> None:
    prompt = prompt_of(61_000, 200)
    before = cluster.complete("1p1d", prompt)
    assert admin.post("/sleep").json() == {"status": "sleeping", "level": 1}
    url = cluster.routers["1p1d"].url
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    eventually(lambda: httpx.get(f"{url}/is_sleeping", headers=headers).json()["is_sleeping"], "others hear of it")
    with pytest.raises(openai.InternalServerError, match="POST /wake_up"):
        cluster.complete("1p1d", prompt)
    assert admin.post("/wake_up").json()["status"] == "awake"
    eventually(lambda: not httpx.get(f"{url}/is_sleeping", headers=headers).json()["is_sleeping"], "they hear again")
    usage = cluster.completion("1p1d", prompt).usage
    assert usage.prompt_tokens_details is None or not usage.prompt_tokens_details.cached_tokens
    assert cluster.complete("1p1d", prompt) == before


def test_a_stream_goes_on_while_what_is_cached_is_forgotten(cluster: Cluster, admin: httpx.Client) -> None:
    prompt = prompt_of(61_100, 100)
    expected = cluster.complete("2p2d", prompt, max_tokens=200)[0]
    ids: list[int] = []
    stream = cluster.client("2p2d").completions.create(
        model="tiny",
        prompt=prompt,
        max_tokens=200,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    for number, chunk in enumerate(stream):
        if number in (1, 5):
            assert admin.post("/reset_prefix_cache?reset_external=true").json() == {"success": True}
        ids += (chunk.choices[0].model_extra or {}).get("token_ids") or []
    assert ids == expected.ids
