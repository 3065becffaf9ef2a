"""Draw the questions of the examination from the held-out split of each generator: no seed of training has seen them.

python -m demo.questions        write those that the package carries
"""

import random
from collections.abc import Callable

from demo import smalltalk, tasks
from demo.corpus import small_task, toolless_task
from demo.forms import json_exchange
from demo.memory import memory_conversation
from demo.recall import Order, recall_conversation
from demo.tokenizer import Encoder, load_encoder
from demo.tools import tool_conversation

from baton.config import demo_model_path
from baton.demo.questions import FILE, TASKS, Conversation, Question, to_lines

CARRIED_SEED, CARRIED_NUM = 1001, 40
# Turns around a text, and the question itself, in tokens: the text is shorter than the prompt by this.
_AROUND_RECALL = 45
# Prompts of 3,000 tokens are most of the work: half as many are asked.
_LONG, _LONG_SHARE = "recall, prompt of 3,000 tokens", 0.5

Make = Callable[[random.Random, Encoder], Conversation]


def _recall(prompt_len: int, order: Order = "key first") -> Make:
    return lambda rng, encoder: recall_conversation(
        rng, "held_out", prompt_len - _AROUND_RECALL, 1, encoder.length, order
    )


def _memory(rng: random.Random, _: Encoder) -> Conversation:
    return memory_conversation(rng, "held_out", rng.randint(2, 5), 1, lambda: small_task(rng, "held_out"))


def _tool(rng: random.Random, _: Encoder) -> Conversation:
    return tool_conversation(rng, "held_out", lambda: toolless_task(rng, "held_out"))


MAKERS: dict[str, Make] = {
    "recall, prompt of 300 tokens": _recall(300),
    "recall, prompt of 1,000 tokens": _recall(1000),
    _LONG: _recall(3000),
    "recall, value told before key, 300 tokens": _recall(300, "value first"),
    "sum, one digit (trained on whole)": lambda r, _: Conversation(tasks.sum_exchange(r, "held_out", 1)),
    "sum, two digits": lambda r, _: Conversation(tasks.sum_exchange(r, "held_out", 2)),
    "sum, three digits": lambda r, _: Conversation(tasks.sum_exchange(r, "held_out", 3)),
    "difference, two digits": lambda r, _: Conversation(tasks.sum_exchange(r, "held_out", 2, "-")),
    "difference, three digits": lambda r, _: Conversation(tasks.sum_exchange(r, "held_out", 3, "-")),
    "copy, 5 words": lambda r, _: Conversation(tasks.copy_exchange(r, "held_out", 5)),
    "reverse, 5 words": lambda r, _: Conversation(tasks.reverse_exchange(r, "held_out", 5)),
    "sort, 5 words": lambda r, _: Conversation(tasks.sort_exchange(r, "held_out", 5)),
    "count, 3 to 9 items": lambda r, _: Conversation(tasks.count_exchange(r, "held_out", r.randint(3, 9))),
    "memory over turns": _memory,
    "JSON with given fields": lambda r, _: Conversation(json_exchange(r, "held_out")),
    "tool call": _tool,
    "capital, in a new wording": lambda r, _: Conversation(smalltalk.capital(r, "held_out")),
}


def make_questions(seed: int, num: int, encoder: Encoder | None = None) -> list[Question]:
    """Draw `num` questions for each task (half as many of the longest), fresh for each seed."""
    encoder = encoder or load_encoder(demo_model_path())
    questions = []
    for task in TASKS:
        rng = random.Random(f"examination/{seed}/{task.name}")
        count = max(1, round(num * (_LONG_SHARE if task.name == _LONG else 1)))
        questions += [Question(task.name, MAKERS[task.name](rng, encoder)) for _ in range(count)]
    return questions


if __name__ == "__main__":
    FILE.write_text(to_lines(make_questions(CARRIED_SEED, CARRIED_NUM)))
