"""Tool calls: tools in OpenAI's function schema, a request, the call, and what is said of its result.

Some tools have a meaning (weather, time, messages), under several names and with several names for each
parameter; others are made up on the spot and asked for by name, so that the model reads the schema it was
given. Held out, by a hash of the call.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from demo.capitals import CAPITALS, CITIES, COUNTRIES
from demo.conversation import Conversation, Message, Split, Tool, assistant, belongs, user
from demo.words import DAYS, FIRST_NAMES, NOUNS, any_name, any_word, digits, invented_name, invented_word, words_of
from demo.world import TOWNS

from baton.demo.questions import TOOL_CALL_END, TOOL_CALL_START


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """Write a call the way the chat template does."""
    return f"{TOOL_CALL_START}{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}{TOOL_CALL_END}"


@dataclass(frozen=True)
class Parameter:
    names: tuple[str, ...]
    type: str
    description: str
    value: Callable[[random.Random], Any]
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Tools that do one thing. `requests` hold the values by the parameter's first name."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    requests: tuple[str, ...]
    result: Callable[[random.Random, dict[str, Any]], tuple[Any, str]]


def _place(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.1:
        country = rng.choice(COUNTRIES)
        return f"{CAPITALS[country]}, {country}"
    if kind < 0.2:
        return f"{invented_name(rng)} {invented_name(rng)}" if rng.random() < 0.5 else invented_name(rng)
    return rng.choice(CITIES) if kind < 0.8 else rng.choice(list(TOWNS))


_CITY = Parameter(("city", "location", "place", "town"), "string", "The name of the city", _place)
_PERSON = Parameter(("to", "recipient", "name", "person"), "string", "Who receives it", any_name)


def _weather(rng: random.Random, values: dict[str, Any]) -> tuple[Any, str]:
    sky, degrees = rng.choice(("sunny", "cloudy", "rainy", "windy", "foggy")), rng.randrange(-9, 36)
    result: Any = {
        rng.choice(("temperature", "degrees", "temp")): degrees,
        rng.choice(("sky", "condition", "weather")): sky,
    }
    if rng.random() < 0.3:
        result = f"{sky}, {degrees} degrees"
    return result, f"It is {sky} and {degrees} degrees in {values['city']}."


def _clock(rng: random.Random, values: dict[str, Any]) -> tuple[Any, str]:
    time = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    return ({"time": time} if rng.random() < 0.6 else time), f"It is {time} in {values['city']}."


def _done(rng: random.Random, values: dict[str, Any]) -> tuple[Any, str]:
    return rng.choice(({"status": "ok"}, {"ok": True}, "done", {"result": "ok"})), "Done."


def _number(rng: random.Random, values: dict[str, Any]) -> tuple[Any, str]:
    result = rng.randrange(2000)
    return ({"result": result} if rng.random() < 0.6 else str(result)), f"The result is {result}."


def _found(rng: random.Random, values: dict[str, Any]) -> tuple[Any, str]:
    word = any_word(rng)
    return ({"result": word} if rng.random() < 0.6 else word), f"The result is {word}."


_WEATHER_REQUESTS = (
    "What is the weather in {city}?",
    "What's the weather like in {city}?",
    "What is the weather like in {city} today?",
    "How is the weather in {city}?",
    "weather in {city}",
    "Is it raining in {city}?",
    "Tell me the weather in {city}.",
    "Will I need an umbrella in {city}?",
    "Please check the weather in {city}.",
)
FAMILIES: tuple[Family, ...] = (
    Family(
        ("get_weather", "weather", "get_current_weather", "lookup_weather", "weather_report"),
        (
            "Get the current weather",
            "Get the weather for a city",
            "Look up the weather at a place",
            "Get current temperature for a given location.",
        ),
        (_CITY,),
        _WEATHER_REQUESTS,
        _weather,
    ),
    Family(
        ("get_weather", "get_current_weather", "get_forecast"),
        ("Get the current weather in a given location", "Get the forecast for a city"),
        (
            _CITY,
            Parameter(
                ("unit", "units", "scale"),
                "string",
                "The unit of temperature",
                lambda rng: rng.choice(("celsius", "fahrenheit")),
                ("celsius", "fahrenheit"),
            ),
        ),
        (
            "What is the weather in {city} in {unit}?",
            "How warm is it in {city}, in {unit}?",
            "Tell me the temperature in {city} in {unit}.",
        ),
        _weather,
    ),
    Family(
        ("get_time", "current_time", "clock", "get_local_time"),
        ("Get the local time in a city", "Tell the time at a place"),
        (_CITY,),
        (
            "What time is it in {city}?",
            "Tell me the time in {city}.",
            "what's the time in {city}",
            "How late is it in {city}?",
        ),
        _clock,
    ),
    Family(
        ("add", "add_numbers", "sum", "calculate_sum"),
        ("Add two numbers", "Compute the sum of two numbers"),
        (
            Parameter(("a", "x", "first", "left"), "integer", "The first number", lambda rng: rng.randrange(10000)),
            Parameter(("b", "y", "second", "right"), "integer", "The second number", lambda rng: rng.randrange(10000)),
        ),
        ("What is {a} + {b}?", "Add {a} and {b}.", "Use the tool to add {a} and {b}.", "Compute {a} plus {b}."),
        _number,
    ),
    Family(
        ("send_message", "send_email", "notify", "send_note"),
        ("Send a message to a person", "Send a short text to somebody"),
        (
            _PERSON,
            Parameter(
                ("text", "message", "body", "content"),
                "string",
                "What to say",
                lambda rng: f"{rng.choice(('bring', 'buy', 'find', 'sell'))} the {any_word(rng)}",
            ),
        ),
        (
            'Send {to} the message "{text}".',
            "Tell {to}: {text}",
            "Send a message to {to}: {text}",
            "Write to {to} and say: {text}",
        ),
        _done,
    ),
    Family(
        ("set_alarm", "create_alarm", "wake_me"),
        ("Set an alarm", "Set an alarm for a time of day"),
        (
            Parameter(
                ("time", "at", "hour"),
                "string",
                "Time of day as HH:MM",
                lambda rng: f"{rng.randrange(24):02d}:{rng.randrange(60):02d}",
            ),
        ),
        ("Set an alarm for {time}.", "Wake me at {time}.", "Please set an alarm at {time}"),
        _done,
    ),
    Family(
        ("search", "web_search", "search_web", "find", "search_library"),
        ("Search the web", "Search for a text", "Look something up"),
        (
            Parameter(
                ("query", "q", "text", "term"),
                "string",
                "What to search for",
                lambda rng: f"{any_word(rng)} {any_word(rng)}",
            ),
        ),
        ("Search for {query}.", "Look up {query}.", "Find something about {query}.", "search {query}"),
        _found,
    ),
    Family(
        ("book_table", "reserve_table", "make_reservation"),
        ("Book a table at an inn", "Reserve a table"),
        (
            Parameter(("day", "date", "weekday"), "string", "The day", lambda rng: rng.choice(DAYS)),
            Parameter(
                ("people", "guests", "party_size", "count"),
                "integer",
                "How many people",
                lambda rng: rng.randrange(1, 13),
            ),
        ),
        (
            "Book a table for {people} on {day}.",
            "Reserve a table on {day} for {people} people.",
            "We need a table for {people} on {day}.",
        ),
        _done,
    ),
    Family(
        ("turn_light", "set_light", "switch_light"),
        ("Switch a light on or off",),
        (
            Parameter(
                ("room", "place", "where"),
                "string",
                "The room",
                lambda rng: rng.choice(("kitchen", "hall", "cellar", "attic", "garden", "library")),
            ),
            Parameter(("on", "state", "enabled"), "boolean", "True to switch it on", lambda rng: rng.random() < 0.5),
        ),
        ("Turn the light in the {room} {on}.", "Switch {on} the light in the {room}."),
        _done,
    ),
    Family(
        ("lookup_code", "get_code", "find_code", "get_user", "lookup_person"),
        ("Look up a person", "Get the code of a person"),
        (
            Parameter(
                ("name", "user", "person", "who"),
                "string",
                "The name of the person",
                lambda rng: rng.choice(FIRST_NAMES),
            ),
        ),
        (
            "Look up {name}.",
            "What is the code of {name}?",
            "Find the code of {name}.",
            "Use the tool to look up {name}.",
        ),
        _number,
    ),
)
_VERBS = words_of("get make open close read write move start stop check update delete count paint sell build")


def _invented_family(rng: random.Random) -> Family:
    """A tool nobody has seen, asked for by its name."""
    nouns = rng.sample(NOUNS, 4) if rng.random() < 0.7 else [invented_word(rng) for _ in range(4)]
    name = f"{rng.choice(_VERBS)}_{nouns[0]}"
    parameters = []
    for noun in nouns[1 : rng.randint(2, 4)]:
        if rng.random() < 0.5:
            parameters.append(Parameter((noun,), "string", f"The {noun}", any_word))
        else:
            parameters.append(
                Parameter((noun,), "integer", f"The number of {noun}", lambda rng: int(digits(rng, rng.randint(1, 4))))
            )
    given = " and ".join(f"{p.names[0]} {{{p.names[0]}}}" for p in parameters)
    requests = (
        f"Call {name} with {given}.",
        f"Use {name} with {given}.",
        f"{name}: {given}",
        f"Please call the tool {name} with {given}.",
    )
    return Family((name,), (f"{name.split('_')[0].capitalize()} the {nouns[0]}",), tuple(parameters), requests, _found)


def _shuffled(rng: random.Random, fields: dict[str, Any]) -> dict[str, Any]:
    """Sometimes in another order: clients' libraries write the same schema in different orders."""
    keys = list(fields)
    if rng.random() < 0.3:
        rng.shuffle(keys)
    return {key: fields[key] for key in keys}


