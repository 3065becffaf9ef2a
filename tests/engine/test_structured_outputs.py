"""An answer is of the form that its request names, whatever else the request asks and however it is computed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher
from tests.engine.random_schemas import wrong_answers
from tests.router.tokenizer_folder import make_tokenizer_folder
from tests.tokenizer_kinds import tokenizer_of

from baton.engine.grammar_compiler import GrammarCompiler
from baton.errors import BatonError, InvalidRequest, UnsupportedFeature
from baton.grammars import grammar_of
from baton.llm import LLM, CompletionOutput, SamplingParams, StructuredOutputsParams, demo_model_path
from baton.prompt import Prompt
from baton.text import Tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["tall", "kind"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TAG = {
    "type": "structural_tag",
    "structures": [{"begin": "<call=", "schema": {"const": 7}, "end": ">"}],
    "triggers": ["<call"],
}
TOKENIZER = Tokenizer(demo_model_path())


def ask(llm: LLM, form: dict[str, Any], *, prompt: str = "Tell me", **params: Any) -> list[CompletionOutput]:
    settings = {"max_tokens": 80, "temperature": 1.0, "seed": 3} | params
    params_ = SamplingParams(structured_outputs=StructuredOutputsParams(**form), **settings)
    return llm.generate(prompt, params_, use_tqdm=False)[0].outputs


def is_person(text: str) -> bool:
    jsonschema.validate(json.loads(text), PERSON)
    return True


def between(text: str) -> str:
    """Return JSON without its strings."""
    return re.sub(r'"(\\.|[^"])*"', "", text)


FORMS: list[tuple[dict[str, Any], Callable[[str], Any]]] = [
    ({"json": PERSON}, is_person),
    (
        {"json": json.dumps(PERSON), "disable_any_whitespace": True},
        lambda text: not re.search(r"\s", between(text)) and is_person(text),
    ),
    (
        {"json": PERSON, "whitespace_pattern": "\t"},
        lambda text: not re.search("[ \n]", between(text)) and is_person(text),
    ),
    ({"regex": "[0-9]{3}-[a-f]{2,9}"}, re.compile("[0-9]{3}-[a-f]{2,9}").fullmatch),
    ({"choice": ["red", "reddish", "green"]}, {"red", "reddish", "green"}.__contains__),
    ({"grammar": 'root ::= "a" digit digit?\ndigit ::= [0-9]'}, re.compile("a[0-9]{1,2}").fullmatch),
    ({"grammar": 'start: "a" (DIGIT ~ 1..2)\nDIGIT: /[0-9]/'}, re.compile("a[0-9]{1,2}").fullmatch),
]


@pytest.mark.parametrize(("form", "fits"), FORMS, ids=[str(form)[:40] for form, _ in FORMS])
def test_every_choice_is_of_the_form_and_ends_by_itself(
    engine_llm: LLM, form: dict[str, Any], fits: Callable[[str], Any]
) -> None:
    for choice in ask(engine_llm, form, n=3, temperature=1.5):
        assert fits(choice.text), choice.text
        assert choice.finish_reason == "stop"
        assert choice.token_ids[-1] in engine_llm.engine.model.spec.eos_token_ids


def test_free_text_beside_an_answer_that_is_held_is_what_it_is_alone(engine_llm: LLM) -> None:
    free = SamplingParams(max_tokens=24, temperature=1.0, seed=5)
    held = free.replace(structured_outputs=StructuredOutputsParams(regex="[a-z ]{30,60}"))
    alone = engine_llm.generate(["Tell me"] * 2, [free, held], use_tqdm=False)
    crowd = engine_llm.generate(["Tell me"] * 6, [free, held, free, held, free, held], use_tqdm=False)
    assert [out.outputs[0].token_ids for out in crowd] == [out.outputs[0].token_ids for out in alone] * 3


def test_a_json_object_is_one(llm: LLM) -> None:
    (choice,) = ask(llm, {"json_object": True}, max_tokens=40)
    assert choice.text.startswith("{")


def test_text_is_free_up_to_a_trigger(llm: LLM) -> None:
    bias = dict.fromkeys(llm.engine.model.spec.eos_token_ids, -100.0)
    (choice,) = ask(llm, {"structural_tag": TAG}, prompt="x", max_tokens=20, logit_bias=bias)
    assert choice.finish_reason == "length"
    for call in choice.text.split("<call")[1:]:
        assert "=7>".startswith(call[:3])


def test_logprobs_are_of_the_model_s_own_distribution(llm: LLM) -> None:
    prompt = "2+2="
    (free,) = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=1, logprobs=3), use_tqdm=False)[0].outputs
    (held,) = ask(llm, {"choice": ["zebra"]}, prompt=prompt, temperature=0, logprobs=3)
    assert free.logprobs is not None
    assert held.logprobs is not None
    likeliest = free.token_ids[0]
    assert held.logprobs[0][likeliest].logprob == pytest.approx(free.logprobs[0][likeliest].logprob)
    assert held.token_ids[0] != likeliest
    assert (held.logprobs[0][held.token_ids[0]].rank or 1) > 1


def test_an_answer_that_is_complete_ends_where_the_end_of_text_is_ignored(engine_llm: LLM) -> None:
    (choice,) = ask(engine_llm, {"choice": ["red"]}, ignore_eos=True)
    assert (choice.text, choice.finish_reason) == ("red", "stop")


def test_no_end_comes_before_min_tokens_where_the_form_can_go_on(engine_llm: LLM) -> None:
    (choice,) = ask(engine_llm, {"regex": "[a-z]+"}, min_tokens=12, max_tokens=16)
    assert len(choice.token_ids) >= 12
    assert choice.text.isalpha()


def test_a_stop_string_ends_an_answer_within_its_form(llm: LLM) -> None:
    (choice,) = ask(llm, {"regex": "[a-c]{5}#[a-c]{5}"}, stop=["#"])
    assert re.fullmatch("[a-c]{5}", choice.text)
    assert choice.stop_reason == "#"


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"min_tokens": 40}, "min_tokens"),
        ({"allowed_token_ids": [5, 6]}, "allowed_token_ids"),
        ({"bad_words": ["red", "r", "re"]}, "bad_words"),
    ],
)
def test_limits_that_leave_none_of_the_form_s_tokens_end_in_an_error(
    engine_llm: LLM, params: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"{field} is not valid: after .* structured_outputs allows") as caught:
        ask(engine_llm, {"choice": ["red"]}, **params)
    assert caught.value.field == field
    assert not engine_llm.engine.has_work
    assert engine_llm.engine.pool.num_available == engine_llm.engine.pool.num_total


def test_an_answer_that_was_begun_elsewhere_goes_on_as_if_it_had_not(llm: LLM) -> None:
    """As after a replay, or a first token from a prefill worker."""
    prompt = Prompt(TOKENIZER.encode("Tell me"))
    form = StructuredOutputsParams(json=PERSON)
    params = SamplingParams(temperature=1.0, max_tokens=80, structured_outputs=form)
    whole = run(llm, prompt, params, [])
    for at in (1, len(whole) // 2, len(whole) - 1):
        assert run(llm, prompt, params, whole[:at]) == whole[at:]


def test_who_waits_for_a_grammar_holds_up_nobody(llm: LLM) -> None:
    engine, held = llm.engine, StructuredOutputsParams(regex="waits{3}")
    assert engine.grammars is not None
    with engine.grammars._slots, engine.grammars._slots:  # no grammar can be made
        engine.add("held", Prompt([5, 6]), SamplingParams(max_tokens=9, structured_outputs=held))
        engine.add("free", Prompt([5, 7]), SamplingParams(max_tokens=3, ignore_eos=True))
        free = [output.request_id for _ in range(3) for output in engine.step()]
        assert free == ["free"] * 3
        assert engine.step() == []
        assert engine.has_work
    while engine.has_work:
        free += [output.request_id for output in engine.step()]
        engine.wait_for_grammar(10)
    assert set(free[3:]) == {"held"}


@pytest.mark.parametrize("kind", ["unigram, prefix space always", "ends of words"])
def test_a_tokenizer_that_the_library_cannot_read_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    tokenizer_of(kind).save(str(tmp_path / "tokenizer.json"))
    compiler = GrammarCompiler(lambda: Tokenizer(tmp_path), vocab_size=400, eos_token_ids=(1,))
    compiler.prepare()
    error = compiler.compile(
        SamplingParams(structured_outputs=StructuredOutputsParams(choice=["a"])), lambda: None
    ).exception()
    assert isinstance(error, UnsupportedFeature)
    assert error.field == "structured_outputs"
    assert "its tokenizer cannot be read" in str(error)


@pytest.mark.parametrize(
    "form",
    [{"regex": "[A-Z][a-z ]{4,40}"}, {"json": {"type": "string", "pattern": "^[a-z0-9_ ]{9,60}$"}}, {"json": PERSON}],
    ids=str,
)
def test_masks_are_those_of_a_tokenizer_that_is_not_sliced(llm: LLM, form: dict[str, Any]) -> None:
    assert llm.engine.grammars is not None
    sliced, whole = llm.engine.grammars.load(), llm.engine.grammars.load().with_slices([])
    grammar = grammar_of(StructuredOutputsParams(**form))
    matchers = [LLMatcher(tokenizer, grammar) for tokenizer in (sliced, whole)]
    (choice,) = ask(llm, form)
    for token_id in choice.token_ids:
        masks = [matcher.compute_bitmask() for matcher in matchers]
        assert masks[0] == masks[1]
        assert [matcher.consume_token(token_id) for matcher in matchers] == [True, True]


def test_a_tag_may_be_a_special_token(tmp_path: Path) -> None:
    folder = make_tokenizer_folder(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"extra_special_tokens": ["[CALL]", "[END]"]}))
    text = Tokenizer(folder)
    call, end, n = (text.encode(each, add_special_tokens=False) for each in ("[CALL]", "[END]", "n7"))
    assert len(call) == len(end) == 1
    tag = {"structures": [{"begin": "[CALL]n", "schema": {"const": 7}, "end": "[END]"}], "triggers": ["[CALL]"]}
    compiler = GrammarCompiler(lambda: text, vocab_size=text.vocab_size, eos_token_ids=(1,))
    params = SamplingParams(structured_outputs=StructuredOutputsParams(structural_tag=tag))
    matcher = compiler.compile(params, lambda: None).result().matcher
    assert matcher is not None
    right = [*text.encode("Hi ", add_special_tokens=False), *call, *n, *end, *n, 1]
    assert matcher.validate_tokens(right) == len(right)
    wrong = [*call, *end]
    assert matcher.validate_tokens(wrong) == 1


def run(llm: LLM, prompt: Prompt, params: SamplingParams, emitted: list[int]) -> list[int]:
    llm.engine.add("one", prompt, params, choices={0: emitted}, seed=11)
    tokens: list[int] = []
    while llm.engine.has_work:
        tokens += [output.token_id for output in llm.engine.step()]
        llm.engine.wait_for_grammar(10)
    return tokens


def test_tokens_that_are_not_of_the_form_are_refused_not_gone_on_from(llm: LLM) -> None:
    form = StructuredOutputsParams(choice=["red"])
    params = SamplingParams(max_tokens=9, structured_outputs=form)
    assert run(llm, Prompt([5, 6]), params, [7, 7]) == []
    ((request_id, error),) = llm.engine.take_refused()
    assert request_id == "one"
    assert isinstance(error, BatonError)


def test_preempted_answers_are_those_of_a_pool_with_room_for_all(llm: LLM) -> None:
    params = [
        SamplingParams(max_tokens=60, temperature=1.0, seed=i, structured_outputs=StructuredOutputsParams(json=PERSON))
        for i in range(4)
    ]
    prompts = [f"Tell me of {i} things and more of them" for i in range(4)]
    small = LLM(use_tqdm=False, max_num_seqs=4, max_num_batched_tokens=64, num_gpu_blocks_override=8, max_model_len=112)
    wanted = [out.outputs[0].token_ids for out in llm.generate(prompts, params, use_tqdm=False)]
    assert [out.outputs[0].token_ids for out in small.generate(prompts, params, use_tqdm=False)] == wanted
    assert small.engine.scheduler.num_preemptions > 0


def test_answers_of_random_schemas_follow_them(llm: LLM) -> None:
    assert list(wrong_answers(llm, range(7000, 7006))) == []
