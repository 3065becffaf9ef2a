"""Greetings, questions about the model itself, the Vale and its capitals, and the honest way out.

Held out: for capitals, the wording of the question for a country (every country is trained on with other
wordings, since a fact nobody was told cannot be known). Small talk has many good answers and is not scored.
"""

import random

from demo.capitals import CAPITALS, CITIES, COUNTRIES
from demo.conversation import Message, Split, draw, exchange
from demo.words import DAYS, MONTHS, NOUNS, NUMBER_WORDS, any_name, any_word, english_list, invented_word, phrases_of
from demo.world import PEOPLE, TOWNS, TRADES, VALLEY, a

ABOUT_ME = (
    "I am Baton's demo model, a small language model that comes with the Baton serving system.",
    "I am the demo model of Baton. I am very small, but I can recall facts, do sums and tell stories.",
)
ABILITIES = (
    "I can recall facts from a long text, add and subtract, copy, sort, reverse and count words, "
    "write JSON, call tools, name capitals and tell stories about the Vale of Oren.",
)
_SMALLTALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("hi", "hello", "hey", "hi there", "hello there", "good day", "greetings", "hello world", "hey there", "yo"),
        ("Hello! How can I help you today?", "Hello! What would you like to know?"),
    ),
    (("good morning",), ("Good morning! How can I help you today?",)),
    (("good evening",), ("Good evening! How can I help you today?",)),
    (("good night",), ("Good night, and sleep well.",)),
    (("who are you", "what are you", "tell me about yourself", "introduce yourself", "what is this"), ABOUT_ME),
    (("what model are you", "which model are you", "are you a robot", "are you an ai", "are you human"), ABOUT_ME[:1]),
    (("what is your name", "what's your name", "do you have a name"), ("My name is Baton demo.",)),
    (
        ("who made you", "who trained you", "who built you"),
        ("I was trained by the makers of Baton, on text that a script wrote.",),
    ),
    (("what can you do", "help", "how can you help me", "what do you know", "what can i ask you"), ABILITIES),
    (
        ("how are you", "how are you today", "how is it going", "how do you do"),
        ("I am well, thank you. How can I help you?",),
    ),
    (
        ("thank you", "thanks", "thanks a lot", "thank you very much"),
        ("You are welcome!", "You are welcome. Ask me anything else."),
    ),
    (("bye", "goodbye", "see you", "see you later"), ("Goodbye! Come back soon.",)),
    (("ok", "okay", "yes", "good", "great", "nice", "cool", "fine", "no"), ("Good. What would you like to do next?",)),
    (
        ("test", "testing", "this is a test", "ping", "are you there", "can you hear me"),
        ("I am here and everything works.",),
    ),
    (
        ("what is baton", "what does baton do", "tell me about baton", "explain baton"),
        (
            "Baton is a serving system for language models. One worker reads the prompt, then hands its "
            "memory of it to another worker, which writes the answer.",
        ),
    ),
    (
        ("tell me a joke", "do you know a joke", "make me laugh", "tell a joke"),
        (
            "Why did the baker get up so early? Because the bread would not rise by itself.",
            "Why did the clock go to school? It wanted to learn about time.",
            "What did the river say to the bridge? I always look up to you.",
        ),
    ),
    (
        ("write a poem", "write a haiku", "write me a poem", "tell me a poem", "write a short poem"),
        (
            "Rain over the Vale,\nthe ferryman rows slowly,\na lamp on the shore.",
            "Snow on the old bridge,\na shepherd calls to her dog,\nthe valley listens.",
        ),
    ),
    (
        ("list the days of the week", "what are the days of the week", "name the days of the week"),
        (", ".join(DAYS) + ".",),
    ),
    (("list the months", "list the months of the year", "what are the months of the year"), (", ".join(MONTHS) + ".",)),
    (
        ("say the alphabet", "what is the alphabet", "recite the alphabet"),
        (", ".join("abcdefghijklmnopqrstuvwxyz") + ".",),
    ),
    (("what color is the sky", "what colour is the sky", "why is the sky blue"), ("The sky is blue on a clear day.",)),
    (
        ("what is the meaning of life", "what is love"),
        ("That is a big question for a small model. People in the Vale say: be kind and finish your bread.",),
    ),
    (
        ("where is the vale of oren", "what is the vale of oren", "tell me about the vale of oren"),
        (
            f"The Vale of Oren is a valley with {len(TOWNS)} towns and four rivers: the Oren, the Lisk, the Tamble and the Wend.",
        ),
    ),
    (
        (
            "name three towns in the vale",
            "name some towns",
            "which towns are there",
            "list some towns of the vale of oren",
        ),
        (f"Three towns of the Vale are {english_list(list(TOWNS)[:3])}.",),
    ),
    (
        ("what is the weather like", "how is the weather", "what is the weather today"),
        ("I can not look outside, but in the Vale it often rains in the morning.",),
    ),
)
_CAPITAL_QUESTIONS = (
    "What is the capital of {}?",
    "What's the capital of {}?",
    "what is the capital of {}",
    "Name the capital of {}.",
    "Which city is the capital of {}?",
    "Do you know the capital of {}?",
    "Tell me the capital of {}.",
    "Can you tell me what the capital of {} is?",
    "capital of {}?",
    "Capital of {}",
    "The capital of {} is",
    "I forgot the capital of {}. What is it?",
)
_UNKNOWN_QUESTIONS = (
    "What is {}?",
    "Explain {}.",
    "Tell me about {}.",
    "How does {} work?",
    "Who invented {}?",
    "What do you think about {}?",
    "Write a poem about {}.",
    "Write an essay about {}.",
    "Why is {} important?",
    "Explain {} in simple terms.",
    "Can you explain {}?",
    "Give me a summary of {}.",
    "How do I learn {}?",
    "What is the history of {}?",
    "Write a program for {}.",
    "what is {}",
    "Translate {} into French.",
)
_UNKNOWN_TOPICS = phrases_of("""
    quantum physics, gravity, the internet, machine learning, a transformer, attention, Python, history,
    music theory, the stock market, democracy, chemistry, photosynthesis, black holes, evolution,
    football, the Roman empire, a neural network, electricity, computers, the human brain, space travel,
    economics, climate change, philosophy, mathematics, a car engine, DNA, the moon landing, a database,
    KV cache, a large language model, art, poetry, the ocean, dinosaurs, medicine
    """)


