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
from baton.errors import InvalidRequest, OutOfMemory, QueueFull
from baton.llm import LLM, SamplingParams, demo_model_path
from baton.models.config import read_spec
from baton.prompt import Prompt
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


def test_named_tokens_are_scored_as_among_all_others(llm: LLM) -> None:
    likeliest = llm.generate(["2+2="], GREEDY.replace(max_tokens=3, logprobs=9), use_tqdm=False)[0].outputs[0]
    assert likeliest.logprobs is not None
    wanted = sorted(likeliest.logprobs[0])[:4]
    mine = GREEDY.replace(max_tokens=3, logprob_token_ids=wanted)
    beside = [GREEDY, mine, GREEDY.replace(logprobs=2), mine.replace(logprob_token_ids=wanted[:1])]
    named = llm.generate(["2+2="] * 4, beside, use_tqdm=False)[1].outputs[0]
    assert named.logprobs is not None
    assert named.token_ids == likeliest.token_ids
    assert set(named.logprobs[0]) == {named.token_ids[0], *wanted}
    for token_id in wanted:
        assert named.logprobs[0][token_id].logprob == pytest.approx(likeliest.logprobs[0][token_id].logprob, abs=1e-5)


def test_an_answer_that_repeats_itself_ends_where_it_does(llm: LLM) -> None:
    said = GREEDY.replace(max_tokens=40, ignore_eos=True)
    everything = llm.generate(["one two"], said.replace(logit_bias={40: 50.0}), use_tqdm=False)[0].outputs[0]
    assert everything.token_ids == [40] * 40
    ends = said.replace(logit_bias={40: 50.0}, repetition_detection={"max_pattern_size": 4, "min_count": 5})
    output = llm.generate(["one two"], ends, use_tqdm=False)[0].outputs[0]
    assert (output.finish_reason, output.stop_reason) == ("repetition", "repetition_detected")
    assert output.token_ids == [40] * 5
    later = llm.generate(["one two"], ends.replace(min_tokens=9), use_tqdm=False)[0].outputs[0]
    assert later.token_ids == [40] * 9


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
