"""What tests of the store share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kvtransfer.live_store import LiveStore


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[LiveStore]:
    parts = LiveStore(tmp_path)
    yield parts
    for tier in parts.tiers:
        tier.close()
    parts.stop()
    shutil.rmtree(parts.path, ignore_errors=True)
