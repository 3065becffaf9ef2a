"""What tests of commands for a running stack share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.cluster import make_model
from tests.processes import BatonProcess, eventually, free_ports


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatonProcess]:
    """Run `baton up` with two workers of each leg and a key."""
    folder, (port,) = tmp_path_factory.mktemp("stack"), free_ports(1)
    arguments = ["up", str(make_model(folder / "tiny")), "--prefill", "2", "--decode", "2", "--port", str(port)]
    arguments += ["--kv-cache-memory-bytes", str(48 * 2**20), "--drain-s", "1", "--api-key", "the-key"]
    process = BatonProcess(arguments, folder / "up.log", port).start()
    try:
        eventually(lambda: "Try:" in process.log() or not process.is_running, "all are ready")
        yield process
    finally:
        process.stop()
