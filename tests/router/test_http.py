"""HTTP as clients speak it: offers of other protocols, browsers, HTTP/1.0, HEAD, unix sockets, TLS, proxies' paths."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from baton.errors import ConfigError
from baton.router import request_line
from baton.router.http_config import HttpConfig
from baton.router.load_line import LoadLine

from .cluster import Cluster, cluster, wait_until

BODY: dict[str, Any] = {"model": "tiny", "prompt": [20, 30, 40], "max_tokens": 4}
ORIGIN, KEY = "https://app.example.com", "a-key-of-twenty-chars"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("http"), [{"worker_id": "d0"}]) as made:
        yield made


def exchange(serving: Cluster, *requests: bytes) -> bytes:
    """Send pieces of bytes, each by itself, and read to the end of the connection."""
    with socket.create_connection(("127.0.0.1", serving.config.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for request in requests:
            connection.sendall(request)
        connection.settimeout(60)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def post(body: dict[str, Any], *headers: str, version: str = "1.1", end: bool = True) -> bytes:
    """Write a POST of a completion."""
    content = json.dumps(body).encode()
    lines = [f"POST /v1/completions HTTP/{version}", "host: x", f"content-length: {len(content)}", *headers]
    if end and version == "1.1":
        lines.append("connection: close")
    return "\r\n".join((*lines, "", "")).encode() + content


def half_close(serving: Cluster, request: bytes) -> bytes:
    """Send a request, shut the sending half, and read to the end of the connection."""
    with socket.create_connection(("127.0.0.1", serving.config.port)) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(60)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_shuts_its_sending_half_is_answered(serving: Cluster, stream: bool) -> None:
    answer = half_close(serving, post(BODY | {"stream": stream, "max_tokens": 200, "ignore_eos": True}, end=False))
    heads = [line for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert heads == [b"HTTP/1.1 100 Continue", b"HTTP/1.1 200 OK"]
    assert b"connection: close" in answer
    assert b'"finish_reason":"length"' in answer
    assert not serving.connections


@pytest.mark.parametrize("request_", [post(BODY)[:-1], b"GET /v1/mod", b""])
def test_a_request_whose_rest_will_not_come_ends_its_connection(serving: Cluster, request_: bytes) -> None:
    assert b" 200 " not in half_close(serving, request_)
    wait_until(lambda: not serving.connections)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_has_left_before_its_answer_began_ends_its_request(tmp_path: Path, stream: bool) -> None:
    with cluster(tmp_path, [{"worker_id": "d0", "prefill_rate": 0.001}]) as made:  # no token will come
        with socket.create_connection(("127.0.0.1", made.config.port)) as connection:
            connection.sendall(post(BODY | {"stream": stream}, end=False))
            made.ask(lambda state: state.dispatcher.flows, until=True)
        wait_until(lambda: not made.state.dispatcher.flows)
        wait_until(lambda: not made.connections)


@pytest.mark.parametrize(
    "offer",
    [
        ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQCAAAAAAIAAAAA"),
        ("Connection: Upgrade", "Upgrade: websocket", "sec-websocket-key: x", "sec-websocket-version: 13"),
        ("connection: keep-alive, Upgrade", "upgrade: h2c, websocket", "upgrade: TLS/1.0"),
        ("upgrade: h2c",),
        ("connection: upgrade", "upgrade: x", "expect: 100-continue"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_offers_another_protocol_is_answered_over_http_1(
    serving: Cluster, offer: tuple[str, ...], stream: bool
) -> None:
    request = post({**BODY, "stream": stream}, *offer)
    plain = exchange(serving, post({**BODY, "stream": stream}))
    for pieces in ([request], [request[:60], request[60:-9], request[-9:]]):
        answer = exchange(serving, *pieces)
        assert b"HTTP/1.1 200 OK" in answer
        assert b"HTTP/1.1 101" not in answer
        assert answer.count(b'"text"') == plain.count(b'"text"')


def test_offers_in_chunks_and_on_one_connection_are_answered_in_order(serving: Cluster) -> None:
    offer = ("connection: Upgrade", "upgrade: h2c")
    chunked = (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    content = json.dumps({**BODY, "max_tokens": 2}).encode()
    chunked += b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
    health = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    last = post({**BODY, "max_tokens": 1}, *offer, end=True)
    answer = exchange(serving, chunked + health + post(BODY, *offer, end=False) + last)
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    assert [int(n.split(b",")[0].split(b"}")[0]) for n in answer.split(b'"completion_tokens":')[1:]] == [2, 4, 1]


@pytest.mark.parametrize("head", [b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
def test_what_is_no_request_to_this_server_is_refused(serving: Cluster, head: bytes) -> None:
    assert exchange(serving, head).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_over_http_1_0_has_no_chunks_and_ends_with_the_connection(serving: Cluster, stream: bool) -> None:
    head, _, body = exchange(serving, post({**BODY, "stream": stream}, version="1.0")).partition(b"\r\n\r\n")
    assert b"200 OK" in head
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    if stream:
        assert body.startswith(b"data: {")
        assert body.endswith(b"data: [DONE]\n\n")
    else:
        assert json.loads(body)["usage"]["completion_tokens"] == 4
        assert b"content-length: %d" % len(body) in head


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/metrics", "/"])
def test_head_is_answered_where_get_is_without_a_body(serving: Cluster, path: str) -> None:
    answer = exchange(serving, f"HEAD {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b"\r\n\r\n")
    assert httpx.head(serving.url + "/v1/completions").status_code == 405


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/models/"), ("GET", "/health//"), ("POST", "/v1/completions/")]
)
def test_a_slash_at_the_end_changes_nothing(serving: Cluster, method: str, path: str) -> None:
    answer = httpx.request(method, serving.url + path, json=BODY if method == "POST" else None)
    assert (answer.status_code, answer.history) == (200, [])


def preflight(url: str, **headers: str) -> httpx.Response:
    asked = {"origin": ORIGIN, "access-control-request-method": "POST"}
    asked |= {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.options(f"{url}/v1/chat/completions", headers=asked)


def test_pages_of_any_origin_may_ask_where_a_key_is_asked_for_or_all_are_named(tmp_path: Any) -> None:
    http = HttpConfig(allowed_origins=("*",))
    with cluster(tmp_path, [{"worker_id": "d0"}], http=http) as open_to_all:
        check_that_any_origin_may_ask(open_to_all, {})
    with cluster(tmp_path, [{"worker_id": "d0"}], api_key=(KEY,)) as keyed:
        check_that_any_origin_may_ask(keyed, {"authorization": f"Bearer {KEY}"})


def check_that_any_origin_may_ask(serving: Cluster, key: dict[str, str]) -> None:
    answer = preflight(serving.url, access_control_request_headers="authorization,content-type,x-stainless-os")
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"]
    for stream in (False, True):
        answer = httpx.post(
            f"{serving.url}/v1/completions", json={**BODY, "stream": stream}, headers={"origin": ORIGIN, **key}
        )
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
    wrong = httpx.post(f"{serving.url}/v1/completions", json={}, headers={"origin": ORIGIN, **key})
    assert (wrong.status_code, wrong.headers["access-control-allow-origin"]) == (400, "*")


LOCAL = [{}, {"origin": "http://localhost:3000"}, {"origin": "http://127.0.0.1:1"}, {"origin": "tauri://app"}]
LOCAL += [{"host": host} for host in ("localhost:8000", "[::1]:8000", "192.168.1.9", "box.local", "router")]
FOREIGN = [{"origin": origin} for origin in (ORIGIN, "null", "http://localhost.evil.com", "http://127.0.0.1@evil.com")]
FOREIGN += [{"host": host} for host in ("evil.com", "evil.com:8000", "localhost.evil.com", "127.0.0.1.nip.io", "[::1")]
FOREIGN += [{"host": "evil.com", "origin": "http://evil.com"}, {"content-type": "text/plain;charset=UTF-8"}]


@pytest.mark.parametrize("headers", LOCAL)
def test_a_server_without_keys_answers_programs_and_pages_of_its_own_machine(
    serving: Cluster, headers: dict[str, str]
) -> None:
    assert httpx.post(f"{serving.url}/v1/completions", json=BODY, headers=headers).status_code == 200
    as_curl_sends_it = {"content-type": "application/x-www-form-urlencoded", **headers}
    answer = httpx.post(f"{serving.url}/v1/completions", content=json.dumps(BODY), headers=as_curl_sends_it)
    assert answer.status_code == 200


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_server_without_keys_answers_no_page_of_elsewhere(serving: Cluster, headers: dict[str, str]) -> None:
    """Any page that is open in a browser on this machine reaches it, and DNS may make its name lead here."""
    for path in ("/v1/completions", "/debug/requests", "/"):
        answer = httpx.post(serving.url + path, content=json.dumps(BODY), headers=headers)
        assert answer.status_code == 403
        assert answer.json()["error"]["message"]
        assert "access-control-allow-origin" not in answer.headers


def test_a_page_that_is_named_may_ask_a_server_without_keys(tmp_path: Any) -> None:
    http = HttpConfig(allowed_origins=(ORIGIN,))
    with cluster(tmp_path, [], http=http) as named:
        answer = httpx.get(f"{named.url}/v1/models", headers={"origin": ORIGIN})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)
        assert httpx.get(f"{named.url}/v1/models", headers={"origin": "http://evil.com"}).status_code == 403
        assert httpx.get(f"{named.url}/v1/models", headers={"host": "evil.com"}).status_code == 403


def test_an_empty_list_of_origins_lets_no_page_ask(tmp_path: Any) -> None:
    with cluster(tmp_path, [], http=HttpConfig(allowed_origins=("[]",)), api_key=(KEY,)) as nobody:
        assert preflight(nobody.url).status_code == 400
        headers = {"origin": ORIGIN, "authorization": f"Bearer {KEY}"}
        assert "access-control-allow-origin" not in httpx.get(f"{nobody.url}/v1/models", headers=headers).headers


def test_a_page_from_outside_reaches_a_private_network_only_where_it_is_named(tmp_path: Any) -> None:
    with cluster(tmp_path, [], api_key=(KEY,)) as unnamed:
        answer = preflight(unnamed.url, access_control_request_private_network="true")
        assert answer.status_code == 400
        assert "--allowed-origins" in answer.json()["error"]["message"]
    http = HttpConfig(allowed_origins=(ORIGIN,), allow_credentials=True, allowed_methods=('["POST"]',))
    with cluster(tmp_path, [], http=http, api_key=(KEY,)) as named:
        answer = preflight(named.url, access_control_request_private_network="true")
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-private-network"] == "true"
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert answer.headers["access-control-allow-credentials"] == "true"
        for wrong in ({"origin": "http://evil"}, {"access_control_request_method": "DELETE"}):
            answer = preflight(named.url, **wrong)
            assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
        strange = httpx.get(f"{named.url}/v1/models", headers={"origin": "http://evil"})
        assert strange.status_code == 401
        assert "access-control-allow-origin" not in strange.headers


def test_a_proxy_may_offer_the_router_under_a_path_and_keep_it_or_not(tmp_path: Any) -> None:
    with cluster(tmp_path, [], http=HttpConfig(root_path="/llm")) as made:
        for path in ("/v1/models", "/llm/v1/models", "/llm/v1/models/", "/llm/", "/llm/page/page.css", "/"):
            assert httpx.get(made.url + path).status_code == 200
        assert httpx.get(made.url + "/other/v1/models").status_code == 404


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"root_path": "llm"}, "begin with /"),
        ({"ssl_keyfile": "key.pem"}, "--ssl-certfile"),
        ({"ssl_cert_reqs": 3, "ssl_certfile": "c.pem"}, "0, 1 or 2"),
        ({"allowed_origins": ("[1]",)}, "JSON list"),
        ({"allowed_headers": ("[",)}, "JSON list"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        HttpConfig(**wrong)


def test_a_unix_socket_takes_the_place_of_an_address(tmp_path: Any) -> None:
    path = str(tmp_path / "router.sock")
    with cluster(tmp_path, [{"worker_id": "d0"}], http=HttpConfig(uds=path)), uds_client(path) as client:
        assert client.get("/health").status_code == 200
        with client.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as answer:
            assert list(answer.iter_lines())[-2] == "data: [DONE]"


def uds_client(path: str) -> httpx.Client:
    return httpx.Client(base_url="http://baton", transport=httpx.HTTPTransport(uds=path))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_answers_and_streams_go_over_tls(tmp_path: Any) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(make, check=True, capture_output=True)
    http = HttpConfig(ssl_keyfile=key, ssl_certfile=certificate)
    with cluster(tmp_path, [{"worker_id": "d0"}], http=http) as made:
        trusted = httpx.Client(
            base_url=made.url.replace("http:", "https:"), verify=ssl.create_default_context(cafile=certificate)
        )
        with trusted as client:
            plain = client.post("/v1/completions", json=BODY).json()["choices"][0]["text"]
            with client.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as answer:
                events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
        assert "".join(event["choices"][0]["text"] for event in events) == plain
        environment = {**os.environ, "BATON_PORT": str(made.config.port), "BATON_SSL_CERTFILE": certificate}
        check = subprocess.run([sys.executable, "-m", "baton.ready"], env=environment, capture_output=True, text=True)
        assert check.returncode == 0, check.stdout


def test_each_request_that_ended_is_a_line_if_asked_for_and_never_its_text(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[dict[str, Any]] = []

    class Log:
        def info(self, event: str, **facts: Any) -> None:
            lines.append({"event": event, **facts})

    monkeypatch.setattr(request_line, "_log", Log())
    http = HttpConfig(enable_log_requests=True)
    with cluster(tmp_path, [{"worker_id": "d0"}], http=http) as made:
        two = {**BODY, "prompt": [[20, 30, 40], [21, 31]], "max_tokens": 3}
        for body in (BODY, {**BODY, "stream": True}, two, {**BODY, "prompt": "secret words", "n": 0}):
            httpx.post(f"{made.url}/v1/completions/", json=body, headers={"x-request-id": "mine"})
        for path in ("/health", "/ready", "/metrics", "/debug/workers", "/page/page.css", "/nowhere"):
            httpx.get(made.url + path)
        left = socket.create_connection(("127.0.0.1", made.config.port))
        left.sendall(post({**BODY, "stream": True, "max_tokens": 2000, "ignore_eos": True}))
        left.recv(100)
        left.close()
        wait_until(lambda: len(lines) == 6)
    whole, stream, both, refused, missing, gone = lines
    for line in (whole, stream):
        assert line.items() >= {"event": "request", "request_id": "mine", "status": 200, "state": "finished"}.items()
        assert line.items() >= {"path": "/v1/completions", "prompt_tokens": 3, "completion_tokens": 4}.items()
        assert (line["decode"], "prefill" in line, line["replays"]) == ("d0", False, 0)
        assert 0 < line["first_token_s"] <= line["seconds"]
    assert (both["prompt_tokens"], both["completion_tokens"]) == (5, 6)
    assert (refused["status"], "prompt_tokens" in refused) == (400, False)
    assert (missing["status"], missing["path"]) == (404, "/nowhere")
    assert (gone["state"], gone["status"]) == ("cancelled", 200)
    assert "secret" not in str(lines)


def test_load_is_told_while_there_is_some(tmp_path: Any) -> None:
    with cluster(tmp_path, [{"worker_id": "d0"}]) as made:
        line = made.ask(lambda state: LoadLine(state.metrics, state.dispatcher))
        assert made.ask(lambda _state: line.take()) == {}
        httpx.post(f"{made.url}/v1/completions", json=BODY)
        told = made.ask(lambda _state: line.take())
        assert (told["running"], told["waiting"]) == (0, 0)
        assert told["tokens_per_s"] > 0
        assert told["requests_per_s"] > 0
        assert "errors" not in told
        assert made.ask(lambda _state: line.take()) == {}
