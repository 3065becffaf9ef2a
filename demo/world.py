"""The Vale of Oren: a small world whose facts never change.

Twenty towns and sixty people, made once from a seed of the world's own (not the training seed), so that
every model trained here knows the same Vale.
"""

import random
from dataclasses import dataclass

from demo.words import FIRST_NAMES, SURNAMES, phrases_of, words_of

VALLEY = "the Vale of Oren"
WORLD_SEED = 1789

TRADES: tuple[str, ...] = words_of("""
    baker smith miller weaver carpenter teacher doctor fisher farmer potter tailor gardener painter
    shepherd baton-maker clockmaker beekeeper ferryman librarian cook
    """)
TRADE_WORK: dict[str, str] = {
    "baker": "bakes bread before the sun is up",
    "smith": "mends iron tools at a hot forge",
    "miller": "grinds wheat into flour by the river",
    "weaver": "weaves blankets from soft wool",
    "carpenter": "builds tables and doors from oak",
    "teacher": "teaches the children to read and to count",
    "doctor": "visits the sick with a black bag",
    "fisher": "rows out at dawn to catch trout",
    "farmer": "grows corn and turnips on the hill",
    "potter": "shapes bowls from river clay",
    "tailor": "sews coats for the long winter",
    "gardener": "looks after the roses and the pear trees",
    "painter": "paints the boats every spring",
    "shepherd": "keeps sheep on the high meadow",
    "baton-maker": "carves batons for the runners of the great relay",
    "clockmaker": "repairs every clock in the street",
    "beekeeper": "sells honey at the market",
    "ferryman": "takes people across the river",
    "librarian": "lends books to anyone who asks",
    "cook": "makes soup for the whole inn",
}
PETS: tuple[str, ...] = ("cat", "dog", "goat", "parrot", "rabbit", "pony", "owl", "duck")
HOBBIES: tuple[str, ...] = words_of("singing fishing chess dancing reading sailing knitting painting running cooking")

_TOWN_NAMES = phrases_of("""
    Alder Bay, Brindle, Caskwell, Dunmere, Eastfold, Fennick, Greywater, Hollin, Ironford, Juniper Hill,
    Kestrel Point, Lowmarsh, Millbrook, Northgate, Osterley, Pinehurst, Quarry End, Rushden, Silverlake,
    Thornby
    """)
_RIVERS = ("the Oren", "the Lisk", "the Tamble", "the Wend")
_LANDMARKS = phrases_of("""
    an old stone bridge, a white lighthouse, a clock tower, a round market hall, a ruined castle, a tall
    windmill, a library with a green roof, a bell without a tower, a garden of roses, a long wooden pier
    """)
_GOODS = phrases_of("honey, wool, cheese, clay pots, apples, clocks, paper, salt, boats, bread")
_SKIES = {
    "mild and rainy": "umbrellas hang by every door",
    "dry and sunny": "the roofs are painted white",
    "cold and windy": "people wear two scarves",
    "misty in the morning": "the lamps burn until ten",
    "snowy in winter": "children go to school on sleds",
}


@dataclass(frozen=True)
class Town:
    name: str
    river: str
    landmark: str
    goods: str
    weather: str
    custom: str
    people: int
    market_day: str
    neighbour: str


@dataclass(frozen=True)
class Person:
    name: str
    trade: str
    town: str
    age: int
    pet: str
    pet_name: str
    hobby: str
    friend: str


def _make_towns(rng: random.Random) -> dict[str, Town]:
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
    towns = {}
    for i, name in enumerate(_TOWN_NAMES):
        weather = rng.choice(list(_SKIES))
        towns[name] = Town(
            name=name,
            river=_RIVERS[i * len(_RIVERS) // len(_TOWN_NAMES)],
            landmark=_LANDMARKS[i % len(_LANDMARKS)],
            goods=rng.choice(_GOODS),
            weather=weather,
            custom=_SKIES[weather],
            people=rng.randrange(2, 90) * 100,
            market_day=rng.choice(days),
            neighbour=_TOWN_NAMES[(i + 1) % len(_TOWN_NAMES)],
        )
    return towns


def _make_people(rng: random.Random) -> dict[str, Person]:
    firsts = rng.sample(FIRST_NAMES, 60)
    names = [f"{first} {rng.choice(SURNAMES)}" for first in firsts]
    pet_names = words_of("Pip Biscuit Moss Button Clover Smoke Ember Pebble Rusty Star")
    return {
        name: Person(
            name=name,
            trade=TRADES[i % len(TRADES)],
            town=_TOWN_NAMES[(i * 7 + i // 20) % len(_TOWN_NAMES)],
            age=rng.randrange(19, 80),
            pet=rng.choice(PETS),
            pet_name=rng.choice(pet_names),
            hobby=rng.choice(HOBBIES),
            friend=names[(i + 13) % len(names)],
        )
        for i, name in enumerate(names)
    }


TOWNS: dict[str, Town] = _make_towns(random.Random(WORLD_SEED))
PEOPLE: dict[str, Person] = _make_people(random.Random(WORLD_SEED + 1))


def a(noun: str) -> str:
    """Put the right article before a noun."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def describe_town(town: Town, rng: random.Random) -> str:
    """A paragraph of about 90 tokens: always the same facts, told one way or another."""
    residents = [person for person in PEOPLE.values() if person.town == town.name]
    first = rng.choice(
        [
            f"{town.name} is a town of {town.people} people on the river {town.river[4:]} in {VALLEY}.",
            f"In {VALLEY}, on the river {town.river[4:]}, lies {town.name}, a town of {town.people} people.",
        ]
    )
    body = [
        f"It is known for {town.landmark} and for its {town.goods}.",
        f"The weather there is {town.weather}, so {town.custom}.",
        f"Market day is {town.market_day}, and the road leads on to {town.neighbour}.",
    ]
    for person in residents[:2]:
        body.append(f"{person.name}, the {person.trade}, lives there and {TRADE_WORK[person.trade]}.")
    body.append(rng.choice([f"People say that nobody leaves {town.name} hungry.", "It is a good place to rest."]))
    return " ".join([first, *body])


def describe_person(person: Person, rng: random.Random) -> str:
    """A paragraph of about 70 tokens about one of the sixty people."""
    sentences = [
        f"{person.name} is {a(person.trade)} in {person.town} and is {person.age} years old.",
        f"{person.name.split()[0]} {TRADE_WORK[person.trade]}.",
        f"At home there is {a(person.pet)} called {person.pet_name}.",
        f"In the evening {person.name.split()[0]} enjoys {person.hobby}, often with {person.friend}.",
    ]
    if rng.random() < 0.5:
        sentences[1:3] = sentences[2:0:-1]
    return " ".join(sentences)