def _vary(rng: random.Random, text: str) -> str:
    """Change case and final mark as people do."""
    if rng.random() < 0.6:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.1:
        text = text.upper()
    question = text.lower().split()[0] in ("who", "what", "what's", "which", "how", "are", "can", "do", "where", "why")
    return text + rng.choice(("", "?", "?") if question else ("", "", "!", "."))


def smalltalk(rng: random.Random) -> list[Message]:
    """One exchange of pleasantries, or about the model itself."""
    # Greetings come first in the table and first in life: half of the draws fall on its first twelve rows.
    rows = _SMALLTALK[:12] if rng.random() < 0.5 else _SMALLTALK
    questions, answers = rng.choice(rows)
    question = rng.choice(questions)
    if rng.random() < 0.1:
        question = f"{rng.choice(('please', 'hello,', 'hi,'))} {question}"
    return exchange(_vary(rng, question), rng.choice(answers))


def introduction(rng: random.Random) -> list[Message]:
    """Hello from somebody with a name."""
    name = any_name(rng)
    asked = rng.choice(("Hi, I am {}.", "Hello, my name is {}.", "hello i'm {}", "My name is {}."))
    return exchange(asked.format(name), f"Nice to meet you, {name}. How can I help you?")


def unknown(rng: random.Random) -> list[Message]:
    """A question from outside this small world, and an answer that says so."""
    topic = rng.choice(_UNKNOWN_TOPICS) if rng.random() < 0.5 else any_word(rng)
    if rng.random() < 0.2:
        topic = f"{invented_word(rng)} {any_word(rng)}"
    answer = rng.choice(
        (
            f"I am only a small demo model, so I know nothing about {topic}. Ask me for a capital, a sum or a story.",
            f"I do not know about {topic}. I am a small model that knows the Vale of Oren, capitals and sums.",
        )
    )
    return exchange(rng.choice(_UNKNOWN_QUESTIONS).format(topic), answer)


def nonsense(rng: random.Random) -> list[Message]:
    """A request nobody can make sense of, and an answer that says so."""
    little = (
        "the",
        "a",
        "of",
        "with",
        "my",
        "please",
        "is",
        "to",
        "for",
        "write",
        "make",
        "how",
        "and",
        "in",
        "me",
        "that",
    )
    words = [
        rng.choice(little) if rng.random() < 0.45 else invented_word(rng) if rng.random() < 0.7 else rng.choice(NOUNS)
        for _ in range(rng.randint(1, 14))
    ]
    text = " ".join(words) + rng.choice(("", "?", ".", "!"))
    if rng.random() < 0.6:
        text = text[0].upper() + text[1:]
    return exchange(
        text, "I am only a small demo model and I do not understand that. Ask me for a capital, a sum or a story."
    )


