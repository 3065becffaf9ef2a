"""Logits processors of an installed package: exact alone, in a crowd, preempted and replayed; what fails is one request."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.plugin import install
from tests.worker.table_top import TableTop, turn_until

from baton.errors import BatonError, ConfigError, InvalidRequest
from baton.llm import LLM, SamplingParams

PROMPTS = [[3 + (7 * i + k) % 90 for i in range(30)] for k in range(6)]


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path / "site")))


@pytest.fixture
def make(tiny_checkpoint: Callable[[str], Path]) -> Callable[..., LLM]:
    def made(num_blocks: int = 64, **given: Any) -> LLM:
        return LLM(
            *(tiny_checkpoint("llama"),),
            use_tqdm=False,
            skip_tokenizer_init=True,
            num_gpu_blocks_override=num_blocks,
            max_num_batched_tokens=64,
            max_num_seqs=8,
            **given,
        )

    return made


def params_of(name: str | None = "shift", **given: Any) -> SamplingParams:
    settings: dict[str, Any] = {"max_tokens": 20, "ignore_eos": True, "detokenize": False, "temperature": 0.0}
    if name is not None:
        settings["logits_processors"] = [{"name": name, "args": given.pop("args", {"by": 1})}]
    return SamplingParams(**{**settings, **given})


def ask(llm: LLM, *params: SamplingParams) -> list[list[int]]:
    prompts: Any = [{"prompt_token_ids": prompt} for prompt in PROMPTS[: len(params)]]
    return [output.outputs[0].token_ids for output in llm.generate(prompts, list(params), use_tqdm=False)]


def test_answers_are_the_same_alone_in_a_crowd_and_with_too_few_blocks(make: Callable[..., LLM]) -> None:
    wanted = [
        params_of(),
        params_of(None),
        params_of(args={}, extra_args={"by": 5}),
        params_of(temperature=1.0, seed=3),
        params_of(None, temperature=1.0, seed=3),
        params_of(logprobs=1),
    ]
    llm = make()
    alone = [llm.generate({"prompt_token_ids": PROMPTS[i]}, each, use_tqdm=False)[0] for i, each in enumerate(wanted)]  # type: ignore[arg-type]
    answers = [each.outputs[0].token_ids for each in alone]
    plain = ask(llm, *(params_of(None) for _ in wanted))
    assert answers[0] != plain[0]
    assert answers[1] == plain[1]
    assert answers[2] != answers[0]
    assert all(a != b for a, b in zip(answers[0], answers[0][1:], strict=False))
    assert ask(llm, *wanted) == answers
    few = make(17)
    assert ask(few, *wanted) == answers
    assert few.engine.scheduler.num_preemptions


def test_it_is_exact_over_prefill_and_decode_and_after_a_replay(tiny_checkpoint: Callable[[str], Path]) -> None:
    tables = prefill, decode = [TableTop(tiny_checkpoint("llama"), 64) for _ in range(2)]
    params = params_of(temperature=1.0, seed=5)
    try:
        whole = decode.start(PROMPTS[0], params)
        turn_until([decode], lambda: len(decode.ids(whole)) == 20, "the answer is whole")
        expected = decode.ids(whole)
        again = prefill.start(PROMPTS[0], params, emitted=expected[:7], epoch=1)
        turn_until([prefill], lambda: len(prefill.ids(again)) == 13, "the rest is there")
        assert prefill.ids(again) == expected[7:]
        request_id = "ab" * 16
        ticket = prefill.ticket(request_id, PROMPTS[0])
        decode.start(PROMPTS[0], params, request_id=request_id, ticket=ticket)
        prefill.start(PROMPTS[0], params, leg="prefill", request_id=request_id, ticket=ticket)
        turn_until(tables, lambda: len(decode.ids(request_id)) == 19, "the answer is whole")
        assert prefill.ids(request_id) + decode.ids(request_id) == expected
    finally:
        for table in tables:
            table.close()


def test_one_that_fails_ends_its_request_alone(tiny_checkpoint: Callable[[str], Path]) -> None:
    table = TableTop(tiny_checkpoint("llama"), 64)
    try:
        broken = table.start(PROMPTS[0], params_of("breaks", args={"after": 3}))
        other = table.start(PROMPTS[1], params_of())
        numbers = table.start(PROMPTS[0], params_of("numbers"))
        unknown = table.start(PROMPTS[2], params_of("nobody"))
        missing = table.start(PROMPTS[2], params_of("missing"))
        wrong = table.start(PROMPTS[2], params_of(args={"by": "x"}))
        turn_until([table], lambda: len(table.ids(other)) == 20 and not table.runs, "all have ended")
        assert len(table.ids(broken)) == 3
        assert table.errors(broken) == table.errors(numbers) == ["internal"]
        assert [table.errors(each) for each in (unknown, missing, wrong)] == [["invalid_request"]] * 3
    finally:
        table.close()


class ForAll:
    """In a script: looks at all requests."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        assert vllm_config.model

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        target = (params.extra_args or {}).get("target_token")
        if target is None:
            return None

        def process(_output_ids: list[int], logits: Any) -> Any:
            kept = logits[target].clone()
            logits[:] = -float("inf")
            logits[target] = kept
            return logits

        return process


@pytest.mark.parametrize("given", [ForAll, "shifty:ForAll"])
def test_llm_takes_classes_that_look_at_all_requests(
    make: Callable[..., LLM], given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("shifty"), "ForAll", ForAll, raising=False)
    llm = make(logits_processors=[given])
    forced, free = ask(llm, params_of(None, extra_args={"target_token": 67}), params_of(None))
    assert set(forced) == {67}
    assert len(set(free)) > 1


def test_what_is_no_processor_is_refused_by_name(make: Callable[..., LLM]) -> None:
    for given in ("nowhere:Nothing", "shifty:Nothing", "os:getcwd", object):
        with pytest.raises(ConfigError, match="logits_processors"):
            make(logits_processors=[given])
    for bad in ("shift", [print], [{"nom": "shift"}], [{"name": "shift", "by": 1}], [1]):
        with pytest.raises(InvalidRequest, match="logits_processors"):
            SamplingParams(logits_processors=bad)  # type: ignore[arg-type]
    llm = make()
    with pytest.raises(InvalidRequest, match=r"nobody.*breaks, missing, numbers, shift"):
        ask(llm, params_of("nobody"))
    with pytest.raises(BatonError, match="it broke"):
        ask(llm, params_of("breaks", args={"after": 0}))
