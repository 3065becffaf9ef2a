"""Slopes of attention: by how much each head's scores fall with each position between a query and a key (ALiBi)."""

from __future__ import annotations


def slopes_of(num_heads: int, largest: float = 8.0) -> tuple[float, ...]:
    """Make the slopes of heads: 2^(-largest/n), 2^(-2 largest/n) and so on, for n heads that are a power of two.

    Other numbers of heads have those of the power of two below, and of the one above every second one from the first.
    """
    below = 1 << (num_heads.bit_length() - 1)
    slopes = [2 ** (-largest * (i + 1) / below) for i in range(below)]
    between = [2 ** (-largest * (2 * i + 1) / (2 * below)) for i in range(num_heads - below)]
    return (*slopes, *between)
