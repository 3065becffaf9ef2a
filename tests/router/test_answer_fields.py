"""The page of the API names every field that answers have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from .cluster import Cluster, cluster

PAGE = Path(__file__).parents[2] / "docs/api.md"
MESSAGES = [{"role": "user", "content": "hello"}]
EVERYTHING = {"max_tokens": 2, "prompt_logprobs": 1, "return_token_ids": True}
STREAMED = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": MESSAGES, "logprobs": True, "top_logprobs": 1, **EVERYTHING}),
    ("/v1/chat/completions", {"messages": MESSAGES, "logprobs": True, "max_tokens": 2, **STREAMED}),
    ("/v1/chat/completions", {"messages": MESSAGES, "top_p": 2}),
    ("/v1/completions", {"prompt": "hello", "logprobs": 1, "echo": True, **EVERYTHING}),
    ("/v1/completions", {"prompt": "hello", "logprobs": 1, "max_tokens": 2, **STREAMED}),
    ("/tokenize", {"prompt": "hello", "return_token_strs": True}),
    ("/detokenize", {"tokens": [40]}),
]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("fields"), [{"worker_id": "d0"}]) as made:
        yield made


def objects(answer: httpx.Response) -> Iterator[Any]:
    """Yield an answer's body, or the data of its events."""
    if answer.headers["content-type"].startswith("application/json"):
        yield answer.json()
    else:
        data = (line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: "))
        yield from (json.loads(each) for each in data if each != "[DONE]")


def fields(value: Any, above: str = "") -> Iterator[str]:
    """Yield the names of fields; keys that are tokens are none."""
    if isinstance(value, list):
        for each in value:
            yield from fields(each, above)
    elif isinstance(value, dict):
        for name, each in value.items():
            is_token = above in ("prompt_logprobs", "top_logprobs") and name not in ("token", "logprob", "bytes")
            if not is_token or name in ("rank", "decoded_token"):
                yield name
            yield from fields(each, above if is_token else name)


def test_the_page_names_every_field_of_answers(serving: Cluster) -> None:
    section = PAGE.read_text().partition("\n## Answers\n")[2].partition("\n## Fields\n")[0]
    named = set(re.findall(r"`(\w+)`", section))
    key = {"authorization": f"Bearer {serving.client().api_key}"}
    with httpx.Client(base_url=serving.url, headers=key) as http:
        answers = [http.post(path, json=body) for path, body in REQUESTS] + [http.get("/v1/models")]
    found = {name for answer in answers for each in objects(answer) for name in fields(each)}
    assert len(found) > 40
    assert sorted(found - named) == []
