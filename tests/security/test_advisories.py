"""What went wrong elsewhere does not here: a test a class of advisories on servers of this kind, named by one of them.

docs/threat-model.md has the table: each id, and where it is tested if not here.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import zmq
from tests.cluster import Cluster as Deployment
from tests.kvtransfer.blocks import Blocks, TestTicket, block_hashes, request_id
from tests.kvtransfer.test_transfer import Workers, ends_of, offer_all
from tests.processes import eventually
from tests.router.cluster import Cluster
from tests.router.cluster import cluster as router_cluster
from tests.worker.test_mailbox import INFO

from baton.checkout import ROOT
from baton.errors import InvalidRequest
from baton.kvtransfer import wire
from baton.kvtransfer.imports import Fetched
from baton.kvtransfer.transports.transport import Endpoint
from baton.messages import BadMessage, Cancel, ChoiceStart, Start, decode_to_router, decode_to_worker, encode
from baton.prompt import Prompt
from baton.protocol import SamplingParams
from baton.router.flow import Flow
from baton.router.generation import Generation
from baton.wakeup import Wakeup
from baton.worker.mailbox import Mailbox, Peer
from baton.worker.runs import Run, Runs

Case = dict[str, Any]
HTTP = httpx.Client()


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with router_cluster(tmp_path_factory.mktemp("advisories"), [{"worker_id": "d0", "answer_len": 4}]) as made:
        yield made


def complete(serving: Cluster, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "prompt": [20, 30, 40], "max_tokens": 3, **fields}
    return HTTP.post(f"{serving.url}/v1/completions", content=json.dumps(body), headers=headers)


def assert_refused(answer: httpx.Response, *words: str) -> None:
    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    assert all(word in message for word in words), message


# -- what is read ----------------------------------------------------------------------------------------------------


class Gadget:
    """Makes a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_cve_2025_32444_no_socket_unpickles_what_it_is_sent(tmp_path: Path, protocol: int, serving: Cluster) -> None:
    gadget = pickle.dumps(Gadget(tmp_path / "made"), protocol)
    for decode in (decode_to_worker, decode_to_router):
        with pytest.raises(BadMessage):
            decode(gadget)
    with pytest.raises(wire.BadFrame):
        wire.parse(bytes(16) + gadget, wire.TO_EXPORTER)
    with pytest.raises(wire.BadFrame):
        wire.parse(bytes(16) + gadget, wire.TO_IMPORTER)
    assert HTTP.post(f"{serving.url}/v1/completions", content=gadget).status_code == 400
    mailbox, workers, context = Mailbox(Wakeup()), Workers("tcp"), zmq.Context()
    try:
        control = mailbox.bind("tcp://127.0.0.1:*")
        mailbox.start(INFO)
        theirs, ours = Blocks(8, seed=1), Blocks(8)
        exporter, importer = workers.exporter(theirs.memory), workers.importer(ours.memory)
        for address in (control, *Endpoint.parse(exporter.endpoint).addresses["tcp"]):
            with context.socket(zmq.DEALER) as stranger:
                stranger.connect(address)
                stranger.send(gadget)
                stranger.send_multipart([gadget, gadget])
                stranger.setsockopt(zmq.LINGER, 2000)
        eventually(lambda: mailbox.dropped["garbage"] == 2 and exporter.stats.dropped.total() >= 2, "both are dropped")
        ticket = TestTicket(request_id(1), source=exporter.endpoint)
        importer.fetch(ticket, 0, block_hashes(1, 8), range(8))
        offer_all(exporter, ticket, 1, list(range(8)))
        assert isinstance(ends_of(importer)[0], Fetched)
    finally:
        workers.stop()
        mailbox.close()
        context.destroy(linger=0)
    assert not (tmp_path / "made").exists()


def test_cve_2026_115912_what_a_router_imports_can_unpickle_nothing_by_its_own_code() -> None:
    """A wire that refuses pickles is no use if what stands behind it unpickles: no module of ours names a pickler."""
    ours = [module for name, module in sys.modules.items() if name.startswith("baton.")]
    assert len(ours) > 50
    assert [module.__name__ for module in ours if {"pickle", "dill", "marshal", "shelve"} & vars(module).keys()] == []


