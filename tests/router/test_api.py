"""The OpenAI API over real sockets, with the real SDK, in front of fake workers."""

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.fake_worker import FakeSettings, expected_tokens
from tests.processes import HANG_S

from .cluster import FIRST_WORD, LAST_WORD, VOCAB, Cluster, cluster, wait_until

WORDS = FakeSettings(first_word=FIRST_WORD, last_word=LAST_WORD)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    workers = [{"worker_id": "p0", "legs": ["prefill"]}, {"worker_id": "d0", "legs": ["decode"]}]
    with cluster(tmp_path_factory.mktemp("api"), workers, path="remote") as made:
        yield made


@pytest.fixture(scope="module")
def client(serving: Cluster) -> openai.OpenAI:
    return serving.client()


def answer_to(serving: Cluster, prompt_ids: list[int], num_tokens: int, choice: int = 0) -> str:
    """Give the text that fake workers give."""
    tokenizer = serving.state.tokenizer
    stream = tokenizer.new_stream(prompt_ids)
    tokens = expected_tokens(prompt_ids, num_tokens, choice=choice, settings=WORDS)
    return "".join(map(stream.push, tokens)) + stream.flush()


PROMPT = [20, 30, 40, 50]
MESSAGES: Any = [{"role": "user", "content": "hello world"}]


def test_a_chat_is_answered_whole(serving: Cluster, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=8)
    prompt_ids = serving.state.tokenizer.render_chat(MESSAGES)
    assert answer.choices[0].message.content == answer_to(serving, prompt_ids, 8)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt_ids), 8)
    assert answer.usage.total_tokens == len(prompt_ids) + 8


def test_a_streamed_chat_equals_the_whole_one(serving: Cluster, client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    prompt_ids = serving.state.tokenizer.render_chat(MESSAGES)
    assert text == answer_to(serving, prompt_ids, 8)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    assert len({chunk.id for chunk in chunks}) == 1


def test_prompts_may_be_text_ids_or_lists_of_either(serving: Cluster, client: openai.OpenAI) -> None:
    encoded = serving.state.tokenizer.encode("hello")
    cases: list[tuple[Any, list[list[int]]]] = [
        ("hello", [encoded]),
        (PROMPT, [PROMPT]),
        (["hello", "hello"], [encoded, encoded]),
        ([PROMPT, [21, 22]], [PROMPT, [21, 22]]),
    ]
    for prompt, prompts in cases:
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=5)
        assert [choice.text for choice in answer.choices] == [answer_to(serving, ids, 5) for ids in prompts]
        assert [choice.index for choice in answer.choices] == list(range(len(prompts)))
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == sum(map(len, prompts))


def test_several_choices_of_several_prompts_stream_side_by_side(serving: Cluster, client: openai.OpenAI) -> None:
    prompts = [PROMPT, [21, 22]]
    texts: dict[int, str] = {}
    ends: dict[int, str] = {}
    for chunk in client.completions.create(model="tiny", prompt=prompts, n=3, max_tokens=6, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] = texts.get(choice.index, "") + choice.text
        if choice.finish_reason:
            assert choice.index not in ends
            ends[choice.index] = choice.finish_reason
    assert texts == {i: answer_to(serving, prompts[i // 3], 6, choice=i % 3) for i in range(6)}
    assert set(ends.values()) == {"length"}
    assert len(ends) == 6


def test_a_stop_string_ends_the_text_before_it_and_the_workers_at_once(serving: Cluster, client: openai.OpenAI) -> None:
    whole = answer_to(serving, PROMPT, 400)
    stop = whole[10:13]
    assert stop not in whole[:12]
    for stream in (False, True):
        answer: Any = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=400, stop=[stop], stream=stream)
        choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
        assert "".join(choice.text for choice in choices) == whole[:10]
        assert choices[-1].finish_reason == "stop"
        assert choices[-1].stop_reason == stop
    wait_until(lambda: not serving.state.dispatcher.flows)
    wait_until(lambda: serving.state.pool.workers["d0"].load.num_running == 0)
    answer = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=400, stop=stop, extra_body={"include_stop_str_in_output": True}
    )
    assert answer.choices[0].text == whole[:13]


def test_log_probabilities_come_in_both_forms(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=3, logprobs=True, top_logprobs=2)
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content or []
    assert len(content) == 3
    assert content[0].logprob == -0.5
    assert len(content[0].top_logprobs) == 2
    assert bytes(content[0].bytes or []).decode() == content[0].token
    completion = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=3, logprobs=2)
    table = completion.choices[0].logprobs
    assert table is not None
    assert table.tokens is not None
    assert "".join(table.tokens) == completion.choices[0].text
    assert table.text_offset == [0, len(table.tokens[0]), len(table.tokens[0]) + len(table.tokens[1])]
    streamed = [
        chunk.choices[0].logprobs.tokens[0]  # type: ignore[index]
        for chunk in client.completions.create(model="tiny", prompt=PROMPT, max_tokens=3, logprobs=2, stream=True)
        if chunk.choices[0].logprobs
    ]
    assert streamed == table.tokens


