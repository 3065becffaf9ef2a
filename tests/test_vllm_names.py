"""Each name that vLLM's users bring behaves as the table says; it is really given to `LLM` and `SamplingParams`."""

from __future__ import annotations

import inspect
import re
from itertools import chain
from typing import Any

import pytest
import torch

import batonllm
from baton import vllm_table
from baton.config import EngineConfig
from baton.errors import ConfigError, InvalidRequest, UnsupportedFeature
from baton.llm import LLM
from baton.protocol import SamplingParams
from baton.vllm_names import ARGUMENTS, FLAGS, IMPORTS, METHODS, SAMPLING, Name, plain, why_no_route

ASKS = "asks for something"
"""No value that changes nothing."""


def of_kind(table: dict[str, Name], kind: str) -> list[Name]:
    return [name for name in table.values() if name.kind == kind]


def test_no_name_stands_twice() -> None:
    for groups in (vllm_table.SERVING, vllm_table.SAMPLING, vllm_table.METHODS, vllm_table.BENCH):
        names = [re.split(r"\W", word)[0] for word in chain(*(words.split() for _, words in groups))]
        assert sorted(names) == sorted(set(names))


def test_equal_values_are_written_alike_from_python_and_from_a_command_line() -> None:
    for python, typed in ((1, "1"), (0.5, "0.50"), (True, "True"), ({"image": 0}, '{"image": 0}'), (["a"], '["a"]')):
        assert plain(python) == plain(typed)
    assert plain(None) == plain(False) == plain({}) == plain([]) == ""


@pytest.mark.parametrize("name", of_kind(ARGUMENTS, "refused"), ids=lambda name: name.name)
def test_an_argument_of_llm_that_is_not_served_is_refused_with_the_reason(name: Name) -> None:
    with pytest.raises(UnsupportedFeature, match=re.escape(f"{name.name}={ASKS!r} is not served. {name.says}")):
        LLM(**{name.name: ASKS})


def test_arguments_of_llm_that_change_nothing_are_taken_together() -> None:
    given: dict[str, Any] = {name.name: "anything" for name in of_kind(ARGUMENTS, "neutral")}
    for name in of_kind(ARGUMENTS, "refused"):
        given[name.name] = max(name.values, key=len)
    given |= {"tensor_parallel_size": 1, "task": "auto", "enable_lora": False, "speculative_config": None}
    llm = LLM(device="cpu", kv_cache_memory_bytes=2**26, use_tqdm_on_load=False, dtype="float", **given)
    assert llm.config.dtype == "float32"
    assert llm.generate("2+2=", SamplingParams(max_tokens=2), use_tqdm=False)[0].finished


def test_arguments_of_llm_that_are_taken_are_settings_of_the_engine_or_its_own() -> None:
    own = {*EngineConfig.__dataclass_fields__, *inspect.signature(LLM).parameters}
    assert {name.ours for name in of_kind(ARGUMENTS, "taken")} <= own
    assert {name for name in EngineConfig.__dataclass_fields__ if name in FLAGS} <= {
        name.name for name in of_kind(ARGUMENTS, "taken")
    }


def test_none_is_the_default_and_a_dtype_may_be_torchs() -> None:
    none: dict[str, Any] = dict.fromkeys(
        ("enable_prefix_caching", "block_size", "max_num_seqs", "max_num_batched_tokens")
    )
    llm = LLM(device="cpu", num_gpu_blocks_override=300, use_tqdm=False, dtype=torch.bfloat16, **none)
    assert {name: getattr(llm.config, name) for name in none} == {name: getattr(EngineConfig(), name) for name in none}
    assert llm.config.dtype == "bfloat16"


def test_what_is_neither_on_nor_off_is_refused() -> None:
    with pytest.raises(ConfigError, match="enforce_eager='no' is not valid: it must be True or False"):
        LLM(enforce_eager="no")


def test_sampling_parameters_are_given_by_name() -> None:
    by_place: list[Any] = [0.5]
    with pytest.raises(InvalidRequest, match=r"SamplingParams=\(0\.5,\) is not valid: values are given by name"):
        SamplingParams(*by_place)


def test_a_misspelt_argument_of_llm_is_told_the_right_one() -> None:
    with pytest.raises(InvalidRequest, match=r"max_modle_len=8 is not valid: .* Did you mean max_model_len\?"):
        LLM(max_modle_len=8)


@pytest.mark.parametrize("name", SAMPLING.values(), ids=lambda name: name.name)
def test_a_name_of_sampling_params_behaves_as_the_table_says(name: Name) -> None:
    fields = SamplingParams.__struct_fields__
    assert (name.kind == "taken") == (name.ours in fields)
    if name.kind == "neutral":
        assert SamplingParams(**{name.name: ASKS}) == SamplingParams()
    if name.kind == "refused":
        with pytest.raises(UnsupportedFeature, match=re.escape(f"{name.name}={ASKS!r} is not served. {name.says}")):
            SamplingParams(**{name.name: ASKS})
        for value in (None, False, *name.values):
            assert SamplingParams(**{name.name: value}) == SamplingParams()


def test_every_field_of_sampling_params_that_is_vllms_stands_in_the_table() -> None:
    internal = {"bad_words_ids", "thinking"}
    assert set(SamplingParams.__struct_fields__) - internal == {name.ours for name in of_kind(SAMPLING, "taken")}


def test_a_misspelt_sampling_parameter_is_told_the_right_one() -> None:
    with pytest.raises(InvalidRequest, match=r"tempreature=1 is not valid: .* Did you mean temperature\?"):
        SamplingParams(**{"tempreature": 1})


@pytest.mark.parametrize("name", METHODS.values(), ids=lambda name: name.name)
def test_a_method_of_llm_that_is_not_here_says_why(name: Name) -> None:
    llm = LLM.__new__(LLM)
    assert not hasattr(llm, name.name)
    with pytest.raises(AttributeError, match=re.escape(f"LLM has no {name.name}. {name.says}")):
        getattr(llm, name.name)


@pytest.mark.parametrize("name", IMPORTS.values(), ids=lambda name: name.name)
def test_a_name_of_the_package_that_is_not_here_says_why(name: Name) -> None:
    with pytest.raises(ImportError, match=re.escape(f"batonllm has no {name.name}. {name.says}")):
        exec(f"from batonllm import {name.name}")  # noqa: S102


def test_prompts_may_be_written_with_vllms_classes() -> None:
    assert batonllm.TokensPrompt(prompt_token_ids=[1, 2]) == {"prompt_token_ids": [1, 2]}
    assert batonllm.TextPrompt(prompt="a", cache_salt="b") == {"prompt": "a", "cache_salt": "b"}
    with pytest.raises(AttributeError, match="batonllm has no Nothing"):
        batonllm.Nothing  # noqa: B018
    for name in batonllm.__all__:
        assert getattr(batonllm, name) is not None


def test_a_path_of_vllms_has_a_way_out_and_so_has_what_lies_below_it() -> None:
    assert why_no_route("/v2/embed") == "Send /v1/embeddings."
    assert why_no_route("/v1/assistants/asst_1") == "Send /v1/chat/completions."
    assert why_no_route("/v1/chat/completions/batch").startswith("Send the requests one by one")
    assert why_no_route("/") == why_no_route("/v1/nothing") == why_no_route("/v1") == ""
