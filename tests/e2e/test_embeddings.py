"""Vectors over HTTP: router and workers as processes, the real SDK, and transformers beside them."""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from tests.pooling_models import last_vectors, save_decoder
from tests.processes import HANG_S, BatonProcess, assert_quiet, eventually, free_ports, start_worker
from tests.router.tokenizer_folder import make_tokenizer_folder

from baton.text import Tokenizer

CONTEXT = 256
TEXTS = ["one", "a longer text, of some words", "x" * 200, "one"]
FLAGS = ("--served-model-name", "tiny", "--max-num-batched-tokens", "300", "--max-num-seqs", "32", "--cache-key", "k")


@dataclass
class Served:
    """A router and two workers of a model that pools, one started as each service."""

    model: Path
    router: BatonProcess
    workers: list[BatonProcess]

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.router.url}/v1", api_key="none", max_retries=0, timeout=HANG_S)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.router.url}{path}", json=body, timeout=HANG_S)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("embeddings")
    model = make_tokenizer_folder(folder / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    save_decoder(model, max(ids) + 1, CONTEXT)
    workers = [start_worker(service, model, folder, f"{service}-0", *FLAGS) for service in ("prefill", "decode")]
    (port,) = free_ports(1)
    arguments = ["router", "--model", str(model), "--served-model-name", "tiny", "--port", str(port)]
    for worker in workers:
        control = worker.arguments[worker.arguments.index("--control-port") + 1]
        arguments += ["--worker", f"tcp://127.0.0.1:{control}"]
    router = BatonProcess([*arguments, "--cache-key", "k"], folder / "router.log", port).start()
    try:
        for process in (*workers, router):
            process.wait_ready()
        eventually(lambda: router.metrics().get('workers{leg="pool"}') == 2, "the router sees both")
        yield Served(model, router, workers)
    finally:
        for process in (router, *workers):
            process.kill()


def test_vectors_are_those_of_transformers(served: Served) -> None:
    prompts = Tokenizer(served.model).encode_all(TEXTS)
    answer = served.client.embeddings.create(model="tiny", input=TEXTS)
    expected = last_vectors(served.model, prompts).numpy()
    np.testing.assert_allclose([each.embedding for each in answer.data], expected, atol=1e-5)
    assert [each.index for each in answer.data] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, prompts))
    by_ids = served.client.embeddings.create(model="tiny", input=prompts)
    np.testing.assert_allclose([each.embedding for each in by_ids.data], expected, atol=1e-5)


def test_base64_holds_the_same_numbers_and_vectors_are_cut_where_the_model_allows_it(served: Served) -> None:
    whole = served.post("/v1/embeddings", input="one", encoding_format="float").json()["data"][0]["embedding"]
    coded = served.post("/v1/embeddings", input="one", encoding_format="base64").json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(coded), "<f4").tolist() == pytest.approx(whole, abs=1e-7)
    cut = served.client.embeddings.create(model="tiny", input="one", dimensions=8).data[0].embedding
    first = np.array(whole[:8])
    np.testing.assert_allclose(cut, first / np.linalg.norm(first), atol=1e-6)


def test_documents_are_ordered_by_the_cosine_of_their_vectors(served: Served) -> None:
    texts = ["the query", "one", "two", "the query itself"]
    vectors = np.array([each.embedding for each in served.client.embeddings.create(model="tiny", input=texts).data])
    expected = vectors[1:] @ vectors[0]
    body = served.post("/v1/score", text_1=texts[0], text_2=texts[1:]).json()
    np.testing.assert_allclose([each["score"] for each in body["data"]], expected, atol=1e-5)
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        answer = served.post(path, query=texts[0], documents=texts[1:], top_n=2).json()
        assert [each["index"] for each in answer["results"]] == np.argsort(-expected)[:2].tolist()
        assert [each["document"]["text"] for each in answer["results"]] == [
            texts[1 + i] for i in np.argsort(-expected)[:2]
        ]


