"""`LLM` with models that pool, beside transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.pooling_models import last_vectors, save_classifier, save_decoder
from tests.router.tokenizer_folder import make_tokenizer_folder

from baton.errors import ContextTooLong, InvalidRequest, UnsupportedFeature
from baton.llm import LLM
from baton.pooling import PoolingParams
from baton.text import Tokenizer

TEXTS = ["one", "a longer text, of some words", "one more"]


def folder_of(folder: Path) -> tuple[Path, int]:
    make_tokenizer_folder(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    return folder, max(ids) + 1


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder, vocab_size = folder_of(tmp_path_factory.mktemp("vectors"))
    return LLM(save_decoder(folder, vocab_size), use_tqdm=False, kv_cache_memory_bytes=2**22)


def test_embed_gives_the_vectors_of_transformers_and_score_their_cosines(vectors: LLM) -> None:
    prompts = Tokenizer(vectors.config.model or "").encode_all(TEXTS)
    expected = last_vectors(Path(vectors.config.model or ""), prompts).numpy()
    found = vectors.embed(TEXTS, use_tqdm=False)
    np.testing.assert_allclose([each.outputs.embedding for each in found], expected, atol=1e-5)
    assert [each.prompt_token_ids for each in found] == prompts
    by_ids = vectors.encode(prompts, pooling_task="embed", use_tqdm=False)
    np.testing.assert_allclose(torch.stack([each.outputs.data for each in by_ids]).numpy(), expected, atol=1e-5)
    scores = [each.outputs.score for each in vectors.score(TEXTS[0], TEXTS[1:], use_tqdm=False)]
    np.testing.assert_allclose(scores, expected[1:] @ expected[0], atol=1e-5)


def test_what_is_wrong_is_refused_before_anything_runs(vectors: LLM) -> None:
    with pytest.raises(UnsupportedFeature, match=r"this model generates no text\. Use embed"):
        vectors.generate(["x"])
    with pytest.raises(InvalidRequest, match="task='classify' is not valid: this model serves embed"):
        vectors.classify(["x"])
    with pytest.raises(ContextTooLong, match="maximum context length is 256 tokens"):
        vectors.embed(["x", "y" * 600])
    with pytest.raises(InvalidRequest, match="dimensions=99 is not valid: it must be 1 to 64"):
        vectors.embed(["x"], pooling_params=PoolingParams(dimensions=99))
    (cut,) = vectors.embed(["y" * 600], truncate_prompt_tokens=-1, use_tqdm=False)
    assert len(cut.prompt_token_ids) == 256


def test_classify_gives_the_classes_of_transformers_and_score_reads_pairs(tmp_path: Path) -> None:
    folder, vocab_size = folder_of(tmp_path)
    reference = save_classifier(folder, 1, vocab_size=vocab_size)
    llm = LLM(folder, use_tqdm=False, kv_cache_memory_bytes=2**22)
    (prompt,) = Tokenizer(folder).encode_all(["onetwo"])
    pair = [*Tokenizer(folder).encode("one"), *Tokenizer(folder).encode("two")]
    with torch.no_grad():
        expected = [reference(torch.tensor([each])).logits.sigmoid().item() for each in (prompt, pair)]
    assert llm.classify("onetwo", use_tqdm=False)[0].outputs.probs == pytest.approx(expected[:1], abs=1e-5)
    assert llm.score("one", "two", use_tqdm=False)[0].outputs.score == pytest.approx(expected[1], abs=1e-5)
    with pytest.raises(UnsupportedFeature, match="Use classify or score"):
        llm.generate(["x"])
