"""A body too long for the event loop is answered, or refused, as a short one that says the same."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from baton.errors import InvalidRequest
from baton.requests.completions import CompletionRequest
from baton.router.config import RouterConfig
from baton.router.helper_process import HelperTooSlow
from baton.router.long_bodies import INLINE_NBYTES, LongBodies
from baton.router.text_pool import TextPool
from baton.text import Tokenizer

from .cluster import Cluster, cluster
from .tokenizer_folder import make_tokenizer_folder

USER = {"role": "user", "content": "hello world"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "maximum": 2**70}}}
BASE = {"max_tokens": 3, "seed": 1, "stop": ["zz"], "logit_bias": {"9": -1.5}, "bad_words": ["fox"], "top_k": 7}
CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"

SERVED: list[tuple[str, dict[str, Any]]] = [
    (CHAT, BASE | {"messages": [USER], "metadata": {"a": {"b": 1}}, "logprobs": True, "top_logprobs": 2}),
    (CHAT, BASE | {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": []}], "tools": [TOOL]}),
    (CHAT, BASE | {"messages": [USER], "tools": [TOOL], "tool_choice": "none", "return_token_ids": True}),
    (CHAT, BASE | {"messages": [USER], "stream": True, "stream_options": {"include_usage": True}}),
    (CHAT, BASE | {"messages": [USER], "add_special_tokens": True, "response_format": {"type": "text"}}),
    (COMPLETION, BASE | {"prompt": "hello", "echo": True, "logprobs": 1}),
    (COMPLETION, BASE | {"prompt": ["hello", "world"], "n": 2}),
    (COMPLETION, BASE | {"prompt": [5, 6, 7], "return_token_ids": True}),
    (COMPLETION, BASE | {"prompt": [[5, 6], [7.0]], "stream": True}),
    ("/tokenize", {"prompt": "hello", "return_token_strs": True}),
    ("/tokenize", {"messages": [USER], "tools": [TOOL]}),
    ("/detokenize", {"tokens": [5, 6, 300]}),
]
REFUSED: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": [USER], "top_logprobs": 3}),
    (CHAT, {"messages": []}),
    (CHAT, {"messages": [USER], "chat_template_kwargs": {"documents": []}}),
    (CHAT, {"messages": [USER], "tool_choice": "required"}),
    (CHAT, {"messages": [USER], "nonsense": 1}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
    (COMPLETION, {"prompt": [[]]}),
    (COMPLETION, {"prompt": [5, 2**31]}),
    (COMPLETION, {"prompt": [[5], [5, 399_999]]}),
    (COMPLETION, {"prompt": [5] * 2048}),
    (COMPLETION, {"prompt": ["x"] * 65}),
    (COMPLETION, {"prompt": "x", "stop": ["x"] * 17}),
    (COMPLETION, {"prompt": "x", "bad_words": ["x" * 900] * 40}),
    (COMPLETION, {"prompt": "x", "max_tokens": 4096}),
    ("/tokenize", {"prompt": "x", "messages": [USER]}),
    ("/detokenize", {"tokens": [5, 100_000]}),
    ("/detokenize", {"tokens": ["x"]}),
]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("serving"), [{}]) as made:
        yield made


def _said(serving: Cluster, path: str, body: dict[str, Any], padding: int) -> tuple[int, Any]:
    """Return what is answered, less what no two answers have in common."""
    content = json.dumps(body).encode() + b" " * padding
    answer = httpx.post(serving.url + path, content=content)
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line and line != "data: [DONE]"]
    said = [json.loads(event) | {"id": "", "created": 0} for event in events]
    for each in said:
        (each.get("usage") or {}).pop("prompt_tokens_details", None)  # the second one finds what the first has cached
    return answer.status_code, sorted(said, key=json.dumps)  # choices of a stream come in any order


@pytest.mark.parametrize(("path", "body"), SERVED)
def test_a_long_body_is_answered_as_a_short_one(serving: Cluster, path: str, body: dict[str, Any]) -> None:
    short = _said(serving, path, body, 0)
    assert short[0] == 200
    assert _said(serving, path, body, INLINE_NBYTES) == short


@pytest.mark.parametrize(("path", "body"), REFUSED)
def test_a_long_body_is_refused_as_a_short_one(serving: Cluster, path: str, body: dict[str, Any]) -> None:
    short = _said(serving, path, body, 0)
    assert short[0] == 400
    assert _said(serving, path, body, INLINE_NBYTES) == short


def test_a_text_beyond_the_context_is_refused_though_it_is_not_read_to_its_end(serving: Cluster) -> None:
    status, (said,) = _said(serving, COMPLETION, {"prompt": "hello world " * 100_000}, 0)
    assert status == 400
    assert "maximum context length is 2048 tokens" in said["error"]["message"]
    assert "more than 4096" in said["error"]["message"]


def test_a_process_that_does_not_answer_in_time_is_ended_and_the_next_body_is_read(tmp_path: Path) -> None:
    async def read() -> None:
        config = RouterConfig(model=str(make_tokenizer_folder(tmp_path)))
        text = TextPool(Tokenizer(config.model), config)
        bodies = LongBodies(config, text)
        body = b'{"prompt": [' + b"[]," * 400_000 + b"[]]}"
        with pytest.raises(HelperTooSlow):
            await bodies._readers.ask(bodies._job(CompletionRequest, body, None), 0.001)
        with pytest.raises(InvalidRequest, match="none empty"):
            await bodies.read(CompletionRequest, body, None)
        await bodies.close()
        await text.close()

    asyncio.run(read())


def test_more_long_bodies_than_may_wait_are_refused_until_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.router.long_bodies._MAX_WAITING", 0)
    with cluster(tmp_path, [{}]) as made:
        answer = httpx.post(f"{made.url}{COMPLETION}", content=b'{"prompt": "x"}' + b" " * INLINE_NBYTES)
        assert answer.status_code == 429
        assert answer.headers["retry-after"]
        assert httpx.post(f"{made.url}{COMPLETION}", json={"prompt": "x"}).status_code == 200
