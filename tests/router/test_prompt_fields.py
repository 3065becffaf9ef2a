"""Fields that change what becomes of a prompt: cut, echoed, rendered by a template of the request's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from baton import infilling
from baton.router import render

from .cluster import Cluster, cluster
from .tokenizer_folder import CHAT_TEMPLATE

TEMPLATE = CHAT_TEMPLATE + "{%- for each in documents or [] -%}{{- '[' + each.title + ']' -}}{%- endfor -%}"
MESSAGES = [{"role": "user", "content": "hello"}]
IDS = list(range(40, 80))
LONG = "hello " * 12_000
"""Of a body that is read in a process beside the router."""


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("prompts")
    options: dict[str, Any] = {
        "chat_template": TEMPLATE,
        "trust_request_chat_template": True,
        "template_timeout_s": 0.5,
    }
    with cluster(folder, [{"worker_id": "d0"}], **options) as made:
        yield made


def post(serving: Cluster, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{serving.url}{path}", json=body)
    return answer.json() | {"status": answer.status_code}


def complete(serving: Cluster, prompt: Any, **fields: Any) -> Any:
    return post(serving, "/v1/completions", prompt=prompt, max_tokens=4, return_token_ids=True, **fields)


def chat(serving: Cluster, messages: Any = MESSAGES, **fields: Any) -> Any:
    return post(serving, "/v1/chat/completions", messages=messages, max_tokens=4, return_token_ids=True, **fields)


def text_of(serving: Cluster, token_ids: list[int]) -> str:
    text: str = post(serving, "/detokenize", tokens=token_ids)["prompt"]
    return text


def test_a_prompt_is_cut_to_its_end_or_to_its_beginning(serving: Cluster) -> None:
    for side, left in ((None, IDS[-5:]), ("left", IDS[-5:]), ("right", IDS[:5])):
        answer = complete(serving, IDS, truncate_prompt_tokens=5, truncation_side=side)
        assert answer["choices"][0]["prompt_token_ids"] == left
        assert answer["usage"]["prompt_tokens"] == 5
    assert complete(serving, IDS, truncate_prompt_tokens=50)["choices"][0]["prompt_token_ids"] == IDS


def test_minus_one_cuts_to_what_the_context_holds_beside_the_answer(serving: Cluster) -> None:
    for prompt in (LONG, [40, 41] * 20_000):
        answer = complete(serving, prompt, truncate_prompt_tokens=-1)
        assert answer["usage"]["prompt_tokens"] == 2048 - 4
        assert len(answer["choices"][0]["token_ids"]) == 4
    answer = chat(serving, [{"role": "user", "content": LONG}], truncate_prompt_tokens=-1)
    assert answer["usage"]["prompt_tokens"] == 2048 - 4
    assert text_of(serving, answer["prompt_token_ids"]).endswith("<|end|><|assistant|>")


def test_what_is_left_of_a_cut_prompt_is_echoed(serving: Cluster) -> None:
    answer = complete(serving, "hello world", truncate_prompt_tokens=1, echo=True, logprobs=0)
    last = post(serving, "/tokenize", prompt="hello world")["tokens"][-1]
    choice = answer["choices"][0]
    assert choice["prompt_token_ids"] == [last]
    assert choice["text"].startswith(choice["logprobs"]["tokens"][0])
    assert choice["logprobs"]["text_offset"][1] == len(choice["logprobs"]["tokens"][0])


@pytest.mark.parametrize(
    ("value", "reason"), [(0, "nothing would be left"), (-2, "greater than"), (4096, "2048 tokens")]
)
def test_a_cut_that_cannot_be_made_is_refused(serving: Cluster, value: int, reason: str) -> None:
    answer = complete(serving, IDS, truncate_prompt_tokens=value)
    assert (answer["status"], answer["error"]["param"]) == (400, "truncate_prompt_tokens")
    assert reason in answer["error"]["message"]


@pytest.mark.parametrize("said", ["hel", LONG[:200]])
@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_echoes_the_message_that_it_goes_on_with(serving: Cluster, said: str, stream: bool) -> None:
    messages: list[Any] = [*MESSAGES, {"role": "assistant", "content": said}]
    client = serving.client()
    text = ""
    for echo in (False, True):
        options = {"extra_body": {"echo": echo, "continue_final_message": True, "truncate_prompt_tokens": -1}}
        asked: dict[str, Any] = {"model": "tiny", "messages": messages, "max_tokens": 4, "seed": 1, **options}
        if stream:
            deltas = [event.choices[0].delta for event in client.chat.completions.create(stream=True, **asked)]
            assert [delta.role for delta in deltas if delta.role] == ["assistant"]
            answer = "".join(delta.content or "" for delta in deltas)
        else:
            answer = client.chat.completions.create(**asked).choices[0].message.content or ""
        text = text or answer
        assert answer == (said if echo else "") + text


def test_an_echo_of_a_long_conversation_is_found_where_it_is_read(serving: Cluster) -> None:
    messages = [{"role": "user", "content": LONG}, {"role": "assistant", "content": "so"}]
    answer = chat(serving, messages, echo=True, continue_final_message=True, truncate_prompt_tokens=-1)
    assert answer["choices"][0]["message"]["content"].startswith("so")


def test_a_chat_does_not_echo_a_question(serving: Cluster) -> None:
    plain, echoed = chat(serving, seed=1), chat(serving, seed=1, echo=True, logprobs=True)
    assert echoed["choices"][0]["message"]["content"] == plain["choices"][0]["message"]["content"]
    assert len(echoed["prompt_logprobs"]) == echoed["usage"]["prompt_tokens"]


def test_documents_reach_a_template_that_has_a_place_for_them(serving: Cluster) -> None:
    documents = [{"title": "one", "text": "two"}]
    for messages in (MESSAGES, [{"role": "user", "content": LONG}]):
        answer = chat(serving, messages, documents=documents, truncate_prompt_tokens=-1)
        assert text_of(serving, answer["prompt_token_ids"]).endswith("<|assistant|>[one]")
    own = "{{ messages[0].content }}"
    answer = chat(serving, documents=documents, chat_template=own)
    assert (answer["status"], answer["error"]["param"]) == (400, "documents")


def test_a_template_of_the_requests_own_renders_where_such_are_trusted(serving: Cluster) -> None:
    own = "({% for message in messages %}{{ message.content }}{% endfor %})"
    answer = chat(serving, chat_template=own)
    assert text_of(serving, answer["prompt_token_ids"]) == "(hello)"
    tokenized = post(serving, "/tokenize", messages=MESSAGES, chat_template=own)
    assert tokenized["tokens"] == answer["prompt_token_ids"]
    answer = chat(serving, [{"role": "user", "content": LONG}], chat_template=own, truncate_prompt_tokens=2)
    assert text_of(serving, answer["prompt_token_ids"]).endswith(")")
    broken = chat(serving, chat_template="{% if %}")
    assert (broken["status"], "template is not valid" in broken["error"]["message"]) == (400, True)
    endless = chat(
        serving, chat_template="{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"
    )
    assert endless["status"] == 400
    assert chat(serving)["status"] == 200


def test_templates_of_requests_do_not_pile_up() -> None:
    for number in range(40):
        render.render({"template": f"{number}", "special_tokens": {}, "content_format": "auto"})
    assert 0 < len(render._templates) <= 16


def test_a_suffix_is_shown_behind_the_gap(serving: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = complete(serving, "a", suffix="b")
    assert (refused["status"], refused["error"]["param"]) == (400, "suffix")
    # tokens that the model of these tests has
    monkeypatch.setattr(infilling, "_FORMS", (("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),))
    answer = complete(serving, "hello", suffix="world")
    assert text_of(serving, answer["choices"][0]["prompt_token_ids"]) == "<|system|>hello<|user|>world<|assistant|>"
    for fields, field in (({"prompt": [40]}, "suffix"), ({"echo": True}, "echo")):
        refused = complete(serving, **({"prompt": "a", "suffix": "b"} | fields))
        assert (refused["status"], refused["error"]["param"]) == (400, field)
