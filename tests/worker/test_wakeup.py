"""A wake-up is set by threads that do not know whether it is still there."""

from __future__ import annotations

import select
import threading

from baton.wakeup import Wakeup


def test_it_wakes_who_polls_until_cleared() -> None:
    wakeup = Wakeup()
    wakeup.set()
    wakeup.set()
    assert select.select([wakeup], [], [], 0)[0] == [wakeup]
    wakeup.clear()
    assert select.select([wakeup], [], [], 0)[0] == []
    wakeup.close()
    wakeup.set()


def test_it_may_be_closed_while_it_is_set() -> None:
    failures: list[OSError] = []
    closed = threading.Event()

    def set_often(wakeup: Wakeup) -> None:
        try:
            while not closed.is_set():
                wakeup.set()
        except OSError as error:
            failures.append(error)

    for _ in range(200):
        wakeup = Wakeup()
        closed.clear()
        setters = [threading.Thread(target=set_often, args=(wakeup,)) for _ in range(3)]
        for thread in setters:
            thread.start()
        wakeup.close()
        closed.set()
        for thread in setters:
            thread.join()
    assert failures == []
