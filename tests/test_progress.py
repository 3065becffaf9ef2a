"""What takes long says how far it is: in logs as lines, now and then."""

from __future__ import annotations

import time

import pytest

from baton.progress import Bar, LongBar

pytestmark = pytest.mark.usefixtures("no_log")


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that is moved by hand."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_bar_that_no_terminal_shows_is_a_line_every_few_seconds(
    passing: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    with Bar(total=100 * 2**20, desc="Loading weights", unit="B", unit_scale=True, unit_divisor=1024) as bar:
        for second in range(11):
            passing[0] = second
            bar.update(8 * 2**20)
            bar.refresh()
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(" in ")[0] for line in lines] == [
        "Loading weights: 48 %, 48.0M of 100M",
        "Loading weights: 88 %, 88.0M of 100M",
        "Loading weights: 88 %, 88.0M of 100M",
    ]


def test_what_is_short_has_a_last_line_and_a_download_that_is_none_has_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Bar(total=4, desc="Loading weights") as bar:
        bar.update(4)
    assert capfd.readouterr().err.startswith("Loading weights: 100 %, 4 of 4 in ")
    with LongBar(total=4, desc="Fetching 4 files") as bar:
        bar.update(4)
    with Bar(total=4, desc="Loading weights", disable=True) as bar:
        bar.update(4)
    assert capfd.readouterr().err == ""


def test_a_download_of_unknown_size_says_what_has_come(passing: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    with LongBar(total=0, desc="Downloading bytes", unit="B", unit_scale=True) as bar:
        passing[0] = 6.0
        bar.update(3_000_000)
        bar.refresh()
    assert capfd.readouterr().err.startswith("Downloading bytes: 3.00M")
    assert time.monotonic() == 6.0