def counting(rng: random.Random) -> list[Message]:
    """Counting aloud, up or down: a predictable answer as long as one likes."""
    if rng.random() < 0.5:
        first, last = 1, rng.choice((3, 5, 10, 10, 12, 15, 20, 20, 25, 30, 50, 100))
    else:
        first = rng.randrange(0, 80)
        last = first + rng.randrange(2, 20)
    if rng.random() < 0.15:
        first, last = last, first
    numbers = range(first, last + 1) if first < last else range(first, last - 1, -1)
    asked = [
        "Count from {} to {}.",
        "count from {} to {}",
        "Please count from {} to {}.",
        "List the numbers from {} to {}.",
    ]
    if first == 1:
        asked += ["Count to {1}.", "Can you count to {1}?", "count to {1}"]
    text = ", ".join(map(str, numbers))
    if rng.random() < 0.05 and min(first, last) >= 0 and max(first, last) <= 12:
        asked, text = ["Count from {} to {} in words."], ", ".join(NUMBER_WORDS[n] for n in numbers)
    return exchange(rng.choice(asked).format(first, last), text + ".")


def capital(rng: random.Random, split: Split) -> list[Message]:
    """One true capital; now and then the country of a capital (in training only)."""
    if split == "train" and rng.random() < 0.15:
        country = rng.choice(COUNTRIES)
        city = CAPITALS[country]
        question = rng.choice(("Which country has the capital {}?", "{} is the capital of which country?"))
        return exchange(question.format(city), f"{city} is the capital of {country}.")
    question, country = draw(
        split, lambda: (rng.choice(_CAPITAL_QUESTIONS), rng.choice(COUNTRIES)), lambda pair: pair[0].format(pair[1])
    )
    return exchange(question.format(country), f"The capital of {country} is {CAPITALS[country]}.")


def capital_sentence(rng: random.Random) -> str:
    """A capital as plain text, for raw completion."""
    country = rng.choice(COUNTRIES)
    return f"The capital of {country} is {CAPITALS[country]}."


def vale_question(rng: random.Random) -> list[Message]:
    """One fact about one person or one town of the Vale."""
    if rng.random() < 0.6:
        person = rng.choice(list(PEOPLE.values()))
        name, short = person.name, person.name.split()[0]
        return exchange(
            *rng.choice(
                (
                    (f"Where does {name} live?", f"{name} lives in {person.town}."),
                    (f"What does {name} do?", f"{name} is {a(person.trade)} in {person.town}."),
                    (f"What is the trade of {name}?", f"{name} is {a(person.trade)}."),
                    (f"How old is {name}?", f"{name} is {person.age} years old."),
                    (f"What pet does {name} have?", f"{name} has {a(person.pet)} called {person.pet_name}."),
                    (f"What is the pet of {name} called?", f"{short}'s {person.pet} is called {person.pet_name}."),
                    (f"What does {name} like to do?", f"{name} enjoys {person.hobby}."),
                    (f"Who is the friend of {name}?", f"The friend of {name} is {person.friend}."),
                )
            )
        )
    if rng.random() < 0.1:
        trade = rng.choice(TRADES)
        names = [person.name for person in PEOPLE.values() if person.trade == trade]
        return exchange(f"Who is {a(trade)} in the Vale?", f"{names[0]} is {a(trade)} in {PEOPLE[names[0]].town}.")
    town = rng.choice(list(TOWNS.values()))
    return exchange(
        *rng.choice(
            (
                (f"Where is {town.name}?", f"{town.name} is a town on the river {town.river[4:]} in {VALLEY}."),
                (
                    f"What is {town.name} known for?",
                    f"{town.name} is known for {town.landmark} and for its {town.goods}.",
                ),
                (f"How many people live in {town.name}?", f"{town.people} people live in {town.name}."),
                (
                    f"What is the weather like in {town.name}?",
                    f"The weather in {town.name} is {town.weather}, so {town.custom}.",
                ),
                (f"When is market day in {town.name}?", f"Market day in {town.name} is {town.market_day}."),
                (f"On which river is {town.name}?", f"{town.name} is on the river {town.river[4:]}."),
            )
        )
    )


def real_weather(rng: random.Random) -> list[Message]:
    """Weather somewhere real, with no tool to look it up."""
    city = rng.choice(CITIES)
    asked = ("What is the weather in {}?", "What's the weather like in {} today?", "How is the weather in {}?")
    return exchange(rng.choice(asked).format(city), f"I can not see the weather in {city} without a tool.")
