"""Ask the demo model fresh held-out questions: `python -m baton.demo.evaluate [--seed N]`.

Prints a table and leaves with status 1 when a target is missed. The questions go through Baton's own
engine, so this is also a test of it: the model answers rightly when the KV it reads is right. With
`--engine transformers` the same questions go through `transformers`, for comparison.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from baton.demo.questions import TASKS, Question, format_table, make_questions, score
from baton.demo.tokenizer import ASSISTANT, END, Encoder, load_encoder

MODEL_FOLDER = Path(__file__).parent / "model"
BATCH_TOKENS = 16_384

Generate = Callable[[list[list[int]], list[int]], list[list[int]]]
"""Greedy answers to prompts; the second list is the most tokens that each may have."""


def baton_engine(model: Path) -> Generate:
    """Generate with `baton.llm.LLM`, on whatever device it picks."""
    from baton.llm import LLM, SamplingParams

    llm = LLM(model=str(model), dtype="float32")

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


def ask(questions: list[Question], encoder: Encoder, generate: Generate) -> list[str]:
    """Get the model's answer to each question.

    An answer may run eight tokens past the expected length, so one that does not end by itself shows as
    a wrong text.
    """
    end, opening = encoder.special[END], encoder.special[ASSISTANT]
    prompts, max_lens = [], []
    for question in questions:
        ids, _ = encoder.render(question.conversation)
        answer_len = encoder.length(question.conversation.answer) + 1
        prompts.append(ids[:-answer_len])
        max_lens.append(answer_len + 8)
        assert prompts[-1][-1] == opening
    # An engine may keep the end of the turn or leave it out.
    return [encoder.decode(ids[: ids.index(end)] if end in ids else ids) for ids in generate(prompts, max_lens)]


def mark(questions: list[Question], answers: list[str]) -> list[bool]:
    """Say of each answer whether it is right."""
    rules = {task.name: task.is_right for task in TASKS}
    return [
        rules[question.task](answer, question.conversation.answer)
        for question, answer in zip(questions, answers, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the demo model on fresh held-out questions.")
    parser.add_argument("--seed", type=int, default=1, help="another seed asks other questions")
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="folder of the checkpoint")
    parser.add_argument("--num", type=int, default=100, help="questions for each task")
    parser.add_argument("--engine", choices=("baton", "transformers"), default="baton")
    parser.add_argument("--show-wrong", action="store_true", help="print each wrong answer")
    arguments = parser.parse_args()
    encoder = load_encoder(arguments.model)
    questions = make_questions(arguments.seed, arguments.num, encoder)
    generate = (baton_engine if arguments.engine == "baton" else transformers_engine)(arguments.model)
    start = time.monotonic()
    answers = ask(questions, encoder, generate)
    seconds = time.monotonic() - start
    is_right = mark(questions, answers)
    if arguments.show_wrong:
        for question, answer, right in zip(questions, answers, is_right, strict=True):
            if not right:
                asked = question.conversation.messages[-2]["content"]
                print(
                    f"[{question.task}] {asked[-160:]!r}\n  said {answer!r}, expected {question.conversation.answer!r}"
                )
    scores = score(questions, is_right)
    print(format_table(scores))
    print(f"\n{len(questions)} questions in {seconds:.0f} s ({arguments.engine}, seed {arguments.seed})")
    sys.exit(0 if all(row.passed for row in scores) else 1)


if __name__ == "__main__":
    main()
