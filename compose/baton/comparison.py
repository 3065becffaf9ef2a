"""What answers of a stack are asked for and compared by: questions of the model's own tokens, and what counts as equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baton.recording import Answer, Question, Server

BOUNDS = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 2e-1}
"""How far two computations of one log-probability lie apart at most, by the type that workers compute in."""
LENGTHS = (513, 300, 200, 129, 64, 40, 17, 16, 15, 1)
"""Of prompts, in tokens: longer than a chunk of many settings, and around a block's edges."""
_PLAIN = {"ignore_eos": True, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
_GREEDY = {**_PLAIN, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0}
_SEEDED = {**_PLAIN, "temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "presence_penalty": 0.4}


async def make_questions(server: Server, num_prompts: int, answer_len: int) -> list[Question]:
    """Make two questions a prompt, one greedy and one with a seed; no prompt is the beginning of another."""
    text = " ".join(f"On day {i} the harbour counted {i * 37 % 101} boats and {i * 53 % 97} gulls." for i in range(200))
    body = {"model": server.model, "prompt": text, "add_special_tokens": False}
    ids = (await server.read("/tokenize", body))["tokens"]
    longest = server.max_model_len - answer_len
    questions = []
    for i in range(num_prompts):
        start, length = i * 31 % (len(ids) // 2), min(LENGTHS[i % len(LENGTHS)], longest)
        prompt = ids[start : start + length]
        questions.append(Question(prompt, {**_GREEDY, "max_tokens": answer_len}))
        questions.append(Question(prompt, {**_SEEDED, "max_tokens": answer_len, "seed": 1000 + i}))
    return questions


def dtype_of(workers: Sequence[Mapping[str, Any]]) -> str:
    """Return the type that workers compute in, as /debug/workers tells it; bfloat16, the widest, where it does not."""
    words = " ".join(str(worker.get("kv_form")) for worker in workers).replace(";", " ").split()
    return next((word for word in words if word in BOUNDS), "bfloat16")


@dataclass(frozen=True, slots=True)
class Compared:
    """What a comparison of one answer found."""

    num_tokens: int
    """Compared, up to the first difference."""
    is_cut: bool
    """Compared only up to two tokens that are as good as equally likely: the order of additions decides there."""
    logprob_gap: float
    difference: str | None


def compare(question: Question, answer: Answer, wanted: Answer, bound: float) -> Compared:
    """Compare an answer that came whole with the right one."""
    length = end = int(question.settings["max_tokens"])
    if question.is_greedy:
        end = next((at for at, lead in enumerate(wanted.leads) if lead <= 2 * bound), length)
    is_cut, largest = end < length, 0.0
    for at, (one, other) in enumerate(zip(answer.token_ids[:end], wanted.token_ids[:end], strict=False)):
        if one != other:
            return Compared(at, is_cut, largest, f"token {at} is {one}, not {other}")
        gap = abs(answer.logprobs[at] - wanted.logprobs[at])
        largest = max(largest, gap)
        if gap > bound:
            return Compared(at, is_cut, largest, f"log-probability of token {at} is off by {gap:.2g}")
    if len(answer.token_ids) != length:
        return Compared(end, is_cut, largest, f"{len(answer.token_ids)} tokens, not {length}")
    return Compared(end, is_cut, largest, None)