@pytest.mark.parametrize("stream", [False, True])
def test_echo_gives_the_prompt_with_its_scores(client: openai.OpenAI, serving: Cluster, stream: bool) -> None:
    def ask(max_tokens: int) -> tuple[str, list[str], list[Any]]:
        answer: Any = client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=max_tokens, echo=True, logprobs=1, stream=stream
        )
        choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
        tables = [choice.logprobs for choice in choices if choice.logprobs]
        return (
            "".join(choice.text for choice in choices),
            [token for table in tables for token in table.tokens],
            [value for table in tables for value in table.token_logprobs],
        )

    prompt_text = serving.state.tokenizer.decode(PROMPT)
    text, tokens, values = ask(2)
    assert text == prompt_text + answer_to(serving, PROMPT, 2)
    assert "".join(tokens) == text
    assert values == [None, *[-0.5] * 5]
    text, tokens, values = ask(0)
    assert text == prompt_text
    assert values == [None, -0.5, -0.5, -0.5]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "prompt", ["Hi <|end|> there", "日本語 \N{GRINNING FACE} \N{REPLACEMENT CHARACTER}", [7, 1, 60, 0, 133]]
)
def test_echo_is_the_prompt_as_it_was_sent_and_offsets_are_places_in_it(
    client: openai.OpenAI, serving: Cluster, prompt: Any, stream: bool
) -> None:
    answer: Any = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=3, echo=True, logprobs=0, stream=stream
    )
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
    text = "".join(choice.text for choice in choices)
    tables = [choice.logprobs for choice in choices if choice.logprobs]
    tokens = [token for table in tables for token in table.tokens]
    offsets = [offset for table in tables for offset in table.text_offset]
    tokenizer = serving.state.tokenizer
    sent = tokenizer.decode(prompt, skip_special_tokens=False) if isinstance(prompt, list) else prompt
    prompt_ids = prompt if isinstance(prompt, list) else tokenizer.encode(prompt)
    assert text == sent + answer_to(serving, prompt_ids, 3)
    assert len(tokens) == len(prompt_ids) + 3
    assert all(
        token.startswith("bytes:") or text.startswith(token, at) for token, at in zip(tokens, offsets, strict=True)
    )
    assert offsets[len(prompt_ids)] == len(sent)


def test_scoring_a_prompt_counts_no_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=0, echo=True)
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.usage.prompt_tokens) == (0, 4)


def test_prompt_logprobs_and_token_ids_are_given_on_request(client: openai.OpenAI) -> None:
    answer: Any = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=2, extra_body={"prompt_logprobs": 1, "return_token_ids": True}
    )
    choice = answer.choices[0]
    assert choice.prompt_token_ids == PROMPT
    assert choice.token_ids == expected_tokens(PROMPT, 2, settings=WORDS)
    assert choice.prompt_logprobs[0] is None
    assert choice.prompt_logprobs[1]["30"]["logprob"] == -0.5


def test_cached_tokens_are_those_that_were_not_computed(client: openai.OpenAI) -> None:
    prompt = [20 + i % 60 for i in range(100)]
    seen = []
    for _ in range(2):
        usage = client.completions.create(model="tiny", prompt=prompt, max_tokens=1).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        seen.append(usage.prompt_tokens_details.cached_tokens)
    assert seen == [0, 96]


