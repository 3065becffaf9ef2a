"""What a generator makes: a conversation that ends with the one right answer.

Also the rule that keeps questions for evaluation away from training: a question's content is hashed, one
part in sixteen is held out, and a generator asks only about content of the split it was given. The rule
needs no list of what was trained on, so it holds for every seed of either side.
"""

import hashlib
from collections.abc import Callable
from typing import Literal, TypeVar

from baton.demo.questions import Conversation, Message, Tool

__all__ = ["Conversation", "Message", "Split", "Tool", "assistant", "belongs", "draw", "exchange", "user"]

Split = Literal["train", "held_out"]
Item = TypeVar("Item")

HELD_OUT_PARTS = 16  # of 256


def belongs(content: str, split: Split) -> bool:
    """Say whether a question with this content may be asked in this split."""
    first_byte = hashlib.blake2b(content.encode(), digest_size=1).digest()[0]
    return (first_byte < HELD_OUT_PARTS) == (split == "held_out")


def draw(split: Split, make: Callable[[], Item], content: Callable[[Item], str]) -> Item:
    """Make items until one belongs to the split (16 on average for `held_out`)."""
    while True:
        item = make()
        if belongs(content(item), split):
            return item


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def exchange(question: str, answer: str) -> list[Message]:
    """One question and its answer."""
    return [user(question), assistant(answer)]