def test_cve_2025_47277_services_listen_on_the_loopback_unless_told_otherwise(cluster: Deployment) -> None:
    for name, process in (*cluster.workers.items(), *cluster.routers.items()):
        assert process.process is not None
        family = psutil.Process(process.process.pid)
        listening = [
            connection.laddr.ip
            for each in (family, *family.children(recursive=True))
            for connection in each.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening, name
        assert set(listening) <= {"127.0.0.1", "::1"}, name


# -- the plane between prefill and decode ------------------------------------------------------------------------------

TRANSFER_FIELDS: list[Case] = [
    {
        "kv_transfer_params": {
            "do_remote_prefill": True,
            "remote_host": "10.0.0.1",
            "remote_port": 9,
            "tp_size": 1 << 40,
        }
    },
    {"kv_transfer_params": {}},
    {"bootstrap_host": "10.0.0.1", "bootstrap_port": 9, "bootstrap_room": 7},
    {"disaggregated_params": {"first_gen_tokens": [1], "ctx_request_id": 3}},
    {"ticket": {"source": "host:a;tcp://10.0.0.1:9"}, "block_hashes": ["00" * 16], "request_id": "a"},
    {"nvext": {"backend_instance_id": 1, "use_raw_prompt": True}},
]


@pytest.mark.parametrize("fields", TRANSFER_FIELDS, ids=lambda fields: next(iter(fields)))
def test_cve_2026_94624_a_client_names_no_host_port_block_or_worker(serving: Cluster, fields: Case) -> None:
    answer = complete(serving, **fields)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert any(name in answer.json()["error"]["message"] for name in fields)
    assert complete(serving).status_code == 200


def test_cve_2026_116176_an_id_of_the_clients_is_shown_and_never_a_key(serving: Cluster) -> None:
    given = "cmpl___prefill_addr_10.0.0.1:9___decode_addr_10.0.0.2:9_a"
    answer = complete(serving, {"x-request-id": given})
    assert answer.status_code == 200
    generation = Generation(Prompt([1]), SamplingParams(), public_id=given)
    ids = {Flow(generation, [], None).request_id for _ in range(2)}  # type: ignore[arg-type]
    assert len(ids) == 2
    assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in ids)


def test_cve_2026_112266_a_cancel_reaches_the_request_of_this_id_alone() -> None:
    runs, peer = Runs(), Peer("r", b"i", 0.0)
    ids = ["a" * 32, "a" * 31 + "b"]
    for each in ids:
        runs.open(Run.of(Start(each, 0, "decode", Prompt([1]), [ChoiceStart(0)], SamplingParams(), 1), peer))
    for sent in ("", "a", "a" * 31, "a" * 33):
        cancel = decode_to_worker(encode(Cancel(sent, 0)))
        assert isinstance(cancel, Cancel)
        assert runs.of_request(cancel.request_id) == []
    assert [run.start.request_id for run in runs.of_request(ids[0])] == ids[:1]


CONTROL_ROUTES = (
    *(
        "PUT /route",
        "POST /inference/v1/generate",
        "POST /generate",
        "POST /collective_rpc",
        "POST /sleep",
        "POST /wake_up",
    ),
    *("POST /reset_prefix_cache", "POST /flush_cache", "POST /v1/load_lora_adapter", "POST /update_weights_from_disk"),
    *("POST /start_profile", "POST /register_worker", "POST /add_worker", "POST /abort_requests", "GET /server_info"),
    *(
        "POST /v1/files",
        "GET /v1/files/..%2f..%2fetc%2fpasswd",
        "POST /upload",
        "GET /../../etc/passwd",
        "GET /static/../auth.py",
    ),
)


@pytest.mark.parametrize("route", CONTROL_ROUTES)
def test_cve_2026_92972_no_route_controls_or_takes_files(serving: Cluster, route: str) -> None:
    method, path = route.split()
    with socket.create_connection(("127.0.0.1", serving.config.port), 30) as connection:
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 2\r\n"
        connection.sendall(f"{head}content-type: application/json\r\n\r\n{{}}".encode())
        status = connection.makefile("rb").readline().split()[1]
    assert status in (b"400", b"403", b"404", b"405")


# -- one request that ends all others ------------------------------------------------------------------------------------

ODD_VALUES: list[Case] = [
    *({"prompt": empty} for empty in ("", [], [[]], [""])),
    *({"temperature": value} for value in (float("nan"), float("inf"), -1, "hot", 1e300)),
    *({"top_p": value} for value in (float("nan"), 0, 2)),
    {"min_tokens": 5, "max_tokens": 3},
    *({"max_tokens": value} for value in (-1, 1 << 70, 1.5)),
    *({"n": value} for value in (0, -1, 1 << 40)),
    {"prompt": [[5]] * 70, "n": 16},
    {"best_of": 1 << 20},
    {"seed": 1 << 80},
    {"logprobs": 1 << 31},
    {"prompt_logprobs": 1 << 31},
    *({name: [1 << 31]} for name in ("allowed_token_ids", "stop_token_ids", "prompt")),
    *({name: [-1]} for name in ("allowed_token_ids", "stop_token_ids", "prompt")),
    {"allowed_token_ids": []},
    {"allowed_token_ids": [400]},
    *({"logit_bias": {key: 1}} for key in ("-1", "400", "4294967296", "x")),
    {"logit_bias": {"5": float("nan")}},
    {"bad_words": [""]},
    {"repetition_penalty": 0},
    {"stop": [""]},
]


