"""What `baton bench serve` sends: requests of a Poisson process, with prompts that no server has seen, or that share their beginning.

    requests        each with a prompt of its own
    prefixes        each begins with one of a few long texts, some of them asked for more often (Zipf)
    conversations   turns that wait for the answer before, whose prompt holds all that was said until then

The same shape, rate and seed give the same arrivals, tokens and lengths, whatever server they are sent to.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from baton.errors import ConfigError

FIRST_ID = 10
"""Token ids are drawn from here on: those below are often special."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One prompt to send, or what a later turn adds to it and to the answer."""

    tokens: list[int]
    output_len: int
    pause_s: float = 0.0
    """Between the end of the answer before and this."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request, or one conversation, to begin."""

    at_s: float
    turns: tuple[Turn, ...]

    @classmethod
    def single(cls, at_s: float, prompt: list[int], output_len: int) -> Arrival:
        """Make a request of one turn."""
        return cls(at_s, (Turn(prompt, output_len),))


@dataclass(frozen=True, slots=True)
class Load:
    """Requests with their times, and what to call them."""

    name: str
    arrivals: list[Arrival]
    rate: float = math.inf
    """Arrivals a second; infinite: all at once, or a trace's own times."""
    warm_up_s: float = 0.0
    """Those that arrive before this are sent, and not counted."""


def check_lengths(name: str, lengths: tuple[int, int]) -> None:
    """Raise ConfigError unless these are a shortest and a longest number of tokens."""
    if not 1 <= lengths[0] <= lengths[1]:
        flag = "--" + name.replace("_", "-")
        raise ConfigError(
            f"{name}={lengths[0]},{lengths[1]} is not valid: give the shortest, 1 or more, before the longest, such as "
            f"{flag} 512 3584."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What requests are like; lengths are drawn evenly between the two."""

    input_len: tuple[int, int] = (50, 1000)
    output_len: tuple[int, int] = (20, 200)
    vocab: int = 4000
    num_prefixes: int = 0
    """Of which each request's prompt begins with one, before what `input_len` says."""
    prefix_len: int = 1024
    prefix_skew: float = 1.0
    """The k-th prefix is asked for in proportion to 1 / k ** skew."""
    num_turns: int = 1
    turn_len: tuple[int, int] = (32, 256)
    """Tokens that each later turn adds to what was said."""
    think_s: float = 1.0
    """Mean pause before each later turn (exponential)."""

    def __post_init__(self) -> None:
        for name in ("input_len", "output_len", "turn_len"):
            check_lengths(name, getattr(self, name))

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and answer that may be drawn."""
        prefix = self.prefix_len if self.num_prefixes else 0
        later = (self.num_turns - 1) * self.turn_len[1]
        return prefix + self.input_len[1] + later + self.num_turns * self.output_len[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """How long a load lasts: so many requests, or so many seconds."""

    count: int | None = None
    seconds: float = 0.0
    warm_up_s: float = 0.0

    def arrivals(self, rate: float, rng: random.Random) -> Iterator[float]:
        """Draw the times of a Poisson process; an infinite rate has all at once."""
        at_s, number = 0.0, 0
        while True:
            at_s += 0.0 if math.isinf(rate) else rng.expovariate(rate)
            number += 1
            if number > self.count if self.count is not None else at_s >= self.warm_up_s + self.seconds:
                return
            yield at_s


def poisson(shape: Shape, rate: float, span: Span, *, seed: str) -> Load:
    """Draw a load; a rate has the same arrivals, whichever other rates are measured."""
    seed = f"{seed}/{rate:g}"
    draw = _Draw(shape, random.Random(f"{seed}/requests"), seed)
    arrivals = [Arrival(at_s, draw.turns()) for at_s in span.arrivals(rate, random.Random(f"{seed}/times"))]
    kind = "conversations" if shape.num_turns > 1 else "requests"
    name = "all at once" if math.isinf(rate) else f"{rate:g} {kind}/s"
    return Load(name, arrivals, rate, span.warm_up_s if span.count is None else 0.0)


@dataclass(slots=True)
class _Draw:
    shape: Shape
    rng: random.Random
    seed: str
    prefixes: dict[int, list[int]] = field(default_factory=dict)

    def turns(self) -> tuple[Turn, ...]:
        shape, rng = self.shape, self.rng
        first = Turn(self.prefix() + self.tokens(shape.input_len), rng.randint(*shape.output_len))
        return (first, *(self.later() for _ in range(shape.num_turns - 1)))

    def later(self) -> Turn:
        pause_s = self.rng.expovariate(1 / self.shape.think_s) if self.shape.think_s else 0.0
        return Turn(self.tokens(self.shape.turn_len), self.rng.randint(*self.shape.output_len), pause_s)

    def tokens(self, length: tuple[int, int]) -> list[int]:
        return random_tokens(self.rng, self.rng.randint(*length), self.shape.vocab)

    def prefix(self) -> list[int]:
        shape = self.shape
        if not shape.num_prefixes:
            return []
        ranks = range(1, shape.num_prefixes + 1)
        (which,) = self.rng.choices(ranks, [rank**-shape.prefix_skew for rank in ranks])
        if which not in self.prefixes:
            of_its_own = random.Random(f"{self.seed}/prefix/{which}")
            self.prefixes[which] = random_tokens(of_its_own, shape.prefix_len, shape.vocab)
        return self.prefixes[which]


def random_tokens(rng: random.Random, count: int, vocab: int) -> list[int]:
    """Draw token ids."""
    return rng.choices(range(FIRST_ID, vocab), k=count)
