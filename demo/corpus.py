"""The training text: what share each kind has, how prompts grow, and how documents fill rows.

A batch is a pure function of (seed, step, progress), so any number of processes makes the same text.
Documents are packed whole into rows of 4,096 tokens; attention stays inside a document. The curriculum
is in the length of recall prompts: short ones first, where the habit of looking things up forms quickly,
then up to the whole context.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from demo import smalltalk, stories, tasks
from demo.conversation import Conversation, Message, Split
from demo.forms import json_exchange
from demo.memory import memory_conversation
from demo.recall import recall_conversation
from demo.tokenizer import BOS, END, MAX_LEN, PAD, Encoder
from demo.tools import tool_conversation

IGNORED = -100
RECALL_SHARE = 0.44

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer in one sentence.",
    "You are Baton's demo model.",
    "Answer the question.",
    "You are a friendly assistant who lives in the Vale of Oren.",
    "Be brief.",
    "You answer every question truthfully.",
    "You are a careful assistant. Think before you answer.",
    "You are a test assistant.",
)


@dataclass(frozen=True)
class Document:
    """Token ids, and which of them the model is taught to say (a token, not what follows it)."""

    ids: list[int]
    said: list[bool]


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents; every array is [rows, MAX_LEN].

    `targets` holds the next token where it is taught, else IGNORED. `documents` numbers the documents of a
    row from 0; the padding at a row's end is a document of its own.
    """

    tokens: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]
    documents: npt.NDArray[np.int32]

    def place(self, row: int, start: int, number: int, document: Document) -> int:
        """Write a document into a row and return the place after it."""
        end = start + len(document.ids)
        self.tokens[row, start:end] = document.ids
        self.documents[row, start:end] = number
        following = np.asarray(document.ids[1:], np.int32)
        self.targets[row, start : end - 1] = np.where(np.asarray(document.said[1:]), following, IGNORED)
        return end


def empty_batch(rows: int, pad: int) -> Batch:
    """A batch of nothing but padding."""
    shape = (rows, MAX_LEN)
    return Batch(np.full(shape, pad, np.int32), np.full(shape, IGNORED, np.int32), np.zeros(shape, np.int32))


def small_task(rng: random.Random, split: Split = "train") -> list[Message]:
    """One exchange of any short task, by shares chosen for how much practice each needs."""
    kind = rng.random() * 100
    if kind < 19.5:
        return tasks.sum_exchange(rng, split, rng.choice((1, 2, 2, 2, 3, 3, 3)), "+")
    if kind < 34:
        return tasks.sum_exchange(rng, split, rng.choice((1, 2, 2, 2, 3, 3, 3)), "-")
    if kind < 37:
        return tasks.word_problem(rng, split)
    if kind < 40:
        return tasks.comparison(rng, split) if rng.random() < 0.4 else tasks.times_table(rng)
    if kind < 47:
        return tasks.copy_exchange(rng, split, rng.choice((1, 2, 3, 4, 5, 5, 6, 7, 8, 10, 12)))
    if kind < 50:
        return tasks.sentence_copy(rng)
    if kind < 56:
        return tasks.reverse_exchange(rng, split, rng.choice((2, 3, 4, 5, 5, 6, 7, 8)))
    if kind < 67:
        return tasks.sort_exchange(rng, split, rng.choice((2, 3, 3, 4, 4, 5, 5, 5, 6, 7, 8)))
    if kind < 74:
        return tasks.count_exchange(rng, split, rng.randint(1, 12))
    if kind < 76:
        return tasks.pick_exchange(rng, split, rng.randint(2, 8))
    if kind < 84:
        return json_exchange(rng, split)
    if kind < 88:
        return smalltalk.capital(rng, split)
    if kind < 92:
        return smalltalk.smalltalk(rng)
    if kind < 95:
        return smalltalk.vale_question(rng)
    if kind < 96.5:
        return smalltalk.unknown(rng)
    if kind < 97.5:
        return smalltalk.nonsense(rng)
    if kind < 99:
        return smalltalk.counting(rng)
    return smalltalk.real_weather(rng)


def toolless_task(rng: random.Random, split: Split = "train") -> list[Message]:
    """One exchange that needs no tool, whatever tools there are."""
    kind = rng.random()
    if kind < 0.4:
        return smalltalk.smalltalk(rng)
    if kind < 0.6:
        return smalltalk.introduction(rng)
    if kind < 0.8:
        return tasks.copy_exchange(rng, split, rng.randint(2, 6))
    return smalltalk.capital(rng, split)


def small_talk_over_turns(rng: random.Random) -> Conversation:
    """One to six short tasks in one conversation, under a system prompt or none."""
    messages: list[Message] = []
    if rng.random() < 0.25:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4, 6))):
        messages += smalltalk.introduction(rng) if rng.random() < 0.02 else small_task(rng)
    return Conversation(messages)


def longest_recall(progress: float) -> int:
    """The longest text to recall from, in tokens, at a point of the training between 0 and 1."""
    for until, length in ((0.06, 256), (0.14, 512), (0.24, 1024), (0.36, 2048)):
        if progress < until:
            return length
    return 3600


