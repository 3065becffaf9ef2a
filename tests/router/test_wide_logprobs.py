"""Log-probabilities of all tokens: where the router allows them, within what an answer may hold."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from .cluster import VOCAB, Cluster, cluster

PROMPT = [20, 30, 40]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(
        tmp_path_factory.mktemp("wide"), [{"worker_id": "d0"}], max_logprobs=-1, max_answer_scores=5000
    ) as made:
        yield made


def complete(made: Cluster, **settings: Any) -> Any:
    extra = {name: settings.pop(name) for name in ("prompt_logprobs",) if name in settings}
    return made.client().completions.create(
        model="tiny", prompt=PROMPT, **({"max_tokens": 3} | settings), extra_body=extra
    )


def test_a_completion_scores_every_token(wide: Cluster) -> None:
    choice = complete(wide, logprobs=-1, prompt_logprobs=-1).choices[0]
    assert [len(row) for row in choice.logprobs.top_logprobs] == [VOCAB] * 3
    assert [None if row is None else len(row) for row in choice.prompt_logprobs] == [None, VOCAB, VOCAB]


def test_a_chat_scores_every_token_streamed_too(wide: Cluster) -> None:
    ask: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 2,
        "logprobs": True,
        "top_logprobs": -1,
    }
    rows = wide.client().chat.completions.create(**ask).choices[0].logprobs.content
    streamed = [
        row
        for chunk in wide.client().chat.completions.create(stream=True, **ask)
        for choice in chunk.choices
        if choice.logprobs
        for row in choice.logprobs.content
    ]
    assert [len(row.top_logprobs) for row in rows] == [VOCAB] * 2
    assert [row.model_dump() for row in streamed] == [row.model_dump() for row in rows]


@pytest.mark.parametrize("stream", [False, True])
def test_more_than_an_answer_may_hold_is_refused(wide: Cluster, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=r"logprobs=400 .*5000 are kept") as refused:
        complete(wide, logprobs=-1, max_tokens=20, stream=stream)
    assert refused.value.param == "logprobs"


def test_without_leave_nobody_gets_more_than_twenty(wide: Cluster, tmp_path: Any) -> None:
    with cluster(tmp_path, [{"worker_id": "d0"}]) as made:
        for field in ("logprobs", "prompt_logprobs"):
            for value in (-1, 21):
                with pytest.raises(openai.BadRequestError, match=r"0 to 20.*--max-logprobs") as refused:
                    complete(made, **{field: value})
                assert refused.value.param == field