def test_tenants_share_a_cache_only_under_the_same_salt(client: openai.OpenAI) -> None:
    prompt = [30 + i % 50 for i in range(64)]

    def cached(salt: str) -> int | None:
        body = {"cache_salt": salt}
        usage = client.completions.create(model="tiny", prompt=prompt, max_tokens=1, extra_body=body).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens

    assert [cached("a"), cached("a"), cached("b")] == [0, 63, 0]


def test_a_final_message_can_be_continued(serving: Cluster, client: openai.OpenAI) -> None:
    messages: Any = [*MESSAGES, {"role": "assistant", "content": "I am"}]
    answer: Any = client.chat.completions.create(
        model="tiny",
        messages=messages,
        max_tokens=2,
        extra_body={"continue_final_message": True, "add_generation_prompt": False, "return_token_ids": True},
    )
    text = serving.state.tokenizer.decode(answer.prompt_token_ids, skip_special_tokens=False)
    assert text.endswith("<|assistant|>I am")


def test_content_may_be_parts_of_text(serving: Cluster, client: openai.OpenAI) -> None:
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "hello "}, {"type": "text", "text": "world"}]}]
    answer = client.chat.completions.create(model="tiny", messages=parts, max_tokens=4)
    assert answer.choices[0].message.content == answer_to(serving, serving.state.tokenizer.render_chat(MESSAGES), 4)


def test_errors_are_those_that_the_sdk_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=-1)
    assert bad.value.param == "temperature"
    assert "-1" in bad.value.message
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt=[20] * 2048, max_tokens=1)
    assert long.value.code == "context_length_exceeded"
    assert "2048" in long.value.message
    with pytest.raises(openai.BadRequestError) as much:
        client.completions.create(model="tiny", prompt=[20] * 2000, max_tokens=49)
    assert much.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as stranger:
        client.completions.create(model="tiny", prompt=[VOCAB], max_tokens=1)
    assert str(VOCAB) in stranger.value.message
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt="", max_tokens=1, extra_body={"add_special_tokens": False})
    client.completions.create(model="tiny", prompt=[20] * 2000, max_tokens=1)


