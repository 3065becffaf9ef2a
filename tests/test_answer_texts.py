"""Whole answers of models with tokenizers of many kinds, through the engine: their text, their ends, their tokens."""

from pathlib import Path

import pytest

from baton.llm import LLM, SamplingParams
from baton.text import Tokenizer

from .scripted_model import make_scripted_model
from .tokenizer_kinds import tokenizer_of

KINDS = [
    "byte-level, bytes alone",
    "byte fallback with prefix space",
    "byte fallback, bytes alone",
    "WordPiece with cleanup",
]


def _llm(folder: Path, kind: str, tokens: list[int]) -> LLM:
    model = make_scripted_model(folder / "model", tokenizer_of(kind), tokens, eos_token="</s>")
    return LLM(model, use_tqdm=False, device="cpu", kv_cache_memory_bytes=2**26, max_num_seqs=4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_beside_any_prompt_is_what_is_new_up_to_the_tokenizers_end(kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode("hello 日本語 😀 ไทย ok .").ids
    (end,) = tokenizer.encode("</s>", add_special_tokens=False).ids[-1:]
    llm = _llm(tmp_path, kind, [*ids, end, *ids[:30]])
    prompts = [ids[:cut] for cut in range(1, len(ids))]
    params = SamplingParams(temperature=0, max_tokens=None)
    for prompt, output in zip(
        prompts, llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False), strict=True
    ):
        (answer,) = output.outputs
        assert (answer.token_ids, answer.finish_reason) == ([*ids[len(prompt) :], end], "stop")
        before, whole = Tokenizer(tmp_path / "model").decode(prompt), tokenizer.decode(ids)
        before = before.rstrip("\N{REPLACEMENT CHARACTER}")  # of a character that the answer completes
        assert before + answer.text == whole


def test_each_token_is_named_by_what_it_adds(tmp_path: Path) -> None:
    kind = "byte-level, bytes alone"
    ids = tokenizer_of(kind).encode("Hi é").ids
    llm = _llm(tmp_path, kind, ids)
    params = SamplingParams(temperature=0, max_tokens=len(ids) - 1, logprobs=0)
    (answer,) = llm.generate([{"prompt_token_ids": ids[:1]}], params, use_tqdm=False)[0].outputs
    assert answer.logprobs is not None
    names = [row[token_id].decoded_token for row, token_id in zip(answer.logprobs, answer.token_ids, strict=True)]
    assert names == ["i", " ", r"bytes:\xc3", r"bytes:\xa9"]
