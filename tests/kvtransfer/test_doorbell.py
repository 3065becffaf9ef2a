"""A doorbell is rung by threads that do not know whether it is still there."""

from __future__ import annotations

import select
import threading

from baton.kvtransfer.loop import Doorbell


def test_it_wakes_who_polls_until_hushed() -> None:
    bell = Doorbell()
    bell.ring()
    bell.ring()
    assert select.select([bell], [], [], 0)[0] == [bell]
    bell.hush()
    assert select.select([bell], [], [], 0)[0] == []
    bell.close()
    bell.ring()


def test_it_may_be_closed_while_it_is_rung() -> None:
    failures: list[OSError] = []
    closed = threading.Event()

    def ring(bell: Doorbell) -> None:
        try:
            while not closed.is_set():
                bell.ring()
        except OSError as error:
            failures.append(error)

    for _ in range(200):
        bell = Doorbell()
        closed.clear()
        ringers = [threading.Thread(target=ring, args=(bell,)) for _ in range(3)]
        for thread in ringers:
            thread.start()
        bell.close()
        closed.set()
        for thread in ringers:
            thread.join()
    assert failures == []
