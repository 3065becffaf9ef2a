"""A model's table may be longer than its tokenizer, never shorter: what only pads it is not drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tokenizer_kinds import tokenizer_of

from baton.errors import ModelLoadError
from baton.llm import LLM
from baton.protocol import SamplingParams

SETTINGS = {"device": "cpu", "kv_cache_memory_bytes": 2**22, "use_tqdm": False, "max_num_batched_tokens": 256}
KIND = "words, no decoder"


@pytest.fixture
def folder(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A Llama with 211 embeddings, and a tokenizer of some 50 tokens."""
    folder = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model"))
    tokenizer_of(KIND).save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("asked", [{"temperature": 0.0}, {"temperature": 5.0, "seed": 1, "n": 4, "logprobs": 2}])
def test_what_pads_the_table_is_never_drawn(asked: dict[str, float], folder: Path) -> None:
    params = SamplingParams(max_tokens=40, ignore_eos=True, **asked)  # type: ignore[arg-type]
    prompt = {"prompt_token_ids": [5, 6, 7]}
    size = tokenizer_of(KIND).get_vocab_size()
    bounded = LLM(str(folder), **SETTINGS).generate(prompt, params, use_tqdm=False)[0]
    assert max(token for output in bounded.outputs for token in output.token_ids) < size
    (folder / "tokenizer.json").unlink()
    free = LLM(str(folder), skip_tokenizer_init=True, **SETTINGS).generate(
        prompt, params.replace(detokenize=False), use_tqdm=False
    )[0]
    assert max(token for output in free.outputs for token in output.token_ids) >= size


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused_before_weights_are_read(folder: Path) -> None:
    tokenizer_of("byte-level").save(str(folder / "tokenizer.json"))
    (folder / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ModelLoadError, match=r"token ids up to \d+ .* vocab_size=211: the model has no embedding"):
        LLM(str(folder), **SETTINGS)


def test_a_tokenizer_with_gaps_counts_by_its_highest_id(folder: Path) -> None:
    (folder / "added_tokens.json").write_text(json.dumps({}))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["far"] = 211
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelLoadError, match=r"up to 211 \('far'\)"):
        LLM(str(folder), **SETTINGS)
