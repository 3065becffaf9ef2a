"""Real clients against real servers: `make clients-test` starts these and names them; without them nothing here is run."""

from __future__ import annotations

import json
import os
import urllib.request
from dataclasses import dataclass
from typing import Any

import pytest

collect_ignore_glob = [] if "BATON_CLIENTS_URL" in os.environ else ["test_*.py"]
"""Clients are installed in an environment of their own, which `make test` does not have."""

KEY = "a-key-of-clients"
ASK = "Use get_weather with city Paris."
SUM = ("What is 91 + 30?", "121")
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "The city"}},
    "required": ["city"],
    "additionalProperties": False,
}


@dataclass
class Served:
    """A server, and the name of its model."""

    url: str
    model: str

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


def _served(variable: str) -> Served:
    url = os.environ[variable]
    asked = urllib.request.Request(f"{url}/v1/models", headers={"authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(asked) as answer:
        models: dict[str, Any] = json.load(answer)
    return Served(url, models["data"][0]["id"])


@pytest.fixture(scope="session")
def demo() -> Served:
    """The demo model behind a prefill and a decode worker."""
    return _served("BATON_CLIENTS_URL")


@pytest.fixture(scope="session")
def pooling() -> Served:
    """A tiny model that makes vectors of 64 numbers."""
    return _served("BATON_CLIENTS_POOLING_URL")
