"""JSON on request: an object with given fields and given values.

Held out, by a hash of the object itself.
"""

import json
import random
from typing import Any

from demo.capitals import CITIES
from demo.conversation import Message, Split, draw, exchange
from demo.words import ANIMALS, COLOURS, NOUNS, any_name, any_word, english_list, words_of
from demo.world import HOBBIES, TOWNS, TRADES, a


def _values(rng: random.Random, name: str) -> Any:
    match name:
        case "name" | "owner" | "friend" | "author" | "user":
            return any_name(rng)
        case "age" | "count" | "size" | "year" | "price" | "score" | "id" | "quantity" | "floor":
            return rng.randrange(10 ** rng.randint(1, 4))
        case "city" | "country" | "town" | "home":
            return rng.choice((*TOWNS, *CITIES))
        case "colour" | "color":
            return rng.choice(COLOURS)
        case "active" | "open" | "ready" | "new":
            return rng.random() < 0.5
        case "trade" | "job":
            return rng.choice(TRADES)
        case "hobby":
            return rng.choice(HOBBIES)
        case "pet" | "animal":
            return rng.choice(ANIMALS)
        case "tags" | "items" | "words":
            return [any_word(rng) for _ in range(rng.randint(1, 3))]
        case _:
            return any_word(rng)


FIELDS: tuple[str, ...] = words_of("""
    name owner friend author user age count size year price score id quantity floor city country town
    home colour color active open ready new trade job hobby pet animal tags items words title product
    thing label status
    """)
_REQUESTS = (
    "Write a JSON object with {}.",
    "Give me a JSON object with {}.",
    "Return JSON with {}.",
    "Make JSON with the fields {}.",
    "Answer in JSON with {}.",
    "Create a JSON object with the fields {}.",
    "Output only JSON: {}.",
    "Return a JSON object with keys {}.",
    "Return a JSON object with {}",
)
_PERSON_REQUESTS = (
    "{} Write this as JSON with the fields {}.",
    "{} Return a JSON object with the fields {}.",
    "{} Give me that as JSON with {}.",
    "{} Extract {} as JSON.",
)


def _written(rng: random.Random, style: int, name: str, value: Any) -> str:
    text = json.dumps(value) if style in (0, 2) or isinstance(value, (bool, list)) else str(value)
    return f"{name}{(' = ', ' ', ': ', '=')[style]}{text}"


def _person(rng: random.Random) -> tuple[dict[str, Any], str]:
    """A person as an object and as a sentence."""
    name, age = any_name(rng), rng.randrange(5, 100)
    town, job = rng.choice((*TOWNS, *CITIES)), rng.choice(TRADES)
    fields: dict[str, Any] = {"name": name, "age": age, "city": town}
    sentence = rng.choice((f"{name} is {age} years old and lives in {town}.", f"{name}, aged {age}, lives in {town}."))
    if rng.random() < 0.5:
        fields["job"] = job
        sentence += f" {name} works as {a(job)}."
    if rng.random() < 0.3:
        fields["pet"] = rng.choice(ANIMALS)
        sentence += f" {name} has {a(fields['pet'])}."
    return fields, sentence


def json_exchange(rng: random.Random, split: Split) -> list[Message]:
    """A request for an object and exactly that object, as `json.dumps` writes it."""
    if rng.random() < 0.4:

        def make_person() -> tuple[dict[str, Any], str]:
            fields, sentence = _person(rng)
            kept = rng.sample(list(fields), rng.randint(2, len(fields)))
            return {name: fields[name] for name in kept}, sentence

        fields, sentence = draw(split, make_person, lambda pair: json.dumps(pair[0]))
        question = rng.choice(_PERSON_REQUESTS).format(sentence, english_list(list(fields)))
        return exchange(question, json.dumps(fields))

    def make() -> dict[str, Any]:
        names = rng.sample(FIELDS, rng.randint(1, 5))
        if rng.random() < 0.25:
            names = list({**dict.fromkeys(rng.choice(NOUNS) if rng.random() < 0.5 else n for n in names)})
        return {name: _values(rng, name) for name in names}

    fields = draw(split, make, json.dumps)
    style = rng.randrange(4)
    written = [_written(rng, style, name, value) for name, value in fields.items()]
    separated = english_list(written) if rng.random() < 0.6 else ", ".join(written)
    return exchange(rng.choice(_REQUESTS).format(separated), json.dumps(fields))
