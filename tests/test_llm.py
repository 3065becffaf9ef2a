"""`LLM` as its users call it, with the bundled demo model."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from baton.config import AUTO_LEN
from baton.errors import (
    BatonError,
    ConfigError,
    ContextTooLong,
    InvalidRequest,
    ModelLoadError,
    OutOfMemory,
    QueueFull,
    UnsupportedFeature,
)
from baton.llm import LLM, SamplingParams, demo_model_path
from baton.models.config import read_spec
from baton.prompt import Prompt
from baton.protocol import MAX_N
from baton.text import Tokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=24)
QUESTIONS = ["2+2=", "17+25=", "Tell me", "The weather"]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(use_tqdm=False, kv_cache_memory_bytes=2**26, max_num_seqs=16)


def texts(llm: LLM, prompts: Any, params: Any = GREEDY) -> list[str]:
    return [output.outputs[0].text for output in llm.generate(prompts, params, use_tqdm=False)]


def test_the_demo_model_adds_two_and_two(llm: LLM) -> None:
    output = llm.generate(["2+2="], SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)[0]
    assert output.outputs[0].text.strip() == "4"
    assert output.outputs[0].finish_reason == "stop"
    assert output.outputs[0].token_ids[-1] in llm.engine.model.spec.eos_token_ids
    assert output.finished
    assert output.prompt == "2+2="


def test_greedy_ids_of_the_demo_model_equal_transformers(llm: LLM) -> None:
    from transformers import AutoModelForCausalLM

    peer = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32).eval()
    peer.generation_config.eos_token_id = None
    tokenizer = llm.get_tokenizer()
    prompts = [
        tokenizer.encode("Tell me a story about a miller."),
        tokenizer.encode("Count: " + ", ".join(f"{i} apples" for i in range(120))),
        tokenizer.encode("x"),
    ]
    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    for ids, output in zip(prompts, outputs, strict=True):
        tokens = torch.tensor([ids])
        expected = peer.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=64,
            do_sample=False,
            pad_token_id=0,
            repetition_penalty=1.0,
        )
        assert output.outputs[0].token_ids == expected[0, len(ids) :].tolist()


def test_results_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    together = texts(llm, QUESTIONS)
    assert together == [texts(llm, [question])[0] for question in QUESTIONS]
    assert texts(llm, "2+2=") == together[:1]


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in (1, 5, 9, 2)]
    outputs = llm.generate(QUESTIONS, params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 5, 9, 2]
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}


def test_token_ids_and_text_are_the_same_prompt(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("17+25=")
    assert texts(llm, [{"prompt_token_ids": ids}, {"prompt": "17+25="}, "17+25="]) == ["42"] * 3


def test_chat_renders_the_models_own_template(llm: LLM) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    output = llm.chat(question, SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)[0]
    assert "Paris" in output.outputs[0].text
    assert output.prompt is not None
    assert "<|user|>" in output.prompt
    both = llm.chat([question, question], GREEDY, use_tqdm=False)
    assert [answer.outputs[0].text for answer in both] == [output.outputs[0].text] * 2


def test_chat_takes_a_template_and_a_form_of_content_for_one_call(llm: LLM) -> None:
    two = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    template = "<{{ messages[0].content | map(attribute='text') | join('+') if messages[0].content is not string else "
    template += "messages[0].content }}>"
    for how, shown in (({}, "<one+two>"), ({"chat_template_content_format": "string"}, "<one\ntwo>")):
        output = llm.chat(two, GREEDY, chat_template=template, use_tqdm=False, **how)[0]  # type: ignore[arg-type]
        assert output.prompt == shown
    assert "<|user|>" in (llm.chat(two, GREEDY, use_tqdm=False)[0].prompt or "")


def test_what_the_template_leaves_out_is_refused_with_its_conversation(llm: LLM) -> None:
    hello = [{"role": "user", "content": "hi"}]
    with pytest.raises(InvalidRequest, match=r"conversation 1: messages\[0\].role='system'"):
        llm.chat(
            [hello, [{"role": "system", "content": "x"}, *hello]],
            GREEDY,
            chat_template="{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            use_tqdm=False,
        )


def test_a_final_message_can_be_continued(llm: LLM) -> None:
    messages = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is"},
    ]
    output = llm.chat(messages, GREEDY, add_generation_prompt=False, continue_final_message=True, use_tqdm=False)[0]
    assert output.outputs[0].text.strip().startswith("Paris")


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    whole = texts(llm, ["Tell me"], SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))[0]
    stop = whole[8:11]
    at = whole.index(stop)
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, stop=stop)
    output = llm.generate(["Tell me"], params, use_tqdm=False)[0].outputs[0]
    assert output.text == whole[:at]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    kept = params.replace(include_stop_str_in_output=True)
    assert texts(llm, ["Tell me"], kept)[0] == whole[: at + len(stop)]


def test_a_stop_token_ends_the_answer_and_is_named(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    ids = llm.generate(["Tell me"], params, use_tqdm=False)[0].outputs[0].token_ids
    first = next(i for i in range(5, 20) if ids[i] not in ids[:i])
    params = params.replace(stop_token_ids=(ids[first],))
    output = llm.generate(["Tell me"], params, use_tqdm=False)[0].outputs[0]
    assert output.token_ids == ids[: first + 1]
    assert output.stop_reason == ids[first]


def test_no_end_of_text_comes_before_min_tokens(llm: LLM) -> None:
    plain = llm.generate(["2+2="], GREEDY, use_tqdm=False)[0].outputs[0]
    assert len(plain.token_ids) < 8
    longer = llm.generate(["2+2="], GREEDY.replace(min_tokens=12), use_tqdm=False)[0].outputs[0]
    assert len(longer.token_ids) >= 12
    assert not set(longer.token_ids[:12]) & set(llm.engine.model.spec.eos_token_ids)


def test_no_end_of_text_comes_before_min_tokens_where_it_would_end_nothing(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=8, min_tokens=8, ignore_eos=True)
    token_ids = llm.generate(["2+2="], params, use_tqdm=False)[0].outputs[0].token_ids
    assert len(token_ids) == 8
    assert not set(token_ids) & set(llm.engine.model.spec.eos_token_ids)


def test_a_tokenizers_own_end_ends_answers_where_the_configs_name_none(llm: LLM, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(demo_model_path(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    (folder / "generation_config.json").unlink()
    nameless = LLM(folder, use_tqdm=False, kv_cache_memory_bytes=2**26, max_num_seqs=4)
    assert nameless.engine.model.spec.eos_token_ids == llm.engine.model.spec.eos_token_ids
    answers = [each.generate(["2+2="], GREEDY, use_tqdm=False)[0].outputs[0] for each in (llm, nameless)]
    assert answers[0] == answers[1]


def test_a_special_token_as_a_stop_string_ends_an_answer(llm: LLM) -> None:
    params = GREEDY.replace(stop=("<|end|>",), ignore_eos=True)
    output = llm.generate(["2+2="], params, use_tqdm=False)[0].outputs[0]
    assert (output.text, output.finish_reason, output.stop_reason) == (texts(llm, ["2+2="])[0], "stop", "<|end|>")


def test_allowed_and_banned_tokens_are_kept_to(llm: LLM) -> None:
    allowed = (70, 71, 72, 80)
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=30, ignore_eos=True, allowed_token_ids=allowed)
    assert set(llm.generate(["Tell me"], params, use_tqdm=False)[0].outputs[0].token_ids) <= set(allowed)
    greedy = GREEDY.replace(ignore_eos=True)
    first = llm.generate(["Tell me"], greedy, use_tqdm=False)[0].outputs[0].token_ids[0]
    biased = greedy.replace(logit_bias={first: -100.0})
    assert llm.generate(["Tell me"], biased, use_tqdm=False)[0].outputs[0].token_ids[0] != first


def test_a_bad_word_never_comes(llm: LLM) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    params = SamplingParams(temperature=0, max_tokens=20, bad_words=("Paris",))
    assert "Paris" not in llm.chat(question, params, use_tqdm=False)[0].outputs[0].text


def test_penalties_change_what_repeats(tiny_checkpoint: Callable[[str], Path]) -> None:
    # random weights have flat logits; the demo model is too sure of its words for a penalty of 2 to change one
    llm = LLM(tiny_checkpoint("llama"), skip_tokenizer_init=True, use_tqdm=False, kv_cache_memory_bytes=2**22)
    plain = SamplingParams(temperature=0, max_tokens=80, ignore_eos=True, detokenize=False)
    changes: list[dict[str, float]] = [
        {},
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"repetition_penalty": 2.0},
    ]
    distinct = [
        len(
            set(
                llm.generate({"prompt_token_ids": [7, 8]}, plain.replace(**change), use_tqdm=False)[0]
                .outputs[0]
                .token_ids
            )
        )
        for change in changes
    ]
    assert min(distinct[1:]) > distinct[0]


def test_choices_share_the_prompts_blocks(llm: LLM) -> None:
    prompt = {"prompt_token_ids": llm.get_tokenizer().encode("A story of the sea. " * 20)}
    params = SamplingParams(n=3, temperature=1.0, seed=3, max_tokens=10, ignore_eos=True, logprobs=0)
    hits = llm.engine.cache.num_hits
    output = llm.generate(prompt, params, use_tqdm=False)[0]
    assert [choice.index for choice in output.outputs] == [0, 1, 2]
    assert len({choice.text for choice in output.outputs}) == 3
    for choice in output.outputs:
        assert choice.logprobs is not None
        total = sum(next(iter(row.values())).logprob for row in choice.logprobs)
        assert choice.cumulative_logprob == pytest.approx(total)
    num_shared = (len(prompt["prompt_token_ids"]) - 1) // 16 * 16
    assert llm.engine.cache.num_hits - hits == 2 * num_shared
    assert output.num_cached_tokens == 0  # nobody had asked it before


def test_a_salt_keeps_tenants_apart(llm: LLM) -> None:
    ids = list(range(100, 200))

    def run(salt: str) -> int:
        prompt = {"prompt_token_ids": ids, "cache_salt": salt}
        return llm.generate(prompt, GREEDY, use_tqdm=False)[0].num_cached_tokens

    assert run("one") == 0
    assert run("two") == 0
    assert run("one") == 96


def with_queue_of(max_num_waiting: int, checkpoint: Path, **settings: int) -> LLM:
    """Make a small model in whose queue so many sequences wait."""
    return LLM(
        checkpoint,
        skip_tokenizer_init=True,
        use_tqdm=False,
        kv_cache_memory_bytes=2**22,
        max_num_waiting=max_num_waiting,
        **settings,
    )


def test_more_prompts_than_the_queue_holds_are_answered(tiny_checkpoint: Callable[[str], Path]) -> None:
    llm = with_queue_of(4, tiny_checkpoint("llama"), max_num_seqs=2)
    prompts = [{"prompt_token_ids": [i + 1, 2]} for i in range(30)]
    params = SamplingParams(n=2, seed=1, max_tokens=2, ignore_eos=True, detokenize=False)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.prompt_token_ids[0] for output in outputs] == list(range(1, 31))
    assert all(len(choice.token_ids) == 2 for output in outputs for choice in output.outputs)


def test_a_request_that_the_queue_refuses_leaves_nothing_behind(tiny_checkpoint: Callable[[str], Path]) -> None:
    engine = with_queue_of(3, tiny_checkpoint("llama")).engine
    params = SamplingParams(n=2, max_tokens=2, ignore_eos=True, detokenize=False)
    engine.add("first", Prompt([1, 2, 3]), params)
    with pytest.raises(QueueFull, match="3 requests are waiting"):
        engine.add("second", Prompt([4, 5, 6]), params)
    assert engine.num_free_seats == 1
    tokens = []
    while engine.has_work:
        tokens += engine.step()
    assert {token.request_id for token in tokens} == {"first"}
    assert len(tokens) == 4
    assert not engine.runner._batches._rows
    assert not engine.runner.sampler._rows
    assert engine.pool.num_held == 0


def test_choices_that_wait_for_a_prompts_kv_are_not_refused_when_it_has_come(
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    engine = with_queue_of(1, tiny_checkpoint("llama")).engine
    params = SamplingParams(n=3, max_tokens=2, ignore_eos=True, detokenize=False)
    engine.receive("received", Prompt([1, 2, 3]), params)
    engine.admit("received", 0)
    choices = []
    while engine.has_work:
        choices += [token.choice for token in engine.step()]
    assert sorted(choices) == [0, 0, 1, 1, 2, 2]


def test_ctrl_c_gives_all_blocks_back(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, calls = llm.engine.runner.forward, iter(range(100))

    def interrupted(*args: Any) -> Any:
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(*args)

    monkeypatch.setattr(llm.engine.runner, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(QUESTIONS, GREEDY.replace(ignore_eos=True), use_tqdm=False)
    monkeypatch.undo()
    assert next(calls) == 4  # it came through right after that step
    assert not llm.engine.has_work
    assert llm.engine.pool.num_held == 0
    assert texts(llm, ["2+2="]) == ["4"]


def test_an_automatic_context_is_what_the_memory_holds_or_the_models_own() -> None:
    auto = {"max_model_len": AUTO_LEN, "max_num_seqs": 4, "device": "cpu", "use_tqdm": False}
    small = LLM(num_gpu_blocks_override=8, **auto)  # type: ignore[arg-type]
    assert small.engine.max_model_len == 128
    answer = small.generate("2+2=", SamplingParams(max_tokens=None, ignore_eos=True), use_tqdm=False)[0]
    assert len(answer.prompt_token_ids) + len(answer.outputs[0].token_ids) == 128
    with pytest.raises(OutOfMemory, match="max_model_len="):
        LLM(num_gpu_blocks_override=8, device="cpu", use_tqdm=False)
    assert LLM(**auto).engine.max_model_len == read_spec(demo_model_path()).max_model_len  # type: ignore[arg-type]


def test_a_tokenizers_stored_cut_and_padding_change_no_prompt(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_file(str(demo_model_path() / "tokenizer.json"))
    backend.enable_truncation(8)
    backend.enable_padding(length=12)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "a prompt that is longer than eight tokens, by far"
    assert Tokenizer(tmp_path).encode(text) == Tokenizer(demo_model_path()).encode(text)
    assert Tokenizer(tmp_path).encode("hi") == Tokenizer(demo_model_path()).encode("hi")


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-45])
def test_a_tiny_temperature_is_greedy(llm: LLM, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, top_k=50, max_tokens=8)
    assert texts(llm, ["17+25="], params) == ["42"]


def test_arrays_of_token_ids_are_taken(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("17+25=")
    prompts = [{"prompt_token_ids": np.array(ids)}, {"prompt_token_ids": torch.tensor(ids)}]
    assert texts(llm, prompts) == ["42"] * 2


def test_ten_thousand_requests_leave_no_growth(tiny_checkpoint: Callable[[str], Path]) -> None:
    llm = LLM(tiny_checkpoint("llama"), skip_tokenizer_init=True, use_tqdm=False, kv_cache_memory_bytes=2**22)
    prompts = [{"prompt_token_ids": [5 + i % 200, 6, 7]} for i in range(2_000)]
    params = SamplingParams(temperature=0, max_tokens=1, detokenize=False)
    process, before = psutil.Process(os.getpid()), 0
    for round_ in range(5):
        llm.generate(prompts, params, use_tqdm=False)
        gc.collect()
        if round_ == 1:
            before = process.memory_info().rss
    assert process.memory_info().rss - before < 4 * 2**20
    pool = llm.engine.pool
    assert pool.num_held == 0
    assert pool.num_free + pool.num_cached == pool.num_total
    assert not llm.engine.runner._batches._rows
    assert not llm.engine.runner.sampler._rows


# -- bad input ----------------------------------------------------------------------------------------------------


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
        ("logprobs", 21),
        ("prompt_logprobs", -1),
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
    params = SamplingParams(min_tokens=2, stop_token_ids=(7,), allowed_token_ids=(7, *eos))
    with pytest.raises(InvalidRequest, match="min_tokens"):
        llm.generate(["hi"], params, use_tqdm=False)


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


def test_beam_search_is_refused_by_name(llm: LLM) -> None:
    with pytest.raises(UnsupportedFeature, match="beam_search"):
        llm.beam_search(["hi"])


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
