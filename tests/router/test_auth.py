"""Keys: every route but the public ones needs one, however it is asked for."""

from collections.abc import Iterator

import httpx
import pytest

from baton.errors import ConfigError
from baton.router.auth import PUBLIC_PATHS, Authenticator, NotAuthorized, salt_of
from baton.router.http_config import HttpConfig

from .cluster import Cluster, cluster

KEYS = ("first-secret-key", "second-secret-key")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("auth"), [{"worker_id": "d0"}], api_key=KEYS, admin_api_key="admins") as made:
        yield made


def test_every_route_but_the_public_ones_refuses_a_stranger(guarded: Cluster) -> None:
    headers = {"authorization": f"Bearer {KEYS[0]}"}
    paths = httpx.get(f"{guarded.url}/openapi.json", headers=headers).json()["paths"]
    assert set(paths) >= {"/v1/chat/completions", "/tokenize", "/metrics", "/debug/route", "/health"}
    with httpx.Client(base_url=guarded.url) as http:
        for path, operations in [*paths.items(), ("/openapi.json", {"get": {}})]:
            for method in operations:
                for wrong in ({}, {"authorization": "Bearer wrong-key"}, {"authorization": KEYS[0]}):
                    answer = http.request(method, path.replace("{name}", "x"), headers=wrong)
                    if path in PUBLIC_PATHS:
                        assert answer.status_code == 200
                    else:
                        assert answer.status_code == 401, path
                        assert answer.json()["error"]["type"] == "authentication_error"
                        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_key_sees_its_own_requests_only(guarded: Cluster) -> None:
    clients = [httpx.Client(base_url=guarded.url, headers={"authorization": f"Bearer {key}"}) for key in KEYS]
    for i, client in enumerate(clients):
        for kind, max_tokens in (("served", 2), ("refused", -1)):
            body = {"model": "tiny", "prompt": [20, 30], "max_tokens": max_tokens}
            client.post("/v1/completions", json=body, headers={"x-request-id": f"{kind}-{i}"})
    for i, client in enumerate(clients):
        shown = {each["id"] for each in client.get("/debug/requests").json()["requests"]}
        assert shown == {f"served-{i}", f"refused-{i}"}
        assert client.get(f"/debug/route?id=served-{i}").status_code == 200
        assert client.get(f"/debug/route?id=served-{1 - i}").status_code == 404
        client.close()


@pytest.mark.parametrize(
    "path", ["/metrics/", "//metrics", "/METRICS", "/health/../metrics", "/metrics%2f", "/health;/metrics"]
)
@pytest.mark.parametrize("host", ["x", "x?", "x/health", "health", ""])
def test_odd_paths_and_hosts_are_no_way_round(guarded: Cluster, path: str, host: str) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", guarded.config.port)) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        client.settimeout(5)
        status = client.recv(4096).split(b" ")[1]
    assert status in (b"401", b"404", b"400")


def test_each_key_is_let_in(guarded: Cluster) -> None:
    for key in KEYS:
        assert guarded.client(api_key=key).models.list().data[0].id == "tiny"


def test_each_key_has_a_cache_of_its_own(guarded: Cluster) -> None:
    prompt = [20 + i % 60 for i in range(64)]
    seen = []
    for key in (KEYS[0], KEYS[0], KEYS[1]):
        usage = guarded.client(api_key=key).completions.create(model="tiny", prompt=prompt, max_tokens=1).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        seen.append(usage.prompt_tokens_details.cached_tokens)
    assert seen == [0, 63, 0]


def test_salts_are_equal_only_for_equal_tenants_and_names() -> None:
    authenticator = Authenticator(KEYS, "secret")
    tenants = [authenticator.authorize(f"Bearer {key}") for key in KEYS]
    salts = {salt_of(tenant, name) for tenant in [*tenants, b""] for name in (None, "a", "b")}
    assert len(salts) == 9
    assert authenticator.authorize(f"bearer {KEYS[0]}") == tenants[0]
    for wrong in (None, "", "Bearer", "Bearer ", "Basic x", f"Bearer {KEYS[0]}x", f"Bearer {KEYS[0][:-1]}"):
        with pytest.raises(NotAuthorized):
            authenticator.authorize(wrong)
    assert Authenticator((), "").authorize(None) == b""


def test_a_short_key_is_taken_and_one_that_cannot_be_sent_is_refused() -> None:
    HttpConfig().check("0.0.0.0", ("none",))
    for key in ("", "two words", "line\n"):
        with pytest.raises(ConfigError, match="without spaces"):
            HttpConfig().check("127.0.0.1", (key,))
    assert Authenticator(("schlüssel",), "").authorize("Bearer " + "schlüssel".encode().decode("latin-1"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.1.2.3", "[::]"])
def test_a_server_beyond_this_machine_needs_a_key_or_the_word_that_it_needs_none(host: str) -> None:
    with pytest.raises(ConfigError, match=r"--api-key.*--allow-anonymous"):
        HttpConfig().check(host, ())
    HttpConfig().check(host, ("secret",))
    HttpConfig(allow_anonymous=True).check(host, ())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"])
def test_the_loopback_needs_no_key(host: str) -> None:
    HttpConfig().check(host, ())
