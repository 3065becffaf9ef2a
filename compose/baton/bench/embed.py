"""`baton bench embed`: vectors of texts of mixed lengths, beside `sentence-transformers` in the same process, turn by turn.

Two loads of the same texts: all in one call, which the peer sorts by length and pads batch by batch; and each text a
request of its own, where the peer encodes one after another and Baton those that wait together, as a server does.
"""

from __future__ import annotations

import importlib
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from baton.bench.report import Report
from baton.errors import ConfigError
from baton.llm import LLM

_WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "many",
    "people",
    "watch",
    "from",
    "their",
    "houses",
    "near",
    "the",
    "river",
]
Embed = Callable[[Sequence[str]], np.ndarray]


def mixed_texts(num: int, most_words: int) -> list[str]:
    """Make texts from 3 words up, as many of each length as of twice that length."""
    rng = random.Random(0)
    lengths = [int(3 * (most_words / 3) ** rng.random()) for _ in range(num)]
    return [" ".join(rng.choices(_WORDS, k=length)) for length in lengths]


def run(llm: LLM, *, compare: bool, num: int, repeats: int, json_file: Path | None) -> None:
    """Measure; with `compare` beside the peer, with the largest difference of a number of a vector."""
    texts = mixed_texts(num, llm.engine.max_model_len // 2)

    def ours(some: Sequence[str]) -> np.ndarray:
        outputs = llm.embed(list(some), use_tqdm=False, truncate_prompt_tokens=-1)
        return np.stack([output.outputs.data.numpy() for output in outputs])

    num_tokens = sum(len(each.prompt_token_ids) for each in llm.embed(texts, use_tqdm=False, truncate_prompt_tokens=-1))
    peer = _peer(str(llm.config.model)) if compare else None
    report = Report("baton bench embed")
    loads: dict[str, Embed | None] = {
        "all in one call": peer,
        "each a request": None if peer is None else lambda some: np.concatenate([peer([text]) for text in some]),
    }
    for name, theirs in loads.items():
        difference = None if theirs is None else float(np.abs(ours(texts) - theirs(texts)).max())
        our_times, peer_times = [], []
        for _ in range(repeats):
            our_times.append(_time_of(ours, texts))
            if theirs is not None:
                peer_times.append(_time_of(theirs, texts))
        rate = num_tokens / statistics.median(our_times)
        peer_rate = num_tokens / statistics.median(peer_times) if peer_times else None
        report.add(
            load=name,
            texts=num,
            tokens=num_tokens,
            baton_tok_s=rate,
            sentence_transformers_tok_s=peer_rate,
            ratio=None if peer_rate is None else rate / peer_rate,
            most_difference=None if difference is None else f"{difference:.1e}",
        )
        if peer is None:
            break
    report.show(json_file)


def _time_of(embed: Embed, texts: Sequence[str]) -> float:
    began = time.perf_counter()
    embed(texts)
    return time.perf_counter() - began


def _peer(model: str) -> Embed:
    try:
        library: Any = importlib.import_module("sentence_transformers")  # nobody's dependency
    except ImportError as error:
        raise ConfigError(
            f"--compare sentence-transformers needs the package, and {error.name} is not installed: "
            "pip install sentence-transformers."
        ) from None
    made = library.SentenceTransformer(model, device="cpu")
    return lambda some: np.asarray(made.encode(list(some), show_progress_bar=False))
