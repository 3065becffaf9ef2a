"""Files and batches: the flow of OpenAI's SDK, lines that are broken, and what survives the end of a router."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.fake_worker import FakeSettings, expected_tokens
from tests.processes import BatonProcess, eventually, free_ports

from baton.router.batches.batch import BatchFolder, OwnersBatches
from baton.router.batches.batches import LOWEST
from baton.router.batches.data_dir import EVERYBODY, DataDir
from baton.router.batches.results import Results

from .cluster import FIRST_WORD, LAST_WORD, Cluster, FakeProcess, cluster, wait_until
from .tokenizer_folder import make_tokenizer_folder

WORDS = FakeSettings(first_word=FIRST_WORD, last_word=LAST_WORD)
URL = "/v1/completions"


def line(number: int, **changes: Any) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": [20 + number, 30, 40], "max_tokens": 4, "return_token_ids": True}
    whole = {"custom_id": f"line-{number}", "method": "POST", "url": URL, "body": body}
    return whole | {name: body | value if name == "body" else value for name, value in changes.items()}


def text_of(lines: list[Any]) -> bytes:
    return b"".join((each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in lines)


def begin(client: openai.OpenAI, lines: list[Any], **changes: Any) -> Any:
    file = client.files.create(file=("in.jsonl", text_of(lines)), purpose="batch")
    asked: dict[str, Any] = {"input_file_id": file.id, "endpoint": URL, "completion_window": "24h"} | changes
    return client.batches.create(**asked)


def finish(client: openai.OpenAI, batch_id: str) -> Any:
    wait_until(lambda: client.batches.retrieve(batch_id).status in ("completed", "failed", "expired", "cancelled"))
    return client.batches.retrieve(batch_id)


def rows(client: openai.OpenAI, file_id: str | None) -> dict[str | None, dict[str, Any]]:
    """Return the lines of a file of results by their custom_id."""
    if file_id is None:
        return {}
    found = [json.loads(each) for each in client.files.content(file_id).text.splitlines()]
    return {each["custom_id"]: each for each in found}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("batches")
    limits = {"max_batch_lines": 40, "max_file_nbytes": 100_000, "batch_concurrency": 4}
    with cluster(folder, [{"worker_id": "d0"}], data_dir=str(folder / "data"), **limits) as made:
        yield made


@pytest.fixture(scope="module")
def client(serving: Cluster) -> openai.OpenAI:
    return serving.client()


def test_the_flow_of_the_sdk_gives_each_line_its_answer(client: openai.OpenAI) -> None:
    file = client.files.create(file=("in.jsonl", text_of([line(i) for i in range(12)])), purpose="batch")
    assert (file.object, file.purpose, file.filename, file.status) == ("file", "batch", "in.jsonl", "processed")
    assert client.files.retrieve(file.id) == file
    batch = client.batches.create(
        input_file_id=file.id, endpoint=URL, completion_window="24h", metadata={"for": "a test"}
    )
    assert (batch.object, batch.metadata, batch.completion_window) == ("batch", {"for": "a test"}, "24h")
    assert batch.expires_at is not None
    assert batch.expires_at - batch.created_at == 24 * 3600
    done = finish(client, batch.id)
    assert (done.status, done.errors, done.error_file_id) == ("completed", None, None)
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (12, 12, 0)
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
    answers = rows(client, done.output_file_id)
    assert answers.keys() == {f"line-{i}" for i in range(12)}
    for i in range(12):
        answer = answers[f"line-{i}"]
        assert answer["error"] is None
        assert answer["response"]["status_code"] == 200
        (choice,) = answer["response"]["body"]["choices"]
        assert choice["token_ids"] == expected_tokens([20 + i, 30, 40], 4, settings=WORDS)
    assert len({answer["response"]["request_id"] for answer in answers.values()}) == 12
    output = client.files.retrieve(done.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")


def test_conversations_and_responses_are_answered_too(client: openai.OpenAI) -> None:
    for url, body, kind in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}, "chat.completion"),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 3}, "response"),
    ):
        asked = line(1, url=url) | {"body": {"model": "tiny"} | body}
        done = finish(client, begin(client, [asked], endpoint=url).id)
        answer = rows(client, done.output_file_id)["line-1"]["response"]["body"]
        assert answer["object"] == kind
        assert 3 in answer["usage"].values()


def test_a_broken_line_gives_its_own_error_and_the_rest_goes_on(client: openai.OpenAI) -> None:
    broken: dict[str, tuple[Any, str | int]] = {
        "json": (b'{"custom_id": "x"', "invalid_json_line"),
        "list": (b"[1, 2]", "invalid_json_line"),
        "no id": ({"method": "POST", "url": URL, "body": {}}, "missing_required_parameter"),
        "twice": (line(0), "duplicate_custom_id"),
        "url": (line(11, url="/v1/chat/completions"), "invalid_url"),
        "method": (line(12, method="GET"), "invalid_method"),
        "key": (line(13) | {"more": 1}, "invalid_more"),
        "body": (line(14) | {"body": [1]}, "invalid_body"),
        "stream": (line(15, body={"stream": True}), "invalid_body"),
        "field": (line(16, body={"temperature": -1}), 400),
        "model": (line(17, body={"model": "other"}), 404),
    }
    lines = [line(0), *(given for given, _ in broken.values()), b"", b"  ", line(1)]
    done = finish(client, begin(client, lines).id)
    assert done.status == "completed"
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (13, 2, 11)
    assert rows(client, done.output_file_id).keys() == {"line-0", "line-1"}
    found = [json.loads(each) for each in client.files.content(done.error_file_id).text.splitlines()]
    by_number = {int(each["id"].rpartition("_")[2]): each for each in found}
    assert by_number.keys() == set(range(2, 13))
    for number, (_, code) in enumerate(broken.values(), 2):
        error = by_number[number]
        if isinstance(code, int):
            assert (error["response"]["status_code"], error["error"]) == (code, None)
            assert error["response"]["body"]["error"]["message"]
        else:
            assert (error["error"]["code"], error["response"]) == (code, None)
            assert f"Line {number}" in error["error"]["message"]


def test_a_file_without_lines_or_with_too_many_fails_as_a_whole(client: openai.OpenAI) -> None:
    for lines, code in (([b"", b" "], "empty_file"), ([line(i) for i in range(41)], "too_many_lines")):
        done = finish(client, begin(client, lines).id)
        assert (done.status, done.output_file_id) == ("failed", None)
        assert [error.code for error in done.errors.data] == [code]


def test_what_is_not_valid_is_refused_by_name(serving: Cluster, client: openai.OpenAI) -> None:
    file = client.files.create(file=("in.jsonl", text_of([line(0)])), purpose="batch")
    good = {"input_file_id": file.id, "endpoint": URL, "completion_window": "24h"}
    for change, field in (
        ({"endpoint": "/v1/nowhere"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"input_file_id": "../../secret"}, "input_file_id"),
        ({"metadata": {"a": "b" * 600}}, "metadata"),
        ({"colour": "red"}, "colour"),
    ):
        error = httpx.post(f"{serving.url}/v1/batches", json=good | change).json()["error"]
        assert error["param"].startswith(field), error
    for data, name, wrong in (
        ({"purpose": "assistants"}, "file", "purpose"),
        ({"purpose": "batch", "colour": "red"}, "file", "colour"),
        ({"purpose": "batch"}, "document", "document"),
    ):
        answer = httpx.post(f"{serving.url}/v1/files", data=data, files={name: ("a.jsonl", b"{}")})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, wrong)
    assert httpx.post(f"{serving.url}/v1/files", json={}).status_code == 400
    assert (
        httpx.post(
            f"{serving.url}/v1/files", content=b"--x", headers={"content-type": "multipart/form-data"}
        ).status_code
        == 400
    )
    with pytest.raises(openai.APIStatusError) as refused:
        client.files.create(file=("big.jsonl", b"x" * 200_000), purpose="batch")
    assert refused.value.status_code == 413
    for path in ("files/file-1", "files/file-1/content", "batches/batch_1", f"files/{'file-' + '0' * 28}"):
        assert httpx.get(f"{serving.url}/v1/{path}").status_code == 404
    for query in ("limit=0", "limit=x", "colour=red"):
        assert httpx.get(f"{serving.url}/v1/batches?{query}").status_code == 400


def test_lists_come_in_pages_newest_first(client: openai.OpenAI) -> None:
    made = [begin(client, [line(i)]).id for i in range(3)]
    for batch_id in made:
        finish(client, batch_id)
    first = client.batches.list(limit=2)
    assert [each.id for each in first.data] == [made[2], made[1]]
    assert first.has_more
    assert first.get_next_page().data[0].id == made[0]
    assert [each.id for each in client.batches.list(after=made[1], limit=1).data] == [made[0]]
    files = client.files.list(purpose="batch_output", limit=3)
    assert {each.purpose for each in files.data} == {"batch_output"}
    oldest_first = client.files.list(order="asc", limit=1)
    assert oldest_first.data[0].created_at <= files.data[0].created_at


def test_a_file_is_deleted_for_good_unless_a_batch_reads_it(client: openai.OpenAI) -> None:
    file = client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch")
    assert client.files.content(file.id).read() == b"{}\n"
    assert client.files.delete(file.id).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)
    slow = begin(client, [line(i, body={"max_tokens": 1500}) for i in range(4)])
    with pytest.raises(openai.ConflictError, match="reads it"):
        client.files.delete(slow.input_file_id)
    client.batches.cancel(slow.id)
    finish(client, slow.id)
    assert client.files.delete(slow.input_file_id).deleted


def test_a_cancelled_batch_keeps_what_is_done_and_leaves_the_workers(serving: Cluster, client: openai.OpenAI) -> None:
    lines = [line(0), line(1), *(line(i, body={"max_tokens": 2000}) for i in range(2, 10))]
    batch = begin(client, lines)
    output = Path(serving.config.data_dir or "") / EVERYBODY / "batches" / batch.id / "output.jsonl"
    wait_until(lambda: output.exists() and output.read_bytes().count(b"\n") >= 2)
    running = serving.ask(lambda state: [each.flow.generation.priority for each in state.dispatcher.flows.values()])
    assert set(running) == {LOWEST}, "each of its requests comes after all others"
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = finish(client, batch.id)
    assert done.status == "cancelled"
    assert done.cancelled_at >= done.cancelling_at
    assert {"line-0", "line-1"} <= rows(client, done.output_file_id).keys()
    assert serving.ask(lambda state: not state.dispatcher.flows, until=True)
    assert client.batches.cancel(batch.id).status == "cancelled"


def test_no_line_begins_while_others_wait(serving: Cluster, client: openai.OpenAI) -> None:
    assert serving.ask(lambda state: not state.dispatcher.flows, until=True)
    worker = serving.workers["d0"]
    assert worker.process is not None
    os.kill(worker.process.pid, 19)  # SIGSTOP: whoever asks now waits
    try:
        with httpx.Client(base_url=serving.url, timeout=60) as http:
            asked = {"model": "tiny", "prompt": [20, 21], "max_tokens": 1}
            threads = [threading.Thread(target=http.post, args=(URL,), kwargs={"json": asked}) for _ in range(2)]
            for thread in threads:
                thread.start()
            wait_until(lambda: serving.ask(lambda state: len(state.dispatcher.flows)) == 2)
            batch = begin(client, [line(i) for i in range(8)])
            wait_until(lambda: client.batches.retrieve(batch.id).status == "in_progress")
            assert serving.ask(lambda state: len(state.dispatcher.flows)) == 2
            os.kill(worker.process.pid, 18)
            for thread in threads:
                thread.join()
    finally:
        os.kill(worker.process.pid, 18)
    assert finish(client, batch.id).request_counts.completed == 8


def test_keys_have_files_and_batches_of_their_own(tmp_path: Path) -> None:
    keys = ("key-of-alice-12345", "key-of-bob-1234567")
    with cluster(tmp_path, [{"worker_id": "d0"}], api_key=keys, data_dir=str(tmp_path / "data")) as made:
        alice, bob = (made.client(api_key=key) for key in keys)
        batch = begin(alice, [line(0)])
        assert finish(alice, batch.id).request_counts.completed == 1
        assert [list(each.files.list()) for each in (bob,)] == [[]]
        for call in (lambda: bob.files.content(batch.input_file_id), lambda: bob.batches.retrieve(batch.id)):
            with pytest.raises(openai.NotFoundError):
                call()
        with pytest.raises(openai.NotFoundError):
            begin(bob, [line(0)], input_file_id=batch.input_file_id)
    names = {name for _, folders, files in os.walk(tmp_path / "data") for name in (*folders, *files)}
    assert not [name for name in names if "alice" in name or "bob" in name]


def test_what_was_left_too_long_is_expired_with_an_error_for_each_line(tmp_path: Path) -> None:
    data = DataDir(str(tmp_path / "data"), (), "")
    with cluster(tmp_path, [{"worker_id": "d0", "step_ms": 500.0}], data_dir=str(tmp_path / "data")) as made:
        client = made.client()
        folder = OwnersBatches(data.path / EVERYBODY).get(begin(client, [line(i) for i in range(3)]).id)
        batch = folder.load()
        wait_until(lambda: folder.load().state == "in_progress")
    batch = folder.load()
    batch.created_at -= 24 * 3600
    folder.save(batch)
    with cluster(tmp_path, [], data_dir=str(tmp_path / "data")) as made:
        client = made.client()
        done = finish(client, batch.id)
        assert (done.status, done.request_counts.total) == ("expired", 3)
        errors = rows(client, done.error_file_id)
        answers = rows(client, done.output_file_id)
        assert errors.keys() | answers.keys() == {"line-0", "line-1", "line-2"}
        assert {each["error"]["code"] for each in errors.values()} == {"batch_expired"}


def test_a_killed_router_goes_on_where_it_was(tmp_path: Path) -> None:
    model = make_tokenizer_folder(tmp_path / "tiny")
    worker = FakeProcess(worker_id="d0", step_ms=10.0).start()
    (port,) = free_ports(1)
    arguments = ["router", "--model", str(model), "--port", str(port), "--worker", worker.settings.control]
    arguments += ["--data-dir", str(tmp_path / "data"), "--batch-concurrency", "3"]
    router = BatonProcess(arguments, tmp_path / "router.log", port).start()
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60)
    try:
        router.wait_ready()
        batch = begin(client, [line(i) for i in range(30)])
        output = tmp_path / "data" / EVERYBODY / "batches" / batch.id / "output.jsonl"
        eventually(lambda: output.exists() and output.read_bytes().count(b"\n") >= 8, "some are done")
        router.kill()
        done_before = output.read_bytes()
        with open(output, "ab") as torn:
            torn.write(b'{"id": "batch_req_torn')
        router = BatonProcess(arguments, tmp_path / "router.log", port).start()
        router.wait_ready()
        done = finish(client, batch.id)
        whole = client.files.content(done.output_file_id).read()
        assert whole.startswith(done_before), "what was done is not done again"
        answers = [json.loads(each) for each in whole.splitlines()]
        assert sorted(each["custom_id"] for each in answers) == sorted(f"line-{i}" for i in range(30)), "each line once"
        assert done.request_counts.completed == 30
    finally:
        router.kill()
        worker.stop()


def test_one_router_at_a_time_has_a_batch(tmp_path: Path) -> None:
    owner = tmp_path / "owner"
    made = OwnersBatches(owner).add(URL, "file-x", None)
    other = BatchFolder(made.path, owner)
    assert [made.try_lock(), other.try_lock(), made.try_lock()] == [True, False, False]
    made.unlock()
    assert other.try_lock()
    other.unlock()


def test_results_are_whole_lines_and_those_only(tmp_path: Path) -> None:
    async def write() -> None:
        results = Results(tmp_path)
        lines = {number: b'{"id": "batch_req_a_%d"}\n' % number for number in range(1, 50)}
        await asyncio.gather(*(results.add(number, text, failed=number % 5 == 0) for number, text in lines.items()))
        await results.close()

    asyncio.run(write())
    with open(tmp_path / "output.jsonl", "ab") as torn:
        torn.write(b'{"id": "batch_req_a_77"')

    async def read() -> Results:
        results = Results(tmp_path)
        await results.close()
        return results

    found = asyncio.run(read())
    assert found.failed == set(range(5, 50, 5))
    assert found.completed == set(range(1, 50)) - found.failed
    assert b"77" not in (tmp_path / "output.jsonl").read_bytes()
