"""Memory over several turns: a person tells things about themselves and asks for them later.

Held out, by a hash of what was told ("my dog is called|Rex"): training never asks for a held-out thing.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from demo.conversation import Conversation, Message, Split, belongs, exchange
from demo.words import ANIMALS, COLOURS, FRUITS, any_name, any_word, digits
from demo.world import HOBBIES, TOWNS, TRADES, a


@dataclass(frozen=True)
class Trait:
    """Something one can say of oneself."""

    told: tuple[str, ...]
    asked: tuple[str, ...]
    recalled: str
    value: Callable[[random.Random], str]


def _favourite(noun: str, values: Callable[[random.Random], str]) -> Trait:
    return Trait(
        told=(
            f"My favourite {noun} is {{}}.",
            f"my favorite {noun} is {{}}",
            f"I like {{}} most, it is my favourite {noun}.",
        ),
        asked=(f"What is my favourite {noun}?", f"Which {noun} do I like most?", f"what's my favorite {noun}?"),
        recalled=f"Your favourite {noun} is {{}}.",
        value=values,
    )


def _called(noun: str) -> Trait:
    return Trait(
        told=(f"My {noun} is called {{}}.", f"I have a {noun} called {{}}.", f"The name of my {noun} is {{}}."),
        asked=(
            f"What is my {noun} called?",
            f"What is the name of my {noun}?",
            f"Do you remember the name of my {noun}?",
        ),
        recalled=f"Your {noun} is called {{}}.",
        value=any_name,
    )


TRAITS: tuple[Trait, ...] = (
    Trait(
        told=("My name is {}.", "I am called {}.", "Hello, my name is {}.", "my name is {}", "Please call me {}."),
        asked=("What is my name?", "What's my name?", "what is my name", "Do you know my name?", "Who am I?"),
        recalled="Your name is {}.",
        value=any_name,
    ),
    *(_called(noun) for noun in ("dog", "cat", "horse", "sister", "brother", "friend", "boat")),
    _favourite("colour", lambda rng: rng.choice(COLOURS)),
    _favourite("animal", lambda rng: rng.choice(ANIMALS)),
    _favourite("fruit", lambda rng: rng.choice(FRUITS)),
    _favourite("word", any_word),
    _favourite("number", lambda rng: digits(rng, rng.randint(1, 4))),
    Trait(
        told=("I live in {}.", "My home is in {}."),
        asked=("Where do I live?", "In which town do I live?"),
        recalled="You live in {}.",
        value=lambda rng: rng.choice(list(TOWNS)),
    ),
    Trait(
        told=("I work as {}.", "I am {} by trade."),
        asked=("What is my trade?", "What do I work as?"),
        recalled="You work as {}.",
        value=lambda rng: a(rng.choice(TRADES)),
    ),
    Trait(
        told=("I am {} years old.", "My age is {}."),
        asked=("How old am I?", "What is my age?"),
        recalled="You are {} years old.",
        value=lambda rng: str(rng.randrange(5, 100)),
    ),
    Trait(
        told=("My code is {}.", "Remember the code {}.", "The code is {}. Please remember it."),
        asked=("What is my code?", "What was the code?", "Which code did I tell you?"),
        recalled="Your code is {}.",
        value=lambda rng: digits(rng, rng.randint(3, 6)),
    ),
    Trait(
        told=("Remember this number: {}.", "Remember the number {}.", "Keep the number {} in mind."),
        asked=("What number did I tell you?", "Which number should you remember?", "What was the number?"),
        recalled="The number is {}.",
        value=lambda rng: digits(rng, rng.randint(2, 6)),
    ),
    Trait(
        told=("Remember this word: {}.", "Remember the word {}.", "Keep the word {} in mind."),
        asked=("What word did I tell you?", "Which word should you remember?", "What was the word?"),
        recalled="The word is {}.",
        value=any_word,
    ),
    Trait(
        told=("In the evening I enjoy {}.", "My hobby is {}."),
        asked=("What is my hobby?", "What do I enjoy?"),
        recalled="Your hobby is {}.",
        value=lambda rng: rng.choice(HOBBIES),
    ),
)


def _acknowledge(rng: random.Random, recalled: list[str]) -> str:
    """Say back what was told: an easy habit, which also makes a second copy to recall from."""
    if rng.random() < 0.5 or len(recalled) > 1:
        return rng.choice(("I will remember that.", "Thank you, I will remember that."))
    return f"I will remember that. {recalled[0]}"


def memory_conversation(
    rng: random.Random, split: Split, num_traits: int, num_questions: int, small_task: Callable[[], list[Message]]
) -> Conversation:
    """Some turns that tell, small tasks between them, and at the end questions about what was told.

    Once in five conversations a trait changes on the way; the last word counts.
    """
    traits = rng.sample(TRAITS, num_traits)
    values = [trait.value(rng) for trait in traits]
    messages: list[Message] = []
    i, last_told = 0, 0
    while i < num_traits:
        together = 2 if rng.random() < 0.2 else 1
        group = list(zip(traits[i : i + together], values[i : i + together], strict=True))
        told = " ".join(rng.choice(trait.told).format(value) for trait, value in group)
        last_told = len(messages)
        messages += exchange(told, _acknowledge(rng, [t.recalled.format(v) for t, v in group]))
        i += together
        if rng.random() < 0.4:
            messages += small_task()
    if rng.random() < 0.2:
        changed = rng.randrange(num_traits)
        values[changed] = traits[changed].value(rng)
        told = rng.choice(traits[changed].told).format(values[changed])
        last_told = len(messages)
        messages += exchange(
            f"Wait, that has changed. {told}", _acknowledge(rng, [traits[changed].recalled.format(values[changed])])
        )
    pairs = list(zip(traits, values, strict=True))
    allowed = [(t, v) for t, v in pairs if belongs(f"{t.recalled}|{v}", split)]
    if not allowed:
        return memory_conversation(rng, split, num_traits, num_questions, small_task)
    asked_at = len(messages)
    for trait, value in rng.sample(allowed, min(num_questions, len(allowed))):
        messages += exchange(rng.choice(trait.asked), trait.recalled.format(value))
    if last_told == asked_at - 2 and rng.random() < 0.25:  # tell and ask in one breath
        messages[asked_at]["content"] = f"{messages[last_told]['content']} {messages[asked_at]['content']}"
        del messages[last_told:asked_at]
    return Conversation(messages)