@pytest.mark.parametrize("fields", ODD_VALUES, ids=str)
def test_cve_2026_93989_odd_values_are_refused_before_a_worker_sees_them(serving: Cluster, fields: Case) -> None:
    assert_refused(complete(serving, **fields))


@pytest.mark.parametrize("field", ["prompt_embeds", "inputs_embeds", "custom_logit_processor", "logits_processors"])
def test_cve_2025_62164_tensors_and_code_are_not_taken(serving: Cluster, field: str) -> None:
    assert_refused(complete(serving, **{field: "gASVAAAA"}), field)


@pytest.mark.parametrize(
    "field", ["chat_template", "structured_outputs", "guided_regex", "guided_grammar", "guided_json"]
)
def test_cve_2025_61620_neither_templates_nor_grammars_of_a_client_are_run(serving: Cluster, field: str) -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        field: "{% for i in range(10**9) %}{% endfor %}",
    }
    assert_refused(HTTP.post(f"{serving.url}/v1/chat/completions", json=body), field)


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url", "file"])
def test_cve_2025_6242_no_address_in_a_request_is_fetched(serving: Cluster, kind: str) -> None:
    fetched = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)

        def accept() -> None:
            connection, _ = listener.accept()
            if connection.recv(4) != b"over":
                fetched.set()
            connection.close()

        waiting = threading.Thread(target=accept)
        waiting.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        part = {"type": kind, kind: {"url": f"http://{address}/a.png"}}
        body = {"model": "tiny", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, part]}]}
        assert_refused(HTTP.post(f"{serving.url}/v1/chat/completions", json=body))
        with socket.create_connection(listener.getsockname()) as connection:
            connection.sendall(b"over")
        waiting.join()
    assert not fetched.is_set()


def test_cve_2026_22778_errors_tell_nothing_of_the_inside(serving: Cluster) -> None:
    answers = [complete(serving, **fields) for fields in ODD_VALUES]
    answers += [HTTP.post(f"{serving.url}/v1/completions", content=body) for body in (b"", b"{", b"\xff", b"[]")]
    answers += [HTTP.get(f"{serving.url}{path}") for path in ("/none", "/v1/completions", "/debug/route?id=x")]
    for answer in answers:
        assert not re.search(
            r"0x[0-9a-f]{6,}|\.py\b|Traceback|site-packages|/home/|/root/|/usr/|<[\w.]+ object at ", answer.text
        )
        assert answer.json()["error"]["message"]


def test_cve_2026_114052_ids_of_a_request_are_checked_again_where_they_are_used() -> None:
    for params in ({"allowed_token_ids": [400]}, {"logit_bias": {400: 1.0}}, {"stop_token_ids": [400]}):
        with pytest.raises(InvalidRequest, match="400"):
            SamplingParams(**params).check_vocab(400, ())


# -- what it is made of ----------------------------------------------------------------------------------------------------


def test_cve_2026_54232_every_package_of_an_image_is_one_by_its_hash() -> None:
    files = [file for file in (ROOT / "compose/requirements").glob("*.txt") if file.name not in ("cuda-only.txt",)]
    assert len(files) >= 4
    for file in files:
        entries = re.split(r"\n(?=\S)", re.sub(r"(?m)^#.*\n", "", file.read_text()).strip())
        packages = [entry for entry in entries if "==" in entry or "@" in entry]
        assert packages, file.name
        assert [entry.split()[0] for entry in packages if "sha256" not in entry] == [], file.name
        assert "--extra-index-url" not in file.read_text(), file.name


def test_cve_2025_43859_what_reads_http_is_not_of_the_versions_that_were_smuggled_through() -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==([\d.]+)", (ROOT / "constraints.txt").read_text().lower(), re.MULTILINE))
    least = {"h11": (0, 16), "starlette": (1, 0, 1), "redis": (4, 5, 4), "jinja2": (3, 1, 6)}
    for name, version in least.items():
        assert tuple(map(int, pinned[name].split("."))) >= version, name