def _schema(rng: random.Random, name: str, family: Family, names: list[str]) -> Tool:
    properties: dict[str, Any] = {}
    for parameter, parameter_name in zip(family.parameters, names, strict=True):
        about: dict[str, Any] = {"type": parameter.type}
        if parameter.choices:
            about["enum"] = list(parameter.choices)
        if rng.random() < 0.6:
            about["description"] = parameter.description
        properties[parameter_name] = _shuffled(rng, about)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.8:
        parameters["required"] = names
    if rng.random() < 0.15:
        parameters["additionalProperties"] = False
    function: dict[str, Any] = {"name": name}
    if rng.random() < 0.85:
        function["description"] = rng.choice(family.descriptions)
    function["parameters"] = _shuffled(rng, parameters)
    if rng.random() < 0.1:
        function["strict"] = True
    return {"type": "function", "function": _shuffled(rng, function)}


@dataclass(frozen=True)
class _Call:
    tool: Tool
    kind: str
    name: str
    request: str
    arguments: dict[str, Any]
    result: Any
    reply: str


def _make_call(rng: random.Random) -> _Call:
    family = _invented_family(rng) if rng.random() < 0.35 else rng.choice(FAMILIES)
    name = rng.choice(family.names)
    names = [rng.choice(parameter.names) for parameter in family.parameters]
    values = {parameter.names[0]: parameter.value(rng) for parameter in family.parameters}
    spoken = {key: ("on" if value else "off") if isinstance(value, bool) else value for key, value in values.items()}
    result, reply = family.result(rng, values)
    return _Call(
        tool=_schema(rng, name, family, names),
        kind=family.names[0],
        name=name,
        request=rng.choice(family.requests).format(**spoken),
        arguments=dict(zip(names, values.values(), strict=True)),
        result=result,
        reply=reply,
    )


