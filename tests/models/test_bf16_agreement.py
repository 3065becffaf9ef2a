"""In bf16 every family answers as transformers does in bf16 on the same device, up to rounding.

What rounding does is measured, not guessed: transformers in fp32 is the truth for the tokens that Baton chose, and
transformers in bf16 shows how far from it bf16 comes. Baton has to be about as near to the truth, and to choose the
true token where the truth is clearer than rounding. `pytest -rP` shows the figures.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import FAMILIES, load_tiny
from torch import Tensor

from baton.llm import LLM, SamplingParams

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Beyond the original context of the LongRoPE checkpoint, whose factors transformers would change on the way.
PROMPT_LENS = (33, 40, 64, 100, 150)
NUM_TOKENS = 48
NUM_TOP = 10
# On a CPU Baton's error is 0.7 to 0.93 of transformers', whose norms round once more.
SPARSE = re.compile("moe|mixtral|gpt-oss")
LARGEST_RATIO = 1.25
# By how many of transformers' errors the best token has to lead for its choice to be clear.
CLEAR_GAP = 4
PARAMS = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, detokenize=False, logprobs=NUM_TOP)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_bf16_answers_agree_with_transformers(family: str, tiny_checkpoint: Callable[[str], Path]) -> None:
    folder = tiny_checkpoint(family)
    llm = LLM(
        folder,
        skip_tokenizer_init=True,
        use_tqdm=False,
        dtype="bfloat16",
        kv_cache_memory_bytes=2**24,
        max_num_seqs=8,
        max_num_batched_tokens=64,  # so that prompts come in chunks, beside decodes
    )
    rng = random.Random(7)
    prompts = [[rng.randrange(211) for _ in range(length)] for length in PROMPT_LENS]
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], PARAMS, use_tqdm=False)
    exact, rounded = load_tiny(folder), load_tiny(folder, torch.bfloat16).to(DEVICE)

    ours, peers, truths, chosen, gaps = [], [], [], [], []
    for prompt, output in zip(prompts, outputs, strict=True):
        choice = output.outputs[0]
        assert choice.logprobs is not None
        # The chosen token comes first; as it is the likeliest, there are as many entries in each row.
        ids = torch.tensor([list(row) for row in choice.logprobs])
        ours.append(torch.tensor([[entry.logprob for entry in row.values()] for row in choice.logprobs]))
        peer, truth = (_logprobs(model, prompt, choice.token_ids) for model in (rounded, exact))
        peers.append(peer.gather(1, ids))
        truths.append(truth.gather(1, ids))
        best = truth.topk(2)
        gaps.append(best.values[:, 0] - best.values[:, 1])
        chosen.append(torch.stack((ids[:, 0], peer.argmax(-1), best.indices[:, 0])))

    truth = torch.cat(truths)
    # Where rounding changes the choice of an expert, a token is far off, in either one's answers: so half of them count.
    size = _usual if SPARSE.search(family) else _rms
    our_error, peer_error = size(torch.cat(ours) - truth), size(torch.cat(peers) - truth)
    tokens, peer_tokens, true_tokens = torch.cat(chosen, 1)
    is_clear = torch.cat(gaps) > CLEAR_GAP * peer_error
    agreement = _share(tokens == true_tokens, is_clear)
    print(
        f"{family} on {DEVICE}: log-probabilities off by {our_error:.4f} (transformers {peer_error:.4f}); tokens as "
        f"transformers' {_share(tokens == peer_tokens):.1%}, as fp32's {_share(tokens == true_tokens):.1%} "
        f"(transformers' {_share(peer_tokens == true_tokens):.1%}), of the {int(is_clear.sum())} clear ones {agreement:.1%}"
    )
    assert our_error < LARGEST_RATIO * peer_error
    assert agreement >= 0.95


@torch.inference_mode()
def _logprobs(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """What a model says of each token of an answer, [answer, vocab] fp32."""
    logits = model(torch.tensor([prompt + answer[:-1]], device=model.device)).logits[0, len(prompt) - 1 :]
    return logits.float().log_softmax(-1).cpu()


def _usual(error: Tensor) -> float:
    return float(error.square().mean(-1).sqrt().median())


def _rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


def _share(hits: Tensor, among: Tensor | None = None) -> float:
    return float((hits if among is None else hits[among]).float().mean())
