"""Keys: what each may take, and that one's flood leaves the others theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import ConfigError
from baton.protocol import NOBODY, Share
from baton.router.auth import Authenticator
from baton.router.tenants import Tenants
from baton.router.turnover import Backlog, Batch

from .cluster import cluster, wait_until

KEYS = ("sk-a", "sk-b")
A, B = Share(b"a"), Share(b"b")


def write(folder: Path, text: str) -> str:
    file = folder / "tenants.yaml"
    file.write_text(text)
    return str(file)


def test_a_key_reaches_workers_only_as_a_hash() -> None:
    tenants, authenticator = Tenants(KEYS, "salt", None), Authenticator(KEYS, "salt")
    shares = [tenants.of(authenticator.authorize(f"Bearer {key}")).share for key in KEYS]
    assert shares[0].tenant != shares[1].tenant
    assert not any(key.encode() in msgspec.msgpack.encode(share) for key in KEYS for share in shares)


def test_with_one_key_or_none_nobody_is_told_apart() -> None:
    assert Tenants((), "", None).of(b"").share == NOBODY
    tenant = Authenticator(("sk-a",), "").authorize("Bearer sk-a")
    assert Tenants(("sk-a",), "", None).of(tenant).share == NOBODY


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("sk-wrong: {}", "entry 1 is no key"),
        ("sk-a: {streams: 3}", "Limits are weight, tokens_per_minute"),
        ("sk-a: {weight: 0}", "weight must be above 0"),
        ("sk-a: {weight: .nan}", "weight must be above 0"),
        ("sk-a: {max_streams: -1}", "at least 0"),
        ("sk-a: [", "YAML file"),
        ("- sk-a", "each with its limits"),
        ("sk-a: 3", "entry 1"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_what_is_right(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        Tenants(KEYS, "", write(tmp_path, text))
    assert "sk-" not in str(caught.value).replace(str(tmp_path), "")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can be read"):
        Tenants(KEYS, "", str(tmp_path / "none"))


@given(st.lists(st.tuples(st.sampled_from([A, B, Share(b"c", 4.0)]), st.integers(1, 50)), max_size=30))
def test_what_goes_before_is_no_more_than_all_and_nothing_is_left_of_what_went(added: list[Any]) -> None:
    backlog = Backlog()
    for share, amount in added:
        backlog.add(share, amount)
    assert backlog.of(A) <= backlog.before(A, 10) <= backlog.total == backlog.before(NOBODY, 10)
    assert backlog.before(Share(b"new"), 10) <= 20 + 40
    for share, amount in added:
        backlog.add(share, -amount)
    assert (backlog.total, backlog._of) == (0, {})


def test_who_floods_waits_behind_itself_and_a_place_is_free_for_another() -> None:
    batch = Batch()
    batch.running.add(A, 56)
    batch.waiting.add(A, 300)
    assert batch.position(A, 1, 356, 64) == 301
    assert batch.position(B, 1, 356, 64) <= 0
    assert batch.position(NOBODY, 1, 356, 64) == 293


TENANTS = """
"*": {max_streams: 2}
sk-b: {tokens_per_minute: 60, priority: -5}
"""


def test_caps_and_priorities_are_those_of_the_key(tmp_path: Path) -> None:
    worker = [{"worker_id": "d0", "step_ms": 20.0}]
    with cluster(tmp_path, worker, api_key=KEYS, tenants=write(tmp_path, TENANTS)) as made:

        def ask(key: str, **body: Any) -> httpx.Response:
            body = {"prompt": [20] * 40, "max_tokens": 2, "ignore_eos": True} | body
            headers = {"authorization": f"Bearer {key}"}
            return httpx.post(f"{made.url}/v1/completions", json=body, headers=headers)

        refused = ask("sk-a", priority=-1)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "priority"
        assert "0 or more" in refused.json()["error"]["message"]
        assert ask("sk-b", priority=-5).status_code == 200
        assert ask("sk-a", priority=3).status_code == 200

        body = {"prompt": [[20], [21]], "max_tokens": 1000, "ignore_eos": True, "stream": True}
        headers = {"authorization": "Bearer sk-a"}
        with httpx.stream("POST", f"{made.url}/v1/completions", json=body, headers=headers):
            refused = ask("sk-a")
            assert refused.status_code == 429
            assert "2 open requests" in refused.json()["error"]["message"]
            assert ask("sk-b").status_code == 200
        wait_until(lambda: not made.state.dispatcher.flows)
        assert ask("sk-a").status_code == 200

        refused = ask("sk-b")  # 84 tokens were served, of 60 in a minute
        assert refused.status_code == 429
        assert 20 <= int(refused.headers["retry-after"]) <= 30
        assert "60 tokens a minute" in refused.json()["error"]["message"]
        assert made.state.metrics.admission_refusals.value("tenant") == 2
