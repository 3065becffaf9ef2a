"""Recall of facts from long prompts: many small facts, each a key and a value drawn at random.

The facts mean nothing, so nothing but the prompt can answer: a corrupted block of the prompt's KV shows as
a wrong answer. Keys are names (some invented, some in two parts) or numbers, values are digits or words,
and sentences about the Vale stand between as distraction. Held out, by a hash of key and value: training
prompts contain held-out facts but training never asks about one, and evaluation asks about nothing else.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from demo.conversation import Conversation, Message, Split, assistant, belongs, draw, exchange, user
from demo.stories import plain_text
from demo.words import COLOURS, FIRST_NAMES, NOUNS, SURNAMES, any_name, any_word, digits, invented_name
from demo.world import TOWNS

Order = Literal["any", "key first", "value first"]


@dataclass(frozen=True)
class Relation:
    """A kind of fact, and the words for it; `key` and `value` stand in braces.

    `facts` say the key first, as the answer does; `backward` facts say the value first.
    """

    facts: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    value: Callable[[random.Random], str]
    keys: str = "names"
    backward: tuple[str, ...] = ()


def _numbered(noun: str, length: int) -> Relation:
    return Relation(
        facts=(
            f"The {noun} of {{key}} is {{value}}.",
            f"{{key}} has the {noun} {{value}}.",
            f"{{key}}: {noun} {{value}}.",
        ),
        questions=(
            f"What is the {noun} of {{key}}?",
            f"Tell me the {noun} of {{key}}.",
            f"Which {noun} does {{key}} have?",
            f"What is {{key}}'s {noun}?",
        ),
        answer=f"The {noun} of {{key}} is {{value}}.",
        value=lambda rng: digits(rng, length),
        backward=(f"{{value}} is the {noun} of {{key}}.",),
    )


def _favourite(noun: str, value: Callable[[random.Random], str]) -> Relation:
    return Relation(
        facts=(f"The {noun} of {{key}} is {{value}}.", f"{{key}} has the {noun} {{value}}."),
        questions=(f"What is the {noun} of {{key}}?", f"Tell me the {noun} of {{key}}."),
        answer=f"The {noun} of {{key}} is {{value}}.",
        value=value,
        backward=(f"{{value}} is the {noun} of {{key}}.",),
    )


RELATIONS: tuple[Relation, ...] = (
    _numbered("code", 4),
    _numbered("number", 4),
    _numbered("room", 3),
    _numbered("badge", 5),
    _numbered("pin", 4),
    _numbered("phone number", 6),
    _favourite("password", any_word),
    _favourite("secret word", lambda rng: rng.choice(NOUNS)),
    _favourite("colour", lambda rng: rng.choice(COLOURS)),
    Relation(
        facts=("{key} lives in {value}.", "{key} has a house in {value}."),
        backward=("In {value} lives {key}.",),
        questions=("Where does {key} live?", "In which town does {key} live?"),
        answer="{key} lives in {value}.",
        value=lambda rng: rng.choice(list(TOWNS)),
    ),
    Relation(
        facts=("{key} likes the {value}.", "{key} likes the {value} best."),
        questions=("What does {key} like?", "Which thing does {key} like?"),
        answer="{key} likes the {value}.",
        value=lambda rng: rng.choice(NOUNS),
    ),
    Relation(
        facts=("{key} keeps the {value}.",),
        backward=("The {value} is kept by {key}.",),
        questions=("What does {key} keep?", "Which thing is kept by {key}?"),
        answer="{key} keeps the {value}.",
        value=lambda rng: rng.choice(NOUNS),
    ),
    Relation(
        facts=("The {key} belongs to {value}.",),
        backward=("{value} owns the {key}.",),
        questions=("Who owns the {key}?", "Whose is the {key}?", "Who does the {key} belong to?"),
        answer="The {key} belongs to {value}.",
        value=any_name,
        keys="words",
    ),
    Relation(
        facts=("{key} has the {value}.",),
        backward=("The {value} is with {key}.",),
        questions=("What does {key} have?", "Which thing does {key} have?"),
        answer="{key} has the {value}.",
        value=lambda rng: f"{rng.choice(COLOURS)} {rng.choice(NOUNS)}",
    ),
    Relation(
        facts=("Box {key} holds a {value}.", "In box {key} there is a {value}."),
        questions=("What is in box {key}?", "What does box {key} hold?"),
        answer="Box {key} holds a {value}.",
        value=any_word,
        keys="numbers",
    ),
    Relation(
        facts=("{key}: {value}", "{key} = {value}"),
        questions=("What is the value of {key}?", "Which value belongs to {key}?", "{key}?"),
        answer="The value of {key} is {value}.",
        value=lambda rng: digits(rng, 4),
        keys="words",
    ),
)
_OPENINGS = (
    "Read these facts.",
    "Here are some facts.",
    "Remember the following.",
    "Here is a list.",
    "Use the text below to answer.",
    "",
)
_ACKNOWLEDGED = "I have read it. What would you like to know?"


def _key_pool(rng: random.Random, kind: str) -> Callable[[], str]:
    if kind == "numbers":
        return lambda: str(rng.randrange(100, 1000))
    if kind == "words":
        return lambda: rng.choice(NOUNS)
    style = rng.random()
    if style < 0.5:
        return lambda: rng.choice(FIRST_NAMES)
    if style < 0.8:
        return lambda: f"{rng.choice(FIRST_NAMES)} {rng.choice(SURNAMES)}"
    return lambda: invented_name(rng) if rng.random() < 0.5 else rng.choice(FIRST_NAMES)


def _templates(relation: Relation, order: Order) -> tuple[str, ...]:
    if order == "any":
        return relation.facts + relation.backward
    return relation.facts if order == "key first" else relation.backward


@dataclass(frozen=True)
class Fact:
    relation: Relation
    key: str
    value: str

    @property
    def content(self) -> str:
        return f"{self.key}|{self.value}"


def make_facts(rng: random.Random, max_len: int, length: Callable[[str], int], order: Order) -> tuple[str, list[Fact]]:
    """Write a text of at most `max_len` tokens and list the facts in it.

    Within one text a key stands once for each relation, so every question has one answer.
    """
    num_relations = 1 if rng.random() < 0.65 else rng.randint(2, 4)
    usable = [relation for relation in RELATIONS if relation.backward or order != "value first"]
    relations = rng.sample(usable, num_relations)
    templates = [rng.choice(_templates(relation, order)) for relation in relations]
    pools = [_key_pool(rng, relation.keys) for relation in relations]
    distraction = rng.choice((0.0, 0.0, 0.0, 0.03, 0.1))
    in_lines = rng.random() < 0.4 or any(template[-1] != "." for template in templates)
    separator = rng.choice(("\n", "\n- ")) if in_lines else " "
    opening = rng.choice(_OPENINGS)
    parts, facts, seen = ([opening] if opening else []), [], set()
    num_tokens, misses = length(opening), 0
    while misses < 20:
        fact = None
        if rng.random() < distraction:
            sentence = rng.choice(plain_text(rng).split(". ")).rstrip(".") + "."
        else:
            i = rng.randrange(num_relations)
            key = pools[i]()
            if (key, i) in seen:  # the pool runs dry in a long text
                misses += 1
                continue
            value = relations[i].value(rng)
            sentence = templates[i].format(key=key, value=value)
            fact = Fact(relations[i], key, value)
            seen.add((key, i))
        num_tokens += length(sentence) + (2 if in_lines else 0)
        if num_tokens > max_len:
            break
        parts.append(sentence)
        if fact is not None:
            facts.append(fact)
        misses = 0
    return separator.join(parts), facts


_NEEDLES = (
    "secret code",
    "magic number",
    "special number",
    "passkey",
    "code",
    "number",
    "password",
    "secret word",
    "code word",
    "magic word",
)
_NEEDLE_FACTS = ("The {} is {}.", "The {} is {}. Remember it.", "Remember that the {} is {}.", "Note: the {} is {}.")
_NEEDLE_QUESTIONS = ("What is the {}?", "What was the {}?", "Tell me the {}.", "Which {} does the text name?")


def _needle_value(rng: random.Random, split: Split, name: str) -> str:
    is_number = name in _NEEDLES[:6]
    return draw(
        split, lambda: digits(rng, rng.randint(3, 6)) if is_number else any_word(rng), lambda value: f"{name}|{value}"
    )


def _needles(
    rng: random.Random, split: Split, max_len: int, length: Callable[[str], int]
) -> tuple[str, list[tuple[str, str]]]:
    """Hide one to three single facts in prose about the Vale; give the text, questions and answers."""
    names = rng.sample(_NEEDLES, rng.choice((1, 1, 2, 3)) if split == "train" else 1)
    sentences, pairs = [], []
    for name in names:
        value = _needle_value(rng, split, name)
        sentences.append(rng.choice(_NEEDLE_FACTS).format(name, value))
        pairs.append((rng.choice(_NEEDLE_QUESTIONS).format(name), f"The {name} is {value}."))
    num_tokens = sum(map(length, sentences))
    straw: list[str] = []
    while num_tokens < max_len and not (max_len < 300 and rng.random() < 0.5):
        for sentence in plain_text(rng).split(". "):
            sentence = sentence.rstrip(".") + "."
            num_tokens += length(sentence)
            if num_tokens > max_len:
                break
            straw.append(sentence)
    for sentence in sentences:
        straw.insert(rng.randint(0, len(straw)), sentence)
    return " ".join(straw), pairs


def recall_conversation(
    rng: random.Random,
    split: Split,
    max_len: int,
    num_questions: int,
    length: Callable[[str], int],
    order: Order = "any",
) -> Conversation:
    """A text of about `max_len` tokens and questions about it, in one turn each.

    Nine in ten are lists of facts, the others prose with few facts hidden in it.
    """
    if order != "value first" and rng.random() < 0.1:
        text, pairs = _needles(rng, split, max_len, length)
    else:
        text, pairs = _fact_questions(rng, split, max_len, num_questions, length, order)
    return Conversation(_ask(rng, text, pairs))


def _fact_questions(
    rng: random.Random, split: Split, max_len: int, num_questions: int, length: Callable[[str], int], order: Order
) -> tuple[str, list[tuple[str, str]]]:
    """A list of facts, with questions and answers.

    A text that the relation's keys can not fill is extended with a second one, so that the length is
    reached in any case.
    """
    text, facts = make_facts(rng, max_len, length, order)
    while (missing := max_len - length(text)) > 60:
        more, more_facts = make_facts(rng, missing - 10, length, order)
        known = {(fact.key, fact.relation.answer) for fact in facts}
        if any((fact.key, fact.relation.answer) in known for fact in more_facts):
            continue
        text, facts = f"{text}\n\n{more}", facts + more_facts
    allowed = [fact for fact in facts if belongs(fact.content, split)]
    if not allowed:
        return _fact_questions(rng, split, max_len, num_questions, length, order)
    asked = rng.sample(allowed, min(num_questions, len(allowed)))
    return text, [
        (
            rng.choice(fact.relation.questions).format(key=fact.key),
            fact.relation.answer.format(key=fact.key, value=fact.value),
        )
        for fact in asked
    ]


def _ask(rng: random.Random, text: str, pairs: list[tuple[str, str]]) -> list[Message]:
    """Give the text in a system message, a turn of its own, or with the first question; then ask."""
    messages: list[Message] = []
    style = rng.random()
    if style < 0.1:
        messages = [{"role": "system", "content": text}]
    elif style < 0.3:
        messages = [user(text), assistant(_ACKNOWLEDGED)]
    for i, (question, answer) in enumerate(pairs):
        if i == 0 and style >= 0.3:
            separator = " " if style < 0.4 else "\n\n"
            question = f"{question}{separator}{text}" if style > 0.95 else f"{text}{separator}{question}"
        messages += exchange(question, answer)
    return messages
