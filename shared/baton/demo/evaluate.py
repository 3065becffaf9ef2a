"""Ask the demo model held-out questions: `python -m baton.demo.evaluate`; from a checkout `--seed N` asks fresh ones.

Prints a table and ends with status 1 when a target is missed. The questions go through Baton's own engine, so this
is also a test of it: the model answers rightly when the KV it reads is right. With `--engine transformers` the same
questions go through `transformers`, for comparison.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from baton.checkout import import_from_checkout
from baton.config import demo_model_path
from baton.demo.questions import Question, format_table, load_questions, mark, score
from baton.errors import ConfigError
from baton.text import Tokenizer

BATCH_TOKENS = 16_384
_FRESH = 100

Generate = Callable[[list[list[int]], list[int]], list[list[int]]]
"""Greedy answers to prompts; the second list is the most tokens that each may have."""


def baton_engine(model: Path, quantization: str | None = None) -> Generate:
    """Generate with `baton.llm.LLM`, on whatever device it picks."""
    from baton.llm import LLM, SamplingParams

    llm = LLM(model=str(model), dtype="float32", quantization=quantization)

    def generate(prompts: list[list[int]], max_lens: list[int]) -> list[list[int]]:
        params = [SamplingParams(temperature=0, max_tokens=max_len) for max_len in max_lens]
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return generate


def transformers_engine(model: Path) -> Generate:
    """Generate with `transformers` on the CPU in float32, prompts of like length together."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    pad = network.config.pad_token_id

    def generate(prompts: list[list[int]], max_lens: list[int]) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        while order:
            size = max(1, min(64, BATCH_TOKENS // len(prompts[order[-1]])))
            batch, order = order[-size:], order[:-size]
            longest = max(len(prompts[i]) for i in batch)
            ids = torch.tensor([[pad] * (longest - len(prompts[i])) + prompts[i] for i in batch])
            mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in batch])
            with torch.inference_mode():
                out = network.generate(
                    input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=max(max_lens[i] for i in batch)
                )
            for i, row in zip(batch, out[:, longest:].tolist(), strict=True):
                answers[i] = row[: max_lens[i]]
        return answers

    return generate


def ask(questions: list[Question], tokenizer: Tokenizer, generate: Generate) -> list[str]:
    """Return the model's answer to each question.

    An answer may run eight tokens past the expected length, so one that does not end by itself shows as
    a wrong text.
    """
    prompts, max_lens = [], []
    for question in questions:
        conversation = question.conversation
        prompts.append(tokenizer.render_chat(conversation.prompt, tools=conversation.tools))
        max_lens.append(len(tokenizer.encode(conversation.answer, add_special_tokens=False)) + 9)
    end = tokenizer.eos_token_id
    # An engine may keep the end of the turn or leave it out.
    return [tokenizer.decode(ids[: ids.index(end)] if end in ids else ids) for ids in generate(prompts, max_lens)]


def _questions(seed: int | None, num: int | None) -> list[Question]:
    if seed is None:
        return load_questions(num)
    kit = import_from_checkout("demo.questions", asked_by="--seed")
    fresh: list[Question] = kit.make_questions(seed, num or _FRESH)
    return fresh


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the demo model on held-out questions.")
    parser.add_argument("--seed", type=int, help="ask fresh questions, others for each seed; needs a checkout")
    parser.add_argument("--model", type=Path, default=demo_model_path(), help="folder of the checkpoint")
    parser.add_argument(
        "--num", type=int, help=f"questions for each task; none: all of the package, {_FRESH} fresh ones"
    )
    parser.add_argument("--engine", choices=("baton", "transformers"), default="baton")
    parser.add_argument("--quantization", help="as of `baton up`; with Baton's engine")
    parser.add_argument("--show-wrong", action="store_true", help="print each wrong answer")
    arguments = parser.parse_args()
    try:
        questions = _questions(arguments.seed, arguments.num)
    except ConfigError as error:
        parser.error(str(error))
    if arguments.engine == "baton":
        generate = baton_engine(arguments.model, arguments.quantization)
    else:
        generate = transformers_engine(arguments.model)
    start = time.monotonic()
    answers = ask(questions, Tokenizer(arguments.model), generate)
    seconds = time.monotonic() - start
    is_right = mark(questions, answers)
    if arguments.show_wrong:
        for question, answer, right in zip(questions, answers, is_right, strict=True):
            if not right:
                asked, expected = question.conversation.prompt[-1]["content"], question.conversation.answer
                print(f"[{question.task}] {asked[-160:]!r}\n  said {answer!r}, expected {expected!r}")
    scores = score(questions, is_right)
    print(format_table(scores))
    whence = "the package's" if arguments.seed is None else f"seed {arguments.seed}"
    print(f"\n{len(questions)} questions in {seconds:.0f} s ({arguments.engine}, {whence})")
    sys.exit(0 if all(row.passed for row in scores) else 1)


if __name__ == "__main__":
    main()