def test_models_are_listed_and_described(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "tiny"
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_text_is_tokenized_and_back(serving: Cluster) -> None:
    with httpx.Client(base_url=serving.url) as http:
        tokens = http.post("/tokenize", json={"prompt": "hello wörld", "return_token_strs": True}).json()
        assert tokens["tokens"] == serving.state.tokenizer.encode("hello wörld")
        assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
        assert tokens["max_model_len"] == 2048
        assert http.post("/detokenize", json={"tokens": tokens["tokens"]}).json() == {"prompt": "hello wörld"}
        assert tokens["token_strs"][-4:] == ["Ã", "¶", "r", "ld"]
        special = http.post("/tokenize", json={"prompt": "a<|end|>"}).json()["tokens"]
        assert http.post("/detokenize", json={"tokens": special}).json() == {"prompt": "a<|end|>"}
        chat = http.post("/tokenize", json={"messages": MESSAGES}).json()
        assert chat["tokens"] == serving.state.tokenizer.render_chat(MESSAGES)
        assert http.post("/detokenize", json={"tokens": [10**6]}).status_code == 400
        assert http.post("/tokenize", json={}).status_code == 400


def test_every_answer_has_a_request_id_and_a_given_one_is_kept(serving: Cluster) -> None:
    with httpx.Client(base_url=serving.url) as http:
        assert http.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
        made = http.get("/nowhere").headers["x-request-id"]
        assert len(made) == 32
        odd = http.get("/health", headers={"x-request-id": "a b\tc"}).headers["x-request-id"]
        assert len(odd) == 32


def test_a_route_is_explained_on_request_only(serving: Cluster) -> None:
    body = {"prompt": PROMPT, "max_tokens": 1}
    with httpx.Client(base_url=serving.url) as http:
        assert "x-baton-route" not in http.post("/v1/completions", json=body).headers
        headers = {"x-baton-explain": "1", "x-request-id": "explain-me"}
        route = http.post("/v1/completions", json=body, headers=headers).headers["x-baton-route"]
        assert route.startswith("path=remote; decode=d0; prefill=p0; cost_ms=")
        streamed = http.post("/v1/completions", json=body | {"stream": True}, headers=headers)
        assert streamed.headers["x-baton-route"].startswith("path=remote")
        told = http.get("/debug/route", params={"id": "explain-me"}).json()
        assert told["routes"][0]["chosen"]["decode"] == "d0"
        assert {"queue_p", "prefill", "transfer"} <= told["routes"][0]["considered"][0]["terms"].keys()
        assert http.get("/debug/route", params={"id": "unknown"}).status_code == 404
        assert http.get("/debug/route").status_code == 400


def test_workers_are_shown_with_their_legs_load_and_addresses(serving: Cluster) -> None:
    shown = {each["id"]: each for each in httpx.get(f"{serving.url}/debug/workers").json()["workers"]}
    assert {name: each["legs"] for name, each in shown.items()} == {"p0": ["prefill"], "d0": ["decode"]}
    decode = shown["d0"]
    assert (decode["state"], decode["running"], decode["waiting"], decode["kv_usage"]) == ("live", 0, 0, 0.0)
    assert (decode["in_flight"], decode["awaited"]) == (0, 0)
    assert decode["control"].startswith("tcp://127.0.0.1:")
    assert "http" in decode


def test_metrics_have_our_names_and_those_that_dashboards_know(serving: Cluster, client: openai.OpenAI) -> None:
    client.completions.create(model="tiny", prompt=PROMPT, max_tokens=4)
    text = httpx.get(f"{serving.url}/metrics").text
    for name in (
        'baton:time_to_first_token_seconds_count{model_name="tiny"}',
        'vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="tiny"}',
        'baton:request_success_total{finished_reason="length",model_name="tiny"}',
        'vllm:generation_tokens_total{engine="0",model_name="tiny"}',
        'baton:route_decisions_total{model_name="tiny",path="remote"}',
        "baton:num_requests_running",
        "baton:inter_token_latency_seconds_sum",
        "baton:phase_seconds_bucket",
    ):
        assert name in text


def test_health_is_about_the_loop_and_readiness_about_workers(serving: Cluster) -> None:
    assert httpx.get(f"{serving.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{serving.url}/ready").json()["workers"] == {"prefill": 1, "decode": 1}
    assert "version" in httpx.get(f"{serving.url}/version").json()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/completions", 405), ("POST", "/health", 405), ("GET", "//health", 404)],
)
def test_unknown_paths_and_methods_get_error_objects(serving: Cluster, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, serving.url + path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_base_url_without_its_v1_is_told_of_it(serving: Cluster) -> None:
    answer = httpx.post(f"{serving.url}/chat/completions", json={})
    assert answer.status_code == 404
    assert "There is /v1/chat/completions" in answer.json()["error"]["message"]


def test_bodies_are_bounded_in_size_and_refused_by_name(serving: Cluster) -> None:
    with httpx.Client(base_url=serving.url) as http:
        long = http.post("/v1/completions", content=b'{"prompt": "' + b"x" * (9 << 20) + b'"}')
        assert long.status_code == 413

        def parts() -> Iterator[bytes]:
            for _ in range(10):
                yield b"x" * (1 << 20)

        assert http.post("/v1/completions", content=parts()).status_code == 413
        for body in (b"", b"{", b"\xff\xfe", b"[1]", b"{" * 100_000):
            answer = http.post("/v1/completions", content=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["type"] == "invalid_request_error"
        head = http.get("/health", headers={"x-long": "x" * 70_000})
        assert head.status_code in (400, 431)
        for timeout in ("abc", "-1", "0", "nan", "1e9", "9999999"):
            answer = http.post("/v1/completions", json={"prompt": "x"}, headers={"x-request-timeout": timeout})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "x-request-timeout"


def test_no_number_is_too_large_for_the_template(serving: Cluster) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1' + "0" * 5000 + "}"}}
    messages = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}]
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 7**40}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    for body in ({"messages": messages}, {"tools": tools}, {"chat_template_kwargs": {"a": 7**40}}):
        answer = httpx.post(f"{serving.url}/tokenize", json={"messages": MESSAGES} | body)
        assert answer.status_code == 200
        text = serving.state.tokenizer.decode(answer.json()["tokens"], skip_special_tokens=False)
        assert ("0" * 5000 in text, str(7**40) in text) == ("messages" in body, "tools" in body)