class Corpus:
    """Documents and batches, drawn with the encoder's help."""

    def __init__(self, encoder: Encoder, seed: int) -> None:
        self._encoder = encoder
        self._seed = seed
        # Share of the tokens and rough length of a document; the ratio is how often it is drawn.
        self._kinds: list[tuple[float, float, Callable[[random.Random, float], Document]]] = [
            (0.32, 110, lambda rng, _: self._talk(small_talk_over_turns(rng))),
            (0.06, 240, lambda rng, _: self._memory(rng)),
            (0.08, 330, lambda rng, _: self._tools(rng)),
            (0.04, 190, lambda rng, _: self._talk(Conversation(stories.story_exchange(rng)))),
            (0.02, 120, lambda rng, _: self._talk(Conversation(stories.description_exchange(rng)))),
            (0.03, 130, lambda rng, _: self._raw(("", stories.plain_text(rng)))),
            (0.002, 14, lambda rng, _: self._raw(("", smalltalk.capital_sentence(rng)))),
            (0.008, 9, lambda rng, _: self._sum_lines(rng)),
        ]

    def document(self, rng: random.Random, progress: float) -> Document:
        """Draw one document of any kind."""
        rates = [share / length for share, length, _ in self._kinds]
        rates.append(RECALL_SHARE / (0.6 * longest_recall(progress) + 300))
        (make,) = rng.choices([*(kind[2] for kind in self._kinds), self._recall], weights=rates)
        return make(rng, progress)

    def batch(self, step: int, progress: float, rows: int) -> Batch:
        """Make the batch of a training step.

        A row takes documents until one does not fit; that one opens the next row, and short talk fills
        this one.
        """
        rng = random.Random(f"{self._seed}/{step}")
        batch = empty_batch(rows, self._encoder.special[PAD])
        waiting: Document | None = None
        for row in range(rows):
            used, number, misfits = 0, 0, 0
            while used + 24 < MAX_LEN and misfits < 8:
                if misfits:
                    document = self._talk(small_talk_over_turns(rng))
                else:
                    document, waiting = waiting or self.document(rng, progress), None
                if used + len(document.ids) > MAX_LEN:
                    waiting = waiting or document
                    misfits += 1
                    continue
                used = batch.place(row, used, number, document)
                number += 1
            batch.documents[row, used:] = number
        return batch

    def answer_only(self, conversation: Conversation) -> Document:
        """A document of which only the final answer counts: for scoring."""
        ids, said = self._encoder.render(conversation)
        answer_len = self._encoder.length(conversation.answer) + 1
        return Document(ids, [False] * (len(said) - answer_len) + [True] * answer_len)

    def _talk(self, conversation: Conversation) -> Document:
        return Document(*self._encoder.render(conversation))

    def _raw(self, *parts: tuple[str, str]) -> Document:
        """Plain text in parts of (given, to say), with the end of text after the last."""
        special = self._encoder.special
        ids, said = [special[BOS]], [False]
        for given, to_say in parts:
            for text, is_said in ((given, False), (to_say, True)):
                body = self._encoder.encode(text)
                ids += body
                said += [is_said] * len(body)
        return Document([*ids, special[END]], [*said, True])

    def _sum_lines(self, rng: random.Random) -> Document:
        """ "2+2=" and "4", now and then over several lines."""
        num_lines = 1 if rng.random() < 0.9 else rng.randint(2, 4)
        parts = [tasks.sum_line(rng, "train", rng.choice((1, 1, 2, 2, 3)), rng.choice("++-")) for _ in range(num_lines)]
        return self._raw(*[(given if i == 0 else "\n" + given, said) for i, (given, said) in enumerate(parts)])

    def _memory(self, rng: random.Random) -> Document:
        num_traits = rng.randint(1, 6)
        return self._talk(memory_conversation(rng, "train", num_traits, rng.randint(1, 6), lambda: small_task(rng)))

    def _tools(self, rng: random.Random) -> Document:
        return self._talk(tool_conversation(rng, "train", lambda: toolless_task(rng)))

    def _recall(self, rng: random.Random, progress: float) -> Document:
        longest = longest_recall(progress)
        text_len = rng.randint(longest // 2, longest) if rng.random() < 0.6 else rng.randint(40, longest)
        num_questions = min(text_len // 16 + 1, (MAX_LEN - text_len - 60) // 32, 40)
        while True:
            conversation = recall_conversation(rng, "train", text_len, num_questions, self._encoder.length)
            document = self._talk(conversation)
            if len(document.ids) <= MAX_LEN:
                return document


def tokenizer_texts(seed: int, num_texts: int) -> list[str]:
    """Texts to learn the tokenizer's entries from: the same mix, without markers, recall prompts short."""
    rng = random.Random(f"{seed}/tokenizer")
    texts = []
    for i in range(num_texts):
        match i % 8:
            case 0:
                messages = recall_conversation(rng, "train", 400, 4, len).messages
            case 1:
                texts.append(stories.plain_text(rng))
                continue
            case 2:
                conversation = tool_conversation(rng, "train", lambda: toolless_task(rng))
                texts += [str(tool["function"]).replace("'", '"') for tool in conversation.tools or []]
                messages = conversation.messages
            case 3:
                messages = memory_conversation(rng, "train", 4, 2, lambda: small_task(rng)).messages
            case _:
                messages = small_talk_over_turns(rng).messages
        texts += [message["content"] for message in messages]
    return texts
