"""Leases end when nobody renews them, in order, and not before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from baton.kvtransfer.lease import LeaseBook

from .blocks import Clock


def test_a_lease_ends_unless_renewed() -> None:
    clock = Clock()
    book: LeaseBook[str] = LeaseBook(10.0, clock)
    book.renew("a")
    clock.now += 6
    book.renew("b")
    assert book.seconds_left() == 4
    clock.now += 3
    book.renew("a")
    clock.now += 7
    assert book.sweep() == ["b"]
    assert "a" in book
    clock.now += 3
    assert book.sweep() == ["a"]
    assert book.seconds_left() == float("inf")


@given(st.lists(st.tuples(st.sampled_from(["renew", "end", "sweep", "wait"]), st.integers(0, 5))))
def test_leases_agree_with_a_plain_dictionary(steps: list[tuple[str, int]]) -> None:
    clock = Clock()
    book: LeaseBook[int] = LeaseBook(3.0, clock)
    model: dict[int, float] = {}
    for what, number in steps:
        if what == "renew":
            book.renew(number)
            model[number] = clock.now + 3.0
        elif what == "end":
            book.end(number)
            model.pop(number, None)
        elif what == "wait":
            clock.now += number
        else:
            expired = {key for key, at in model.items() if at <= clock.now}
            assert set(book.sweep()) == expired
            model = {key: at for key, at in model.items() if key not in expired}
        assert len(book) == len(model)
