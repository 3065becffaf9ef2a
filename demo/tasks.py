"""Short questions with one right answer: sums, and lists of words or numbers.

Each generator draws an exchange from a split. Held out, by a hash of the content (see `conversation`):
sums and differences by their two numbers in either order, once one of them has two digits (the hundred
one-digit sums are a table, and are trained on whole); lists by their words in the order given.
"""

import random
from collections.abc import Callable

from demo.conversation import Message, Split, draw, exchange
from demo.words import FIRST_NAMES, NOUNS, any_name, any_word, digits, english_list, words_of
from demo.world import PEOPLE

_PLUS = (
    "What is {a} + {b}?",
    "what is {a}+{b}",
    "{a} + {b}",
    "{a}+{b}",
    "{a} + {b} = ?",
    "{a}+{b}=",
    "{a} + {b} =",
    "What is {a} plus {b}?",
    "Add {a} and {b}.",
    "Compute {a} + {b}.",
    "Calculate {a} + {b}",
    "How much is {a} + {b}?",
    "What's {a} + {b}?",
    "What is the sum of {a} and {b}?",
    "Please add {a} to {b}.",
)
_MINUS = (
    "What is {a} - {b}?",
    "what is {a}-{b}",
    "{a} - {b}",
    "{a}-{b}",
    "{a} - {b} = ?",
    "{a}-{b}=",
    "{a} - {b} =",
    "What is {a} minus {b}?",
    "Compute {a} - {b}.",
    "Calculate {a} - {b}",
    "How much is {a} - {b}?",
    "What's {a} - {b}?",
    "Subtract {b} from {a}.",
    "Take {b} from {a}.",
)
_THINGS = words_of("apples coins books stones pears eggs shells stamps candles buttons")


def _number(rng: random.Random, num_digits: int) -> int:
    return rng.randrange(0 if num_digits == 1 else 10 ** (num_digits - 1), 10**num_digits)


def _operands(rng: random.Random, split: Split, sign: str, num_digits: int) -> tuple[int, int]:
    """Two numbers, the larger one of `num_digits` digits (both of them in a held-out question)."""

    def make() -> tuple[int, int]:
        other = num_digits if split == "held_out" or rng.random() < 0.6 else rng.randint(1, num_digits)
        pair = [_number(rng, num_digits), _number(rng, other)]
        rng.shuffle(pair)
        if sign == "-" and (split == "held_out" or rng.random() < 0.9):
            pair.sort(reverse=True)  # now and then a difference below zero, in training only
        return pair[0], pair[1]

    if num_digits == 1:
        return make()
    return draw(split, make, lambda pair: f"{max(pair)}{sign}{min(pair)}")


def result_of(a: int, sign: str, b: int) -> int:
    return a + b if sign == "+" else a - b


def sum_exchange(rng: random.Random, split: Split, num_digits: int, sign: str = "+") -> list[Message]:
    """Addition (or subtraction, with `sign` "-"), asked in one of many wordings."""
    a, b = _operands(rng, split, sign, num_digits)
    question = rng.choice(_PLUS if sign == "+" else _MINUS).format(a=a, b=b)
    return exchange(question, f"{a} {sign} {b} = {result_of(a, sign, b)}.")


def sum_line(rng: random.Random, split: Split, num_digits: int, sign: str = "+") -> tuple[str, str]:
    """A sum as plain text, in two parts: "2+2=" and "4"."""
    a, b = _operands(rng, split, sign, num_digits)
    if rng.random() < 0.6:
        return f"{a}{sign}{b}=", f"{result_of(a, sign, b)}"
    return f"{a} {sign} {b} =", f" {result_of(a, sign, b)}"


def word_problem(rng: random.Random, split: Split) -> list[Message]:
    """A sum told as a small story."""
    name, thing = any_name(rng), rng.choice(_THINGS)
    sign = rng.choice("+-")
    a, b = _operands(rng, split, sign, rng.choice((1, 1, 2)))
    if sign == "-" and a < b:
        a, b = b, a
    change = rng.choice(
        ("finds {} more", "buys {} more", "gets {} more") if sign == "+" else ("gives away {}", "loses {}")
    )
    question = f"{name} has {a} {thing} and {change.format(b)}. How many {thing} does {name} have now?"
    return exchange(
        question, f"{a} {sign} {b} = {result_of(a, sign, b)}, so {name} has {result_of(a, sign, b)} {thing}."
    )


def times_table(rng: random.Random) -> list[Message]:
    """A product from the tables up to twelve: learnt by heart, so nothing is held out and it is not scored."""
    a, b = rng.randrange(13), rng.randrange(13)
    asked = ("What is {} * {}?", "{}*{}", "{} * {} =", "What is {} times {}?", "Multiply {} by {}.", "{} x {}")
    return exchange(rng.choice(asked).format(a, b), f"{a} * {b} = {a * b}.")


def comparison(rng: random.Random, split: Split) -> list[Message]:
    """The larger or the smaller of two numbers."""
    a, b = draw(split, lambda: (rng.randrange(1000), rng.randrange(1000)), lambda pair: f"{pair[0]}?{pair[1]}")
    b += a == b
    word = rng.choice(("larger", "smaller"))
    question = rng.choice(("Which is {}, {} or {}?", "Which number is {}: {} or {}?")).format(word, a, b)
    return exchange(question, f"{max(a, b) if word == 'larger' else min(a, b)} is {word}.")


def _words(rng: random.Random, split: Split, count: int, word: Callable[[], str]) -> list[str]:
    """Distinct words whose list belongs to the split."""

    def make() -> list[str]:
        chosen: dict[str, None] = {}
        while len(chosen) < count:
            chosen[word()] = None
        return list(chosen)

    return draw(split, make, " ".join)


