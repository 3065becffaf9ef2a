"""The examination: which tasks are scored, what counts as right, and what has to be reached.

Questions are drawn from the held-out split of each generator, so no seed of training has seen them. An
answer is right when it is the expected text exactly; JSON and tool calls are parsed and compared by value.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from baton.demo import smalltalk, tasks
from baton.demo.conversation import Conversation
from baton.demo.corpus import small_task, toolless_task
from baton.demo.forms import json_exchange
from baton.demo.memory import memory_conversation
from baton.demo.recall import Order, recall_conversation
from baton.demo.tokenizer import Encoder
from baton.demo.tools import TOOL_CALL_END, TOOL_CALL_START, tool_conversation

# Turns around a text, and the question itself, in tokens: the text is shorter than the prompt by this.
_AROUND_RECALL = 45


@dataclass(frozen=True)
class Question:
    """A conversation whose last message is the expected answer, and the task it belongs to."""

    task: str
    conversation: Conversation


@dataclass(frozen=True)
class Task:
    """A row of the table.

    `target` is the accuracy to reach (None: reported, not required); `share` scales how many are asked.
    """

    name: str
    target: float | None
    make: Callable[[random.Random, Encoder], Conversation]
    is_right: Callable[[str, str], bool] = lambda answer, expected: answer.strip() == expected
    share: float = 1.0


def same_json(answer: str, expected: str) -> bool:
    """Say whether both are the same JSON value, of the same types."""
    try:
        return json.dumps(json.loads(answer)) == json.dumps(json.loads(expected))
    except ValueError:
        return False


def same_call(answer: str, expected: str) -> bool:
    """Say whether the answer is one tool call with the expected name and arguments."""
    answer, expected = answer.strip(), expected.strip()
    if not (answer.startswith(TOOL_CALL_START) and answer.endswith(TOOL_CALL_END)):
        return False
    inside = slice(len(TOOL_CALL_START), -len(TOOL_CALL_END))
    try:
        return bool(json.loads(answer[inside]) == json.loads(expected[inside]))
    except ValueError:
        return False


def _recall(prompt_len: int, order: Order = "key first") -> Callable[[random.Random, Encoder], Conversation]:
    return lambda rng, encoder: recall_conversation(
        rng, "held_out", prompt_len - _AROUND_RECALL, 1, encoder.length, order
    )


def _memory(rng: random.Random, _: Encoder) -> Conversation:
    return memory_conversation(rng, "held_out", rng.randint(2, 5), 1, lambda: small_task(rng, "held_out"))


def _tool(rng: random.Random, _: Encoder) -> Conversation:
    return tool_conversation(rng, "held_out", lambda: toolless_task(rng, "held_out"))


TASKS: tuple[Task, ...] = (
    Task("recall, prompt of 300 tokens", 0.95, _recall(300)),
    Task("recall, prompt of 1,000 tokens", 0.95, _recall(1000)),
    Task("recall, prompt of 3,000 tokens", 0.90, _recall(3000), share=0.5),
    Task("recall, value told before key, 300 tokens", None, _recall(300, "value first")),
    Task("sum, one digit (trained on whole)", 0.95, lambda r, _: Conversation(tasks.sum_exchange(r, "held_out", 1))),
    Task("sum, two digits", 0.95, lambda r, _: Conversation(tasks.sum_exchange(r, "held_out", 2))),
    Task("sum, three digits", 0.90, lambda r, _: Conversation(tasks.sum_exchange(r, "held_out", 3))),
    Task("difference, two digits", 0.95, lambda r, _: Conversation(tasks.sum_exchange(r, "held_out", 2, "-"))),
    Task("difference, three digits", 0.90, lambda r, _: Conversation(tasks.sum_exchange(r, "held_out", 3, "-"))),
    Task("copy, 5 words", 0.95, lambda r, _: Conversation(tasks.copy_exchange(r, "held_out", 5))),
    Task("reverse, 5 words", 0.95, lambda r, _: Conversation(tasks.reverse_exchange(r, "held_out", 5))),
    Task("sort, 5 words", 0.95, lambda r, _: Conversation(tasks.sort_exchange(r, "held_out", 5))),
    Task("count, 3 to 9 items", 0.95, lambda r, _: Conversation(tasks.count_exchange(r, "held_out", r.randint(3, 9)))),
    Task("memory over turns", 0.95, _memory),
    Task("JSON with given fields", 0.98, lambda r, _: Conversation(json_exchange(r, "held_out")), same_json),
    Task("tool call", 0.95, _tool, same_call),
    Task("capital, in a new wording", 0.95, lambda r, _: Conversation(smalltalk.capital(r, "held_out"))),
)


def make_questions(seed: int, num: int, encoder: Encoder) -> list[Question]:
    """Draw `num` questions for each task (fewer where its share is below one), fresh for each seed."""
    questions = []
    for task in TASKS:
        rng = random.Random(f"examination/{seed}/{task.name}")
        count = max(1, round(num * task.share))
        questions += [Question(task.name, task.make(rng, encoder)) for _ in range(count)]
    return questions


@dataclass(frozen=True)
class Score:
    task: Task
    num: int
    num_right: int

    @property
    def accuracy(self) -> float:
        return self.num_right / self.num

    @property
    def passed(self) -> bool:
        return self.task.target is None or self.accuracy >= self.task.target


def score(questions: list[Question], is_right: list[bool]) -> list[Score]:
    """Count by task, in the order of `TASKS`."""
    scores = []
    for task in TASKS:
        marks = [right for question, right in zip(questions, is_right, strict=True) if question.task == task.name]
        if marks:
            scores.append(Score(task, len(marks), sum(marks)))
    return scores


def format_table(scores: list[Score]) -> str:
    """Lay the scores out as Markdown."""
    lines = ["| task | n | right | accuracy | target | |", "|---|--:|--:|--:|--:|---|"]
    for row in scores:
        target = "none" if row.task.target is None else f"{row.task.target:.0%}"
        verdict = "" if row.task.target is None else "pass" if row.passed else "FAIL"
        lines.append(f"| {row.task.name} | {row.num} | {row.num_right} | {row.accuracy:.1%} | {target} | {verdict} |")
    return "\n".join(lines)