def test_nests_too_deep_for_the_template_and_names_not_for_a_request_are_refused(serving: Cluster) -> None:
    nest: Any = {}
    for _ in range(150):
        nest = {"a": nest}
    for kwargs in (nest, {"messages": []}, {"bos_token": "x"}):
        body = {"messages": MESSAGES, "chat_template_kwargs": kwargs, "max_tokens": 1}
        answer = httpx.post(f"{serving.url}/v1/chat/completions", json=body)
        assert answer.status_code == 400 or kwargs is nest


def raw(serving: Cluster, *pieces: bytes, timeout_s: float = HANG_S) -> bytes:
    """Send bytes as they are; give all that comes back."""
    with socket.create_connection(("127.0.0.1", serving.config.port)) as client:
        client.settimeout(timeout_s)
        answer = b""
        with contextlib.suppress(OSError):
            for piece in pieces:
                client.sendall(piece)
        with contextlib.suppress(ConnectionError):
            while part := client.recv(65536):
                answer += part
        return answer


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET /health HTTP/9.9\r\n\r\n", 400),
        (b"POST /v1/completions HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400),
        (b"POST /v1/completions HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /health HTTP/1.1\r\nx: " + b"a" * 10_000_000, 431),
        (b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 1_000_000, 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
)
def test_what_is_no_http_gets_an_error_object_or_none(serving: Cluster, request_bytes: bytes, status: int) -> None:
    answer = raw(serving, request_bytes)
    # while we still write, the kernel may drop the answer with the connection
    assert answer.startswith(b"HTTP/1.1 %d " % status) or (status == 431 and not answer)
    if answer:
        assert b'{"error":{"message":' in answer
    assert httpx.get(f"{serving.url}/health").status_code == 200


def test_a_head_and_a_body_that_never_end_are_given_up(tmp_path: Path) -> None:
    with cluster(tmp_path, [], head_timeout_s=0.3, body_timeout_s=0.3) as made:
        assert b" 408 " in raw(made, b"GET /health HTTP/1.1\r\nx:")
        assert b" 408 " in raw(made)
        slow_body = raw(made, b"POST /v1/completions HTTP/1.1\r\ncontent-length: 9\r\nconnection: close\r\n\r\n{")
        assert b" 408 " in slow_body
        with httpx.Client(base_url=made.url) as http:
            for _ in range(2):
                assert http.get("/health").status_code == 200
                # a connection that is kept is not in a head, and no clock runs for it
                wait_until(lambda: len(made.connections) == 1)
                (kept,) = made.connections
                assert kept._is_in_head
                assert kept._head_timer is None


def test_a_deadline_in_a_header_ends_a_request(serving: Cluster) -> None:
    body = {"prompt": PROMPT, "max_tokens": 1900, "ignore_eos": True}
    headers = {"x-request-timeout": "0.2"}
    with httpx.Client(base_url=serving.url) as http:
        assert http.post("/v1/completions", json=body, headers=headers).status_code == 504
        text = http.post("/v1/completions", json=body | {"stream": True}, headers=headers).text
    events = [line for line in text.split("\n\n") if line]
    assert "deadline" in json.loads(events[-1].removeprefix("data: "))["error"]["message"]
    assert "[DONE]" not in text


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_request_on_both_workers(serving: Cluster, stream: bool) -> None:
    body = json.dumps({"prompt": PROMPT, "max_tokens": 1900, "ignore_eos": True, "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", serving.config.port)) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        wait_until(lambda: any(flow.first_token_at for flow in list(serving.state.dispatcher.flows.values())))
    wait_until(lambda: not serving.state.dispatcher.flows)
    wait_until(lambda: serving.state.pool.workers["d0"].load.num_running == 0)


def test_a_waiting_stream_is_kept_alive_and_a_refusal_is_no_stream(tmp_path: Path) -> None:
    slow = [{"worker_id": "d0", "prefill_rate": 1.0}]
    with cluster(tmp_path, slow, keep_alive_s=0.1) as made:
        body = {"prompt": [20] * 1000, "max_tokens": 2, "stream": True}
        with httpx.stream("POST", f"{made.url}/v1/completions", json=body) as waiting:
            assert next(waiting.iter_bytes()).startswith(b": keep-alive\n\n")
        wait_until(lambda: not made.state.dispatcher.flows)
        sdk = made.client().completions.create(model="tiny", prompt=[21], max_tokens=2, stream=True)
        assert sum(bool(chunk.choices[0].text) for chunk in sdk) == 2


def test_admission_refuses_by_tokens_with_a_time_to_come_again(tmp_path: Path) -> None:
    slow = [{"worker_id": "d0", "prefill_rate": 1.0}]
    with (
        cluster(tmp_path, slow, max_queued_tokens=1000, keep_alive_s=0.1) as made,
        httpx.Client(base_url=made.url) as http,
    ):
        body = {"prompt": [20] * 600, "max_tokens": 1, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as first:
            wait_until(lambda: made.state.dispatcher.flows)
            refused = http.post("/v1/completions", json=body)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert made.state.metrics.admission_refusals.value("queued_tokens") == 1
            first.close()
        wait_until(lambda: not made.state.dispatcher.flows)


def test_without_a_worker_a_request_is_told_to_come_again(tmp_path: Path) -> None:
    with cluster(tmp_path, []) as made:
        answer = httpx.post(f"{made.url}/v1/completions", json={"prompt": "x"})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert httpx.get(f"{made.url}/ready").status_code == 503
        assert httpx.get(f"{made.url}/health").status_code == 200


def test_a_template_that_never_ends_is_refused_and_others_go_on(tmp_path: Path) -> None:
    endless = (
        "{%- if messages[0].content == 'loop' -%}"
        "{%- for a in range(99999) -%}{%- for b in range(99999) -%}{%- endfor -%}{%- endfor -%}"
        "{%- elif messages[0].content == 'grow' -%}{%- set x = messages[0].content * 1000000000 -%}{{ x }}{{ x }}{{ x }}"
        "{%- else -%}{{ messages[0].content }}{%- endif -%}"
    )
    worker = [{"worker_id": "d0"}]
    with (
        cluster(tmp_path, worker, chat_template=endless, template_timeout_s=0.5) as made,
        httpx.Client(base_url=made.url) as http,
    ):

        def ask(content: str) -> httpx.Response:
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
            return http.post("/v1/chat/completions", json=body)

        for content in ("loop", "grow"):
            refused = ask(content)
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "messages"
            assert ask("hello").status_code == 200


def test_what_the_template_leaves_out_is_refused_by_name(tmp_path: Path) -> None:
    template = "{% for m in messages if m.role in ('user', 'system') %}{{ m.role + m.content }}{% endfor %}"
    tools = [{"type": "function", "function": {"name": "f"}}]
    with cluster(tmp_path, [{"worker_id": "d0"}], chat_template=template) as made:

        def ask(**body: Any) -> httpx.Response:
            return httpx.post(f"{made.url}/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1} | body)

        for body, field in (
            ({"tools": tools}, "tools"),
            ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role"),
        ):
            error = ask(**body).json()["error"]
            assert error["param"] == field
            assert field in error["message"]
        parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
        for messages, shown in (
            ([{"role": "developer", "content": "Be brief."}], "systemBe brief."),
            ([{"role": "user", "content": parts}], "userone\ntwo"),
        ):
            answer = httpx.post(f"{made.url}/tokenize", json={"messages": messages})
            assert made.state.tokenizer.decode(answer.json()["tokens"]) == shown
        assert ask(tools=tools, tool_choice="none").status_code == 200


def test_tool_calls_are_told_apart_from_text(tmp_path: Path) -> None:
    said = 'Well <tool_call>{"name": "sum", "arguments": {"a": 1}}</tool_call>'
    with cluster(tmp_path, []) as probe:
        script = probe.state.tokenizer.encode(said, add_special_tokens=False)
    worker = [{"worker_id": "d0", "script_ids": script, "answer_len": len(script) + 1}]
    tools: Any = [{"type": "function", "function": {"name": "sum", "parameters": {"type": "object"}}}]
    with cluster(tmp_path / "2", worker) as made:
        client = made.client()
        whole = client.chat.completions.create(model="tiny", messages=MESSAGES, tools=tools)
        message = whole.choices[0].message
        assert message.content == "Well "
        assert whole.choices[0].finish_reason == "tool_calls"
        assert message.tool_calls is not None
        call: Any = message.tool_calls[0]
        assert (call.function.name, json.loads(call.function.arguments)) == ("sum", {"a": 1})
        chunks = list(client.chat.completions.create(model="tiny", messages=MESSAGES, tools=tools, stream=True))
        deltas = [chunk.choices[0].delta for chunk in chunks]
        assert "".join(delta.content or "" for delta in deltas) == "Well "
        begun, *more = [call for delta in deltas for call in delta.tool_calls or []]
        assert begun.function is not None
        assert (begun.index, begun.function.name) == (0, "sum")
        assert "".join(call.function.arguments or "" for call in more if call.function) == '{"a": 1}'
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        plain = client.chat.completions.create(model="tiny", messages=MESSAGES)
        assert plain.choices[0].message.content == said
        assert plain.choices[0].finish_reason == "stop"


def test_files_and_batches_without_a_folder_say_how_to_have_one(client: openai.OpenAI) -> None:
    for call in (client.files.list, client.batches.list):
        with pytest.raises(openai.BadRequestError, match="--data-dir"):
            call()


def test_probes_of_other_servers_are_answered(serving: Cluster) -> None:
    with httpx.Client(base_url=serving.url) as http:
        for answer in (http.get("/ping"), http.post("/ping")):
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        assert http.get("/load").json() == {"server_load": 0}
        with http.stream(
            "POST", "/v1/completions", json={"prompt": PROMPT, "max_tokens": 1500, "stream": True}
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            assert httpx.get(f"{serving.url}/load").json() == {"server_load": 1}
        assert http.get("/version").json().keys() == {"version"}
        for path in ("/v1/audio/speech", "/v1/images/generations"):
            error = http.post(path, json={}).json()["error"]
            assert (error["type"], "Only text is served" in error["message"]) == ("invalid_request_error", True)


def test_invocations_are_passed_on_by_what_the_body_holds(serving: Cluster) -> None:
    with httpx.Client(base_url=serving.url, timeout=60) as http:
        for given, path in (
            ({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "seed": 1}, "/v1/chat/completions"),
            ({"prompt": PROMPT, "max_tokens": 2, "seed": 1}, "/v1/completions"),
        ):
            one, other = (http.post(each, json=given).json() for each in ("/invocations", path))
            assert (one["object"], one["choices"]) == (other["object"], other["choices"])
        streamed = http.post("/invocations", json={"prompt": PROMPT, "max_tokens": 2, "stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
        for content in (b'{"text": "hi"}', b"[1]", b'{"prompt": "a"', b"\xff", b'{"messages": null}'):
            answer = http.post("/invocations", content=content, headers={"content-type": "application/json"})
            assert answer.status_code == 400
            assert answer.json()["error"]["message"]
        assert http.post("/invocations", json={"prompt": PROMPT, "n": -1}).json()["error"]["param"] == "n"


def test_docs_name_every_route_and_load_nothing(serving: Cluster) -> None:
    page = httpx.get(f"{serving.url}/docs")
    assert page.headers["content-type"].startswith("text/html")
    paths = httpx.get(f"{serving.url}/openapi.json").json()["paths"]
    assert all(f"<td>{path}</td>" in page.text for path in paths)
    assert "http://" not in page.text
    assert "src=" not in page.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "x"}),
        ("/pooling", {"input": "x"}),
        ("/classify", {"input": "x"}),
        ("/v1/score", {"text_1": "x", "text_2": "y"}),
        ("/v1/rerank", {"query": "x", "documents": ["y"]}),
    ],
)
def test_a_model_that_generates_says_what_gives_vectors(serving: Cluster, path: str, body: dict[str, object]) -> None:
    answer = httpx.post(f"{serving.url}{path}", json=body, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "model", "model_not_supported")
    assert "generates text and gives no vectors or scores: ask /v1/chat/completions" in error["message"]
    assert "--convert embed" in error["message"]
