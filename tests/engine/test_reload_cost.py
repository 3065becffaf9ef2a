"""Loading is chosen where it is predicted to be sooner, by numbers that are learned."""

from __future__ import annotations

from baton.engine.reload_cost import FIRST_RATE, ReloadCost

BLOCK = 2 << 20


def cost() -> ReloadCost:
    return ReloadCost(block_nbytes=BLOCK, block_size=16)


def test_what_is_not_known_is_tried() -> None:
    assert cost().is_worth(1)
    assert not cost().is_worth(0)


def test_many_blocks_are_worth_a_turn_of_the_loop_and_few_are_not() -> None:
    it = cost()
    for _ in range(20):
        it.computed(8192, 0.2)  # 41,000 tokens a second
        it.turned(0.01)
        it.loaded(1000, 0.01 + 1000 * BLOCK / 50e9)
    assert not it.is_worth(10)  # 4 ms of computing
    assert it.is_worth(100)  # 40 ms
    assert abs(it.compute_s(100) - 0.039) < 0.001


def test_a_slow_link_is_found_out() -> None:
    it = cost()
    for _ in range(20):
        it.computed(8192, 0.2)
        it.loaded(100, 100 * BLOCK / 1e9)
    assert not it.is_worth(1000)


def test_short_loads_say_nothing_against_the_link() -> None:
    it = cost()
    for _ in range(20):
        it.turned(0.02)
        it.loaded(1, 0.03)
    assert it.load_s(1000) < 0.03 + 1000 * BLOCK / FIRST_RATE


def test_steps_without_prompts_say_nothing() -> None:
    it = cost()
    it.computed(0, 1.0)
    assert it.compute_s(1) == float("inf")
