"""What `LLM` and `SamplingParams` are given: each prompt, conversation, parameter and setting is taken or refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baton.errors import BatonError, ConfigError, ContextTooLong, InvalidRequest, ModelLoadError, OutOfMemory
from baton.llm import LLM, SamplingParams
from baton.protocol import MAX_N

GREEDY = SamplingParams(temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(use_tqdm=False, kv_cache_memory_bytes=2**26, max_num_seqs=16)


def texts(llm: LLM, prompts: Any) -> list[str]:
    return [output.outputs[0].text for output in llm.generate(prompts, GREEDY, use_tqdm=False)]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ({"prompt_token_ids": []}, ["prompt 1", "empty"]),
        ({"prompt_token_ids": [1, 2, 9_999]}, ["prompt 1", "prompt_token_ids", "9999", "4095"]),
        ({"prompt_token_ids": [-1]}, ["prompt_token_ids", "-1"]),
        ({"prompt_token_ids": ["a"]}, ["prompt_token_ids", "whole numbers"]),
        ({"prompt_token_ids": [5] * 5000}, ["5000", "4096", "--max-model-len"]),
        ({"text": "hi"}, ["prompt 1", "text"]),
        ({}, ["prompt_token_ids"]),
        ({"prompt": 5}, ["prompt", "string"]),
        (7, ["prompt"]),
        ({"prompt": "\ud800"}, ["prompt", "surrogate"]),
        ({"prompt": "hi", "cache_salt": "\ud800"}, ["cache_salt", "surrogate"]),
        ({"prompt": "hi", "cache_salt": 3}, ["cache_salt"]),
    ],
)
def test_a_bad_prompt_is_named_before_anything_runs(llm: LLM, prompt: Any, words: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        llm.generate(["2+2=", prompt], GREEDY, use_tqdm=False)
    for word in words:
        assert word in str(caught.value)
    assert not llm.engine.has_work


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 1.5),
        ("top_k", 2**31),
        ("best_of", True),
        ("bad_words_ids", (5,)),
        ("logit_bias", {1.5: 1.0}),
        ("min_p", -0.5),
        ("n", 0),
        ("n", MAX_N + 1),
        ("best_of", 3),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("min_tokens", 17),
        ("presence_penalty", 2.1),
        ("frequency_penalty", float("nan")),
        ("repetition_penalty", 0.0),
        ("logprobs", -2),
        ("prompt_logprobs", -2),
        ("seed", 2**70),
        ("stop", [""]),
        ("stop", [1]),
        ("stop_token_ids", ["a"]),
        ("logit_bias", {"x": 1.0}),
        ("logit_bias", {1: float("nan")}),
        ("allowed_token_ids", []),
        ("bad_words", [""]),
        ("structured_outputs", {"json": {}}),
        ("ignore_eos", 1),
    ],
)
def test_a_bad_parameter_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == field


@pytest.mark.parametrize("field", ["allowed_token_ids", "stop_token_ids", "logit_bias", "bad_words_ids"])
def test_token_ids_outside_the_vocabulary_are_refused(llm: LLM, field: str) -> None:
    value: Any = {"logit_bias": {4096: 1.0}, "bad_words_ids": ((1, 4096),)}.get(field, (4096,))
    with pytest.raises(InvalidRequest, match=rf"{field}=4096.*0 to 4095"):
        llm.generate(["2+2="], SamplingParams(**{field: value}), use_tqdm=False)


def test_limits_that_leave_no_token_are_refused(llm: LLM) -> None:
    eos = llm.engine.model.spec.eos_token_ids
    banned = {"allowed_token_ids": (7, 8), "bad_words_ids": ((7,), (8,), (9, 10))}
    for limits, field in (
        ({"min_tokens": 2, "stop_token_ids": (7,), "allowed_token_ids": (7, *eos)}, "min_tokens"),
        (
            {"min_tokens": 2, "stop_token_ids": (7,), "allowed_token_ids": (7, 8), "bad_words_ids": ((8,),)},
            "min_tokens",
        ),
        (banned, "allowed_token_ids"),
    ):
        with pytest.raises(InvalidRequest, match=f" {field}="):
            llm.generate(["hi"], SamplingParams(**limits), use_tqdm=False)
    one_left: dict[str, Any] = {**banned, "allowed_token_ids": (7, 8, 10)}
    answer = llm.generate(["hi"], SamplingParams(**one_left, max_tokens=3, ignore_eos=True), use_tqdm=False)[0]
    assert answer.outputs[0].token_ids == [10, 10, 10]


@pytest.mark.parametrize("messages", ["hi", ["hi"], [[{"role": "user", "content": "a"}, "b"]], []])
def test_what_is_no_conversation_is_refused(llm: LLM, messages: Any) -> None:
    if messages == []:
        assert llm.chat(messages, GREEDY, use_tqdm=False) == []
        return
    with pytest.raises(InvalidRequest, match="messages"):
        llm.chat(messages, GREEDY, use_tqdm=False)


def test_a_checkpoints_impossible_sampling_is_named_at_start(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model")
    (folder / "generation_config.json").write_text('{"top_p": 0, "do_sample": true}')
    with pytest.raises(ConfigError, match=r"generation_config.json.*top_p"):
        LLM(folder, skip_tokenizer_init=True, use_tqdm=False)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ({"prompt": "hi", "multi_modal_data": {"image": b""}}, "multi_modal_data.*only text is served"),
        ({"prompt": "hi", "cache_sallt": "secret"}, "cache_sallt='secret'.*write cache_salt"),
        ({"prompt_embeds": [[0.5]]}, "prompt_embeds.*token ids"),
        ({"prompt": "hi", "prompt_token_ids": [5]}, "prompt or prompt_token_ids.*not both"),
        ({"prompt_token_ids": "hi"}, "prompt_token_ids='hi'.*list"),
        ({"encoder_prompt": "hi", "decoder_prompt": "ho"}, "encoder"),
    ],
)
def test_no_key_of_a_prompt_is_passed_over(llm: LLM, prompt: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"prompt 0: .*{words}"):
        llm.generate([prompt], GREEDY, use_tqdm=False)
    neutral = {"prompt": "2+2=", "multi_modal_data": None, "mm_processor_kwargs": {}, "cache_salt": None}
    assert texts(llm, [neutral]) == texts(llm, ["2+2="])


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, r"content\[0\].type='image_url'.*pictures"),
        ({"content": 5}, "content=5.*a text or a list of parts"),
        ({"role": "king"}, "role='king'"),
        ({"nmae": "x"}, "nmae='x'"),
        ({"content": "\ud800"}, "content=.*surrogate"),
        ({"content": None}, "content is missing"),
    ],
)
def test_a_conversation_is_checked_as_over_http(llm: LLM, message: dict[str, Any], words: str) -> None:
    hello = {"role": "user", "content": "hi"}
    with pytest.raises(ValueError, match=rf"^messages\[1\]\.{words}"):
        llm.chat([hello, hello | message], GREEDY, use_tqdm=False)
    with pytest.raises(ValueError, match=rf"^conversation 1: messages\[0\]\.{words}"):
        llm.chat([[hello], [hello | message]], GREEDY, use_tqdm=False)


def test_limits_beyond_the_context_are_refused_in_the_words_that_clients_look_for(llm: LLM) -> None:
    words = (
        r"this model's maximum context length is 4096 tokens\. However, you requested 50\d\d tokens \(\d in the prompt"
    )
    for params in (SamplingParams(max_tokens=5000), SamplingParams(max_tokens=None, min_tokens=5000)):
        with pytest.raises(ContextTooLong, match=words) as caught:
            llm.generate("hi", params, use_tqdm=False)
        assert caught.value.code == "context_length_exceeded"
    with pytest.raises(ContextTooLong, match=r"maximum context length is 4096 tokens\. However, the prompt has 4096"):
        llm.generate([[5] * 4096], use_tqdm=False)


def test_a_wrong_argument_is_refused_by_name_and_never_a_type_error(llm: LLM) -> None:
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: llm.generate(None), "prompts=None"),
        (lambda: llm.generate(5), "prompts=5"),
        (lambda: llm.generate(prompt_token_ids=[[5]]), "prompt_token_ids=.*stand in `prompts`"),
        (lambda: llm.generate(b"hi"), "prompts="),
        (lambda: llm.generate("hi", 5), "sampling_params=5"),
        (lambda: llm.generate("hi", {"temperature": 0}), "sampling_params="),
        (lambda: llm.generate("hi", GREEDY, priority=5), "priority=5"),
        (lambda: llm.generate("hi", GREEDY, priority=[None]), "priority="),  # type: ignore[list-item]
        (lambda: llm.generate("hi", GREEDY, lora_request="x"), "lora_request='x'.*Adapters"),
        (lambda: llm.generate("hi", GREEDY, colour="x"), "colour='x'"),
        (lambda: llm.chat(5), "messages=5"),
        (lambda: llm.chat([{"role": "user", "content": "x"}], tools=5), "tools=5"),
        (lambda: llm.chat([{"role": "user", "content": "x"}], tools=[{"type": "x"}]), r"tools\[0\]"),
        (lambda: llm.chat([{"role": "user", "content": "x"}], chat_template_kwargs=5), "chat_template_kwargs=5"),
        (lambda: llm.chat([{"role": "user", "content": "x"}], add_generation_prompt="x"), "add_generation_prompt='x'"),
        (lambda: llm.chat([{"role": "user", "content": "x"}], chat_template="x"), "chat_template='x' is neither"),
        (
            lambda: llm.chat([{"role": "user", "content": "x"}], chat_template_content_format="x"),
            "chat_template_content_format='x'",
        ),  # type: ignore[arg-type]
    ]
    for call, words in calls:
        with pytest.raises(InvalidRequest, match=words):
            call()
    hello = [{"role": "user", "content": "hi"}]
    assert llm.chat(hello, GREEDY, lora_request=None, chat_template_content_format="auto", use_tqdm=False)


def test_a_list_of_token_ids_is_one_prompt_and_lists_of_them_are_many(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("17+25=")
    for prompts, count in ((ids, 1), ([ids, tuple(ids)], 2), (np.array(ids), 1), ([np.array(ids), "17+25="], 2)):
        assert texts(llm, prompts) == ["42"] * count


def test_a_progress_bar_may_be_of_ones_own_class(llm: LLM) -> None:
    from tqdm import tqdm

    made: list[Any] = []

    class Bar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings | {"disable": True})
            made.append(self)

    llm.generate("2+2=", GREEDY, use_tqdm=Bar)
    assert len(made) == 1


def test_parameters_are_cloned_and_take_numpys_numbers() -> None:
    params = SamplingParams(logit_bias={1: 2.0}, temperature=0.5)
    clone = params.clone()
    assert clone == params
    assert clone.logit_bias is not params.logit_bias
    numbers = SamplingParams(
        max_tokens=np.int64(5), temperature=np.float32(0.5), seed=np.uint8(3), top_k=4.0, logprobs=2.0
    )
    assert numbers == SamplingParams(max_tokens=5, temperature=0.5, seed=3, top_k=4, logprobs=2)
    assert {type(getattr(numbers, name)) for name in ("max_tokens", "seed", "top_k", "logprobs")} == {int}


def test_parameters_must_be_one_or_one_each(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match=r"sampling_params.*2 prompts"):
        llm.generate(["a", "b"], [GREEDY] * 3, use_tqdm=False)


def test_text_without_a_tokenizer_says_what_to_send_instead() -> None:
    bare = LLM(skip_tokenizer_init=True, use_tqdm=False, kv_cache_memory_bytes=2**26)
    with pytest.raises(InvalidRequest, match="prompt_token_ids"):
        bare.generate(["hello"], use_tqdm=False)
    with pytest.raises(InvalidRequest, match="tokenizer"):
        bare.generate({"prompt_token_ids": [5]}, SamplingParams(stop="x"), use_tqdm=False)
    output = bare.generate({"prompt_token_ids": [5, 6]}, GREEDY, use_tqdm=False)[0].outputs[0]
    assert output.token_ids
    assert output.text == ""


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"model": "/no/such/folder"}, ModelLoadError, ["/no/such/folder"]),
        ({"max_model_len": 5000}, ModelLoadError, ["max_model_len", "5000", "4096"]),
        ({"kv_cache_memory_bytes": 2**20}, OutOfMemory, ["--max-model-len", "--kv-cache-memory-bytes"]),
        ({"kv_cache_memory_bytes": 2**60}, OutOfMemory, ["--kv-cache-memory-bytes"]),
        ({"dtype": "int4"}, ConfigError, ["dtype", "int4", "bfloat16"]),
        ({"block_size": 24}, ConfigError, ["block_size", "24", "16"]),
        ({"gpu_memory_utilization": 1.5}, ConfigError, ["gpu_memory_utilization", "1.5"]),
        ({"max_num_seqs": 0}, ConfigError, ["max_num_seqs"]),
        ({"max_num_batched_tokens": 8}, ConfigError, ["max_num_batched_tokens", "--max-num-seqs to 8"]),
        ({"gpu_memory_utilization": "half"}, ConfigError, ["gpu_memory_utilization", "half"]),
        ({"max_model_len": 1}, ConfigError, ["max_model_len"]),
        ({"seed": "x"}, ConfigError, ["seed"]),
        ({"num_layers": 3}, InvalidRequest, ["num_layers", "max_model_len"]),
    ],
)
def test_a_bad_setting_is_named_at_start(settings: dict[str, Any], error: type[BatonError], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        LLM(use_tqdm=False, **settings)
    for word in words:
        assert word in str(caught.value)


def test_a_request_that_can_never_fit_the_cache_is_refused() -> None:
    small = LLM(use_tqdm=False, num_gpu_blocks_override=4, max_model_len=64)
    greedy = GREEDY.replace(max_tokens=4)
    with pytest.raises(ContextTooLong):
        small.generate({"prompt_token_ids": [5] * 70}, greedy, use_tqdm=False)
    assert len(small.generate({"prompt_token_ids": [5] * 60}, greedy, use_tqdm=False)) == 1