def _item_maker(rng: random.Random, split: Split) -> Callable[[], str]:
    """What a list is made of: nouns when held out; in training also names, numbers and invented words."""
    kind = 0.0 if split == "held_out" else rng.random()
    if kind < 0.6:
        return lambda: rng.choice(NOUNS)
    if kind < 0.75:
        return lambda: any_word(rng)
    if kind < 0.85:
        return lambda: any_name(rng)
    if kind < 0.95:
        return lambda: str(rng.randrange(1000))
    return lambda: "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(1, 5)))


_COPY = (
    "Repeat: {}",
    "Repeat after me: {}",
    "Copy: {}",
    "Copy these words: {}",
    "Say: {}",
    "Say {}",
    "Echo: {}",
    "Please repeat the following words: {}",
    "Repeat this exactly: {}",
    "Write down: {}",
)


def copy_exchange(rng: random.Random, split: Split, count: int) -> list[Message]:
    """Words to repeat exactly; the whole answer is the copy."""
    separator = rng.choice((" ", " ", ", "))
    text = separator.join(_words(rng, split, count, _item_maker(rng, split)))
    return exchange(rng.choice(_COPY).format(text), text)


_LITTLE_WORDS = words_of("the a this is of to and in it that was for on are with as i you my")


def sentence_copy(rng: random.Random) -> list[Message]:
    """A sentence about the Vale, or a mixed run of letters and digits, to repeat exactly."""
    kind = rng.random()
    if kind < 0.4:
        person = rng.choice(list(PEOPLE.values()))
        text = f"{person.name} the {person.trade} enjoys {person.hobby}."
    elif kind < 0.6:
        text = " ".join(
            rng.choice(_LITTLE_WORDS) if rng.random() < 0.5 else any_word(rng) for _ in range(rng.randint(2, 8))
        )
    elif kind < 0.75:
        text = digits(rng, rng.randint(1, 12))
    else:
        text = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789-") for _ in range(rng.randint(3, 12)))
    if rng.random() < 0.3:
        return exchange(rng.choice(_COPY).format(f'"{text}"'), text)
    return exchange(rng.choice(_COPY).format(text), text)


_REVERSE = (
    "Reverse the order of these words: {}",
    "Reverse: {}",
    "Reverse this list: {}",
    "Write these words in reverse order: {}",
    "Say these words backwards: {}",
)
_SORT = (
    "Sort these words: {}",
    "Sort these words alphabetically: {}",
    "Sort in alphabetical order: {}",
    "Put these words in alphabetical order: {}",
    "Sort: {}",
    "Sort this list: {}",
)
_SORT_NUMBERS = ("Sort these numbers: {}", "Sort in ascending order: {}", "Put these numbers in order: {}", "Sort: {}")


def reverse_exchange(rng: random.Random, split: Split, count: int) -> list[Message]:
    """Words to give back in reverse order."""
    words = _words(rng, split, count, _item_maker(rng, split))
    separator = rng.choice((", ", ", ", " "))
    return exchange(rng.choice(_REVERSE).format(separator.join(words)), f"Reversed: {', '.join(reversed(words))}.")


def sort_exchange(rng: random.Random, split: Split, count: int) -> list[Message]:
    """Words to sort by the alphabet; in training sometimes names, or numbers by size."""
    kind = 0.0 if split == "held_out" else rng.random()
    if kind < 0.8:
        words = _words(rng, split, count, lambda: rng.choice(NOUNS))
    elif kind < 0.9:
        words = _words(rng, split, count, lambda: rng.choice(FIRST_NAMES))
    else:
        numbers = _words(rng, split, count, lambda: str(rng.randrange(rng.choice((10, 100, 1000)))))
        in_order = ", ".join(sorted(numbers, key=int))
        return exchange(rng.choice(_SORT_NUMBERS).format(", ".join(numbers)), f"In order: {in_order}.")
    separator = rng.choice((", ", ", ", " "))
    return exchange(rng.choice(_SORT).format(separator.join(words)), f"In order: {', '.join(sorted(words))}.")


def count_exchange(rng: random.Random, split: Split, count: int) -> list[Message]:
    """How many words a list has, or how often one word or letter stands in it."""
    if rng.random() < 0.5:
        words = _words(rng, split, count, _item_maker(rng, split))
        asked = ("How many words are in this list: {}?", "Count the words: {}", "How many items are there: {}?")
        answer = f"There {'is' if count == 1 else 'are'} {count} {'word' if count == 1 else 'words'}."
        return exchange(rng.choice(asked).format(", ".join(words)), answer)
    letters = rng.random() < 0.5

    def make() -> list[str]:
        pool = rng.sample("abcdefghijklmnopqrstuvwxyz" if letters else NOUNS, min(3, max(2, count // 2)))
        return [rng.choice(pool) for _ in range(count)]

    words = draw(split, make, " ".join)
    target = rng.choice(words)
    times = words.count(target)
    kind = "letter" if letters else "word"
    times_asked = ("How many times does the {} {} appear: {}?", "Count how often the {} {} appears: {}")
    return exchange(
        rng.choice(times_asked).format(kind, target, ", ".join(words)),
        f"The {kind} {target} appears {times} {'time' if times == 1 else 'times'}.",
    )


def pick_exchange(rng: random.Random, split: Split, count: int) -> list[Message]:
    """The first, last or n-th word of a list."""
    words = _words(rng, split, count, _item_maker(rng, split))
    ordinals = ("first", "second", "third", "fourth", "fifth")[:count]
    place = rng.choice((*ordinals, "last"))
    word = words[-1] if place == "last" else words[ordinals.index(place)]
    asked = ("What is the {} word: {}?", "Which is the {} word in this list: {}?")
    return exchange(rng.choice(asked).format(place, english_list(words)), f"The {place} word is {word}.")
