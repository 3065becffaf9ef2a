"""The examination of the demo model: its questions, what counts as right, and what has to be reached.

`questions.jsonl` holds questions that no training has seen, drawn by `demo/questions.py` of the repository, which
draws fresh ones from a seed. An answer is right when it is the expected text exactly; JSON and tool calls are parsed
and compared by value.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Message = dict[str, Any]
Tool = dict[str, Any]

FILE = Path(__file__).parent / "questions.jsonl"
TOOL_CALL_START, TOOL_CALL_END = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Conversation:
    """Messages in the OpenAI form; the last one is the assistant's answer to all before it."""

    messages: list[Message]
    tools: list[Tool] | None = None

    @property
    def prompt(self) -> list[Message]:
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        return str(self.messages[-1]["content"])


@dataclass(frozen=True)
class Question:
    """A conversation whose last message is the expected answer, and the task it belongs to."""

    task: str
    conversation: Conversation


def same_text(answer: str, expected: str) -> bool:
    """Whether both are the same text."""
    return answer.strip() == expected


def same_json(answer: str, expected: str) -> bool:
    """Whether both are the same JSON value, of the same types."""
    try:
        return json.dumps(json.loads(answer)) == json.dumps(json.loads(expected))
    except ValueError:
        return False


def same_call(answer: str, expected: str) -> bool:
    """Whether the answer is one tool call with the expected name and arguments."""
    answer, expected = answer.strip(), expected.strip()
    if not (answer.startswith(TOOL_CALL_START) and answer.endswith(TOOL_CALL_END)):
        return False
    inside = slice(len(TOOL_CALL_START), -len(TOOL_CALL_END))
    try:
        return bool(json.loads(answer[inside]) == json.loads(expected[inside]))
    except ValueError:
        return False


@dataclass(frozen=True)
class Task:
    """A row of the table; `target` is the accuracy to reach (None: reported, not required)."""

    name: str
    target: float | None
    is_right: Callable[[str, str], bool] = same_text


TASKS: tuple[Task, ...] = (
    Task("recall, prompt of 300 tokens", 0.95),
    Task("recall, prompt of 1,000 tokens", 0.95),
    Task("recall, prompt of 3,000 tokens", 0.90),
    Task("recall, value told before key, 300 tokens", None),
    Task("sum, one digit (trained on whole)", 0.95),
    Task("sum, two digits", 0.95),
    Task("sum, three digits", 0.90),
    Task("difference, two digits", 0.95),
    Task("difference, three digits", 0.90),
    Task("copy, 5 words", 0.95),
    Task("reverse, 5 words", 0.95),
    Task("sort, 5 words", 0.95),
    Task("count, 3 to 9 items", 0.95),
    Task("memory over turns", 0.95),
    Task("JSON with given fields", 0.98, same_json),
    Task("tool call", 0.95, same_call),
    Task("capital, in a new wording", 0.95),
)


def load_questions(num: int | None = None) -> list[Question]:
    """The questions of the package, at most `num` of each task."""
    questions: dict[str, list[Question]] = {task.name: [] for task in TASKS}
    for line in FILE.read_text().splitlines():
        entry = json.loads(line)
        questions[entry["task"]].append(Question(entry["task"], Conversation(entry["messages"], entry.get("tools"))))
    return [question for task in questions.values() for question in task[:num]]


def to_lines(questions: Iterable[Question]) -> str:
    """Write questions as `load_questions` reads them."""
    lines = []
    for question in questions:
        entry: dict[str, Any] = {"task": question.task, "messages": question.conversation.messages}
        if question.conversation.tools is not None:
            entry["tools"] = question.conversation.tools
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    return "".join(lines)


@dataclass(frozen=True)
class Score:
    """How many questions of a task were answered rightly."""

    task: Task
    num: int
    num_right: int

    @property
    def accuracy(self) -> float:
        return self.num_right / self.num

    @property
    def passed(self) -> bool:
        return self.task.target is None or self.accuracy >= self.task.target


def mark(questions: list[Question], answers: list[str]) -> list[bool]:
    """Say of each answer whether it is right."""
    rules = {task.name: task.is_right for task in TASKS}
    return [
        rules[question.task](answer, question.conversation.answer)
        for question, answer in zip(questions, answers, strict=True)
    ]


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
