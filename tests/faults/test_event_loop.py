"""Whatever a client sends, the router's event loop goes on: every field of the API at its limit, in the real process.

How late the loop came is read from the router's own `event_loop_lag_seconds`. It stays below 50 ms where nothing else
runs; what is asserted is ten times that, twice, for machines that are busy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import orjson
import pytest
from tests.processes import BatonProcess, free_ports
from tests.router.cluster import FakeProcess
from tests.router.tokenizer_folder import make_tokenizer_folder

from baton.requests.chat import ChatRequest
from baton.requests.completions import CompletionRequest
from baton.requests.tokenize import DetokenizeRequest, TokenizeRequest

MOST_S = 0.5
INLINE, LONG = 60_000, 1_000_000
"""Bytes of a value that has no limit of its own: below what is read on the event loop, and far above."""
USER = {"role": "user", "content": "hi"}
NEEDED: dict[str, tuple[Any, dict[str, Any]]] = {
    "/v1/chat/completions": (ChatRequest, {"messages": [USER], "max_tokens": 4}),
    "/v1/completions": (CompletionRequest, {"prompt": [5, 6], "max_tokens": 4}),
    "/tokenize": (TokenizeRequest, {}),
    "/detokenize": (DetokenizeRequest, {"tokens": [5]}),
}


# -- values at their limits, made from the models ---------------------------------------------------------------------


def largest(schema: Mapping[str, Any], kinds: Mapping[str, Any], size: int) -> list[Any]:
    """Return values of a JSON schema that take about `size` bytes, or as many as it allows: one of each form."""
    if "$ref" in schema:
        return largest(kinds[schema["$ref"].rpartition("/")[2]], kinds, size)
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return [value for branch in schema[union] for value in largest(branch, kinds, size)]
    if "enum" in schema or "const" in schema:
        return [schema.get("enum", [schema.get("const")])[0]]
    match schema.get("type"):
        case "string":
            return [("hello wor" * (size // 9 + 1))[: min(schema.get("maxLength", size), size)]]
        case "array":
            return arrays(schema, kinds, size)
        case "object":
            return objects(schema, kinds, size)
        case "boolean":
            return [True]
        case "null":
            return []
        case "integer" | "number":
            return [schema.get("maximum", 2**31)]
    return [deep(size), [[]] * (size // 3)]


def arrays(schema: Mapping[str, Any], kinds: Mapping[str, Any], size: int) -> list[Any]:
    """Return many short items, and as many long ones as there is room for."""
    made = []
    for item_size in (8, size // 16):
        for item in largest(schema.get("items", {}), kinds, item_size)[:3]:
            count = min(schema.get("maxItems", size), size // (len(orjson.dumps(item)) + 1))
            made.append([item] * max(count, 1))
    return made


def objects(schema: Mapping[str, Any], kinds: Mapping[str, Any], size: int) -> list[Any]:
    """Return an object with all its properties, or one with as many as there is room for."""
    properties = schema.get("properties")
    if not properties:
        bias = schema.get("maxProperties")
        many = min(bias or size, size // 12)
        return [{str(i): 1.0 if bias else {} for i in range(many)}]
    each = size // len(properties)
    made = {name: (largest(kind, kinds, each) or [None])[0] for name, kind in properties.items()}
    return [
        made,
        {name: made[name] for name in schema.get("required", ())} | ({"content": "x" * size} if "role" in made else {}),
    ]


def deep(size: int) -> Any:
    """Return lists in lists, as deep as JSON is read."""
    value: Any = []
    for _ in range(min(size // 2, 180)):
        value = [value]
    return value


FIELDS = [(path, name) for path, (model, _) in NEEDED.items() for name in model.model_fields]


# -- the router -----------------------------------------------------------------------------------------------------


class Watched:
    """A router in its own process, asked, and looked at before and after."""

    def __init__(self, router: BatonProcess) -> None:
        self.router = router
        self.http = httpx.Client(base_url=router.url)
        self.worst: dict[str, float] = {}

    def lags(self) -> dict[float, float]:
        """Return how many ticks were at most so late."""
        series = self.router.metrics().items()
        prefix = 'event_loop_lag_seconds_bucket{le="'
        return {float(name[len(prefix) : -2]): count for name, count in series if name.startswith(prefix)}

    def lag_of(self, path: str, body: bytes) -> float:
        """Ask; return how late the loop came at most, as the edge of a bucket."""
        before = self.lags()
        answer = self.http.post(path, content=body)
        assert answer.status_code < 500, answer.text[:500]
        after = self.lags()
        came, last = 0.0, 0.0
        for edge in sorted(after):
            if after[edge] - before[edge] > came:
                came, last = after[edge] - before[edge], edge
        return last

    def check(self, name: str, path: str, body: dict[str, Any]) -> None:
        raw = orjson.dumps(body)
        lag = self.lag_of(path, raw)
        if lag > MOST_S:  # another process may have held the machine: not at the same place again
            lag = self.lag_of(path, raw)
        self.worst[name] = max(self.worst.get(name, 0.0), lag)
        assert lag <= MOST_S, f"{name}: the event loop came {lag:g} s late"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("loop")
    model = make_tokenizer_folder(folder / "tiny")
    worker = FakeProcess(worker_id="d0", max_model_len=32_768, num_blocks=10_000_000).start()
    (port,) = free_ports(1)
    flags = ("--worker", worker.settings.control, "--port", str(port), "--max-queued-tokens", "1000000000")
    router = BatonProcess(("router", "--model", str(model), *flags), folder / "router.log", port).start()
    try:
        router.wait_ready()
        made = Watched(router)
        yield made
        for name, lag in sorted(made.worst.items(), key=lambda each: -each[1])[:12]:
            print(f"at most {lag * 1000:g} ms late: {name}")
    finally:
        router.stop()
        worker.stop()


@pytest.mark.parametrize(("path", "field"), FIELDS)
def test_every_field_at_its_limit_leaves_the_loop_free(watched: Watched, path: str, field: str) -> None:
    model, needed = NEEDED[path]
    schema = model.model_json_schema()
    kind, kinds = schema["properties"][field], schema.get("$defs", {})
    sizes = (INLINE, LONG) if len(orjson.dumps(largest(kind, kinds, LONG))) > LONG // 2 else (LONG,)
    for size in sizes:
        for value in largest(kind, kinds, size):
            watched.check(f"{path} {field}", path, needed | {field: value})


PRODUCTS: list[tuple[str, dict[str, Any]]] = [
    (
        "prompts, n and scores",
        {"prompt": [[5] * 900] * 8, "n": 16, "echo": True, "logprobs": 20, "prompt_logprobs": 20},
    ),
    ("scores of prompts", {"prompt": [[5] * 140] * 8, "n": 16, "echo": True, "logprobs": 20, "prompt_logprobs": 20}),
    ("scores of a long prompt", {"prompt": [5] * 19_000, "prompt_logprobs": 20}),
    ("scores of a long echo", {"prompt": [5] * 19_000, "echo": True, "logprobs": 20}),
    ("a streamed echo with scores", {"prompt": [5] * 1_500, "echo": True, "logprobs": 19, "stream": True}),
    ("a streamed echo, too long", {"prompt": [5] * 19_000, "echo": True, "logprobs": 20, "stream": True}),
    ("scores of many choices", {"prompt": "hi", "n": 128, "max_tokens": 60, "logprobs": 20}),
    ("streamed scores of many choices", {"prompt": "hi", "n": 128, "max_tokens": 60, "logprobs": 20, "stream": True}),
    ("a long echo, many times", {"prompt": "x" * 32_000, "n": 128, "echo": True, "return_token_ids": True}),
    ("a prompt of hidden tokens, many times", {"prompt": [1] * 32_000, "n": 128}),
    ("many long prompts", {"prompt": [[399] * 32_000] * 60}),
    ("unknown names", {"prompt": "x", **{f"k{i}": 1 for i in range(150_000)}}),
    ("lists in lists", {"prompt": [[]] * 500_000}),
]


@pytest.mark.parametrize(("name", "fields"), PRODUCTS)
def test_fields_that_multiply_leave_the_loop_free(watched: Watched, name: str, fields: dict[str, Any]) -> None:
    watched.check(name, "/v1/completions", {"max_tokens": 1} | fields)


def test_scores_of_a_chats_many_choices_leave_the_loop_free(watched: Watched) -> None:
    scored = {"messages": [USER], "n": 128, "max_tokens": 60, "logprobs": True, "top_logprobs": 20}
    for stream in (False, True):
        watched.check(f"scores of a chat, stream={stream}", "/v1/chat/completions", scored | {"stream": stream})
