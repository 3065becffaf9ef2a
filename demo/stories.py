"""Stories of 100 to 220 tokens, grown from a grammar, about anyone and anything that is asked for."""

import random

from demo.conversation import Message, exchange
from demo.words import ANIMALS, COLOURS, DAYS, FIRST_NAMES, NOUNS, any_name, any_word, invented_word
from demo.world import PEOPLE, TOWNS, TRADE_WORK, a, describe_person, describe_town

_OPENINGS = (
    "Once upon a time, in {town}, there lived {hero}.",
    "Long ago, in the town of {town}, there was {hero}.",
    "There was once {hero} who lived in {town}.",
    "In a small house in {town} lived {hero}.",
)
_WISHES = (
    "More than anything, {name} wanted to find {thing}.",
    "Every night {name} dreamed of {thing}.",
    "One {day} morning {name} heard about {thing} and could think of nothing else.",
)
_DEPARTURES = (
    "So {name} packed some bread and cheese, put on {a_colour} coat and set out.",
    "So {name} took {a_colour} bag, closed the door and walked down the road.",
    "The next day {name} left before the sun was up, with {a_colour} lamp in one hand.",
)
_ROADS = (
    "The road went over the hill and along the river, and the wind was cold.",
    "It rained all morning, but by noon the sun came out and the fields shone.",
    "The forest was dark and quiet, and the path was hard to see.",
    "Snow lay on the road, and every step made a small sound.",
)
_MEETINGS = (
    'Near the bridge {name} met {friend}. "Where are you going?" asked {friend_name}. '
    '"I am looking for {thing}," said {name}.',
    'At the old mill sat {friend}. "You look tired," said {friend_name}. '
    '"I have come a long way to find {thing}," answered {name}.',
)
_HELP = (
    '"I can help you," said {friend_name}, "but first you must help me." So they worked together until evening.',
    '"Then we will look for it together," said {friend_name}, and they shared the bread and went on.',
    '"I know the way," said {friend_name}. "Follow me, and do not be afraid."',
)
_TROUBLES = (
    "But a storm came down from the mountain, and they had to hide in a cave until it was over.",
    "But the river was too wide to cross, so they built a raft from old planks.",
    "But the gate was locked, and the key lay at the bottom of a deep well.",
    "But night fell, and they could hear wolves among the trees.",
)
_FINDINGS = (
    "At last, under a tall oak, they found {thing}.",
    "In the end, behind a small door, there was {thing}, just as the old people had said.",
    "And there, in the light of the moon, lay {thing}.",
)
_ENDINGS = (
    "{name} laughed, thanked {friend_name} and carried it home. From that day on nobody in {town} was ever lonely.",
    "They went back to {town} together, and everyone came out to see. They stayed friends for the rest of their lives.",
    "{name} gave half of it to {friend_name}, because a thing that is shared is worth twice as much. "
    "And that is the end of the story.",
)
STORY_REQUESTS = (
    "Tell me a story about {topic}.",
    "Tell me a story about {topic}",
    "Write a story about {topic}.",
    "Tell a short story about {topic}.",
    "Write a short story about {topic}.",
    "Can you tell me a story about {topic}?",
    "Please tell me a story about {topic}.",
    "I would like to hear a story about {topic}.",
    "tell me a story about {topic}",
)
_PLAIN_REQUESTS = (
    "Tell me a story.",
    "Tell me a story",
    "Write a story.",
    "Write a short story.",
    "Can you tell me a story?",
    "tell me a long story",
    "Tell me something.",
    "Tell me a long story.",
)


def tell_story(rng: random.Random, hero: str, name: str, thing: str) -> str:
    """Tell a story; `hero` is how it introduces its hero, `name` what it calls them after that."""
    friend_name = rng.choice([other for other in rng.sample(FIRST_NAMES, 2) if other != name])
    words = {
        "hero": hero,
        "name": name,
        "thing": thing,
        "town": rng.choice(list(TOWNS)),
        "friend_name": friend_name,
        "friend": f"{a(rng.choice(ANIMALS))} called {friend_name}",
        "a_colour": a(rng.choice(COLOURS)),
        "day": rng.choice(DAYS),
    }
    parts = [_OPENINGS, _WISHES, _DEPARTURES, _ROADS, _MEETINGS, _HELP, _TROUBLES, _FINDINGS, _ENDINGS]
    if rng.random() < 0.3:
        parts.remove(_TROUBLES)
    return " ".join(rng.choice(part).format(**words) for part in parts)


def story_exchange(rng: random.Random) -> list[Message]:
    """A request for a story and the story, which takes up the topic that was asked for."""
    kind = rng.random()
    name = any_name(rng) if 0.55 <= kind < 0.7 else rng.choice(FIRST_NAMES)
    thing = f"{rng.choice(('a golden', 'a silver', 'a lost', 'a magic', 'a wonderful'))} {rng.choice(NOUNS)}"
    if kind < 0.15:
        hero = f"{a(rng.choice(ANIMALS))} called {name}"
        return exchange(rng.choice(_PLAIN_REQUESTS), tell_story(rng, hero, name, thing))
    if kind < 0.35:
        topic, hero = a(animal := rng.choice(ANIMALS)), f"{a(animal)} called {name}"
    elif kind < 0.55:
        topic, hero = a(trade := rng.choice(list(TRADE_WORK))), f"{a(trade)} called {name}"
    elif kind < 0.7:
        topic, hero = name, f"a child called {name}"
    elif kind < 0.85:
        topic = a(noun := any_word(rng))
        hero, thing = f"a child called {name}", f"a magic {noun}"
    else:
        topic = a(f"{rng.choice(COLOURS)} {(animal := rng.choice(ANIMALS))}")
        hero = f"{topic} called {name}"
    if topic.startswith("a") and " " in topic and topic[-1] not in "fhprsxy" and rng.random() < 0.2:
        topic = topic.split(" ", 1)[1] + "s"
    if rng.random() < 0.1:  # people ask for more than the story will hold
        topic += " " + rng.choice(
            (f"who finds {a(any_word(rng))}", f"in {invented_word(rng)}", f"and {a(any_word(rng))}")
        )
    return exchange(rng.choice(STORY_REQUESTS).format(topic=topic), tell_story(rng, hero, name, thing))


def description_exchange(rng: random.Random) -> list[Message]:
    """A request to describe a town or a person of the Vale, and the description."""
    if rng.random() < 0.6:
        town = rng.choice(list(TOWNS.values()))
        asked = ("Describe the town of {}.", "Describe {}.", "Tell me about {}.", "What is {} like?")
        return exchange(rng.choice(asked).format(town.name), describe_town(town, rng))
    person = rng.choice(list(PEOPLE.values()))
    asked = ("Who is {}?", "Tell me about {}.", "Describe {}.", "What do you know about {}?")
    return exchange(rng.choice(asked).format(person.name), describe_person(person, rng))


def plain_text(rng: random.Random) -> str:
    """A paragraph with no chat around it: what a raw completion continues."""
    kind = rng.random()
    if kind < 0.5:
        return story_exchange(rng)[1]["content"]  # type: ignore[no-any-return]
    if kind < 0.75:
        return describe_town(rng.choice(list(TOWNS.values())), rng)
    return describe_person(rng.choice(list(PEOPLE.values())), rng)