def test_many_inputs_are_spread_over_the_workers_and_leave_nothing(served: Served) -> None:
    answer = served.client.embeddings.create(model="tiny", input=[f"text {i}" for i in range(700)])
    assert [each.index for each in answer.data] == list(range(700))
    computed = [worker.metrics()["prompt_tokens_total"] for worker in served.workers]
    assert min(computed) > 0.2 * max(computed)
    assert_quiet(*served.workers)


def test_a_request_of_many_inputs_is_one_record_with_counts(served: Served) -> None:
    def records() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = httpx.get(f"{served.router.url}/debug/requests").json()["requests"]
        return found

    before = {record["at"] for record in records()}
    usage = served.post("/v1/embeddings", input=[f"record {i}" for i in range(50)]).raise_for_status().json()["usage"]
    assert served.post("/v1/embeddings", input=[[1], [99999]]).status_code == 400
    refused, record = (record for record in records() if record["at"] not in before)
    assert (record["state"], record["status"], record["prompt_tokens"]) == ("finished", 200, usage["prompt_tokens"])
    assert (record["inputs"]["count"], record["inputs"]["done"]) == (50, 50)
    assert sum(record["inputs"]["by_worker"].values()) == 50
    assert 0 < len(record["attempts"]) <= 16
    assert all(attempt["ended_ms"] <= record["total_ms"] for attempt in record["attempts"])
    assert (refused["state"], refused["status"], refused["inputs"]) == ("refused", 400, None)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/embeddings", {"input": ""}, "input=a list of 0 is not valid: it is empty"),
        ("/v1/embeddings", {"input": []}, "none empty"),
        (
            "/v1/embeddings",
            {"input": [[1, 2], [99999]]},
            "input[1]=99999 is not valid: token ids of this model are 0 to",
        ),
        ("/v1/embeddings", {"input": "x" * 600}, "maximum context length is 256 tokens. Shorten it, or set truncate_"),
        ("/v1/embeddings", {"input": "x", "dimensions": 65}, "dimensions=65 is not valid: it must be 1 to 64"),
        ("/v1/embeddings", {"input": "x", "encoding_format": "bytes"}, "encoding_format"),
        ("/v1/embeddings", {"input": "x", "temperature": 1}, "temperature=1 is not valid: there is no such parameter"),
        ("/v1/embeddings", {"input": ["x"] * 2049}, "at most 2048 are taken at once"),
        ("/classify", {"input": "x"}, "task='classify' is not valid: this model serves embed"),
        (
            "/v1/rerank",
            {"query": "x", "documents": []},
            "documents=a list of 0 is not valid: it must be a list of texts",
        ),
        ("/v1/score", {"text_1": ["x", "y"], "text_2": ["z"]}, "text_1 must have one, or as many as text_2"),
        ("/v1/completions", {"prompt": "x"}, "tiny generates no text: ask /v1/embeddings"),
    ],
)
def test_what_is_wrong_is_refused_by_name(served: Served, path: str, body: dict[str, Any], words: str) -> None:
    answer = served.post(path, **body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_a_long_text_is_cut_where_that_is_asked(served: Served) -> None:
    answer = served.post("/v1/embeddings", input="x" * 600, truncate_prompt_tokens=-1)
    assert answer.json()["usage"]["prompt_tokens"] == CONTEXT


def test_inputs_of_a_worker_that_stands_still_are_computed_by_the_other(served: Served) -> None:
    texts = [f"{i} " * 30 for i in range(40)]
    expected = [each.embedding for each in served.client.embeddings.create(model="tiny", input=texts).data]
    os.kill(served.workers[0].engine_pid(), signal.SIGSTOP)  # what is sent there meanwhile waits until it is given up
    got = [each.embedding for each in served.client.embeddings.create(model="tiny", input=texts).data]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    eventually(lambda: served.router.metrics().get('workers{leg="pool"}') == 1, "the router has given it up")
    served.workers[0].kill()