def tool_conversation(rng: random.Random, split: Split, small_task: Callable[[], list[Message]]) -> Conversation:
    """A request that exactly one of one to four tools answers.

    A held-out conversation ends with the call. One for training goes on: the result, what is said of it,
    perhaps another call; and in one of six no tool is needed, so none is called (`small_task` is one that
    no tool could do).
    """
    calls = [_make_call(rng) for _ in range(rng.choice((1, 1, 2, 2, 3, 4)))]
    different = len({call.name for call in calls}) == len({call.kind for call in calls}) == len(calls)
    text = call_text(calls[0].name, calls[0].arguments)
    if not different or not belongs(text, split):
        return tool_conversation(rng, split, small_task)
    tools = [call.tool for call in calls]
    rng.shuffle(tools)
    messages = [user(calls[0].request), assistant(text)]
    if split == "held_out":
        return Conversation(messages, tools)
    if rng.random() < 1 / 6:
        return Conversation(small_task(), tools)
    for i, call in enumerate(calls[:2]):
        text = call_text(call.name, call.arguments)
        if not belongs(text, split):
            break
        if i == 1:
            messages += [user(call.request), assistant(text)]
        content = call.result if isinstance(call.result, str) else json.dumps(call.result)
        messages += [{"role": "tool", "content": content}, assistant(call.reply)]
        if rng.random() < 0.5:
            break
    if rng.random() < 0.15:
        messages += small_task()
    return Conversation(messages, tools)
