"""Start the demo model and one that pools, and run the clients' tests against them with another Python.

python -m tests.clients PYTHON [pytest's arguments]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.pooling_models import save_decoder
from tests.processes import BatonProcess, eventually, free_ports
from tests.router.tokenizer_folder import make_tokenizer_folder

KEY = "a-key-of-clients"
HERE = Path(__file__).parent


def up(folder: Path, name: str, *arguments: str) -> BatonProcess:
    """Start a whole deployment."""
    (port,) = free_ports(1)
    flags = ["--port", str(port), "--api-key", KEY, "--kv-cache-memory-bytes", str(64 * 2**20)]
    return BatonProcess(["up", *arguments, *flags], folder / f"{name}.log", port).start()


def pooling_model(folder: Path) -> str:
    """Save a tiny model that makes vectors."""
    model = make_tokenizer_folder(folder)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    return str(save_decoder(model, max(ids) + 1))


def _has_started(process: BatonProcess) -> bool:
    """Whether it serves, or has ended."""
    return "Try:" in process.log() or not process.is_running


def main() -> int:
    """Run them; return pytest's status."""
    python, *arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        demo, pooling = up(folder, "demo"), up(folder, "pooling", pooling_model(folder / "model"))
        try:
            for process in (demo, pooling):
                eventually(partial(_has_started, process), "it is ready")
                assert process.is_running, process.log()
            urls = {"BATON_CLIENTS_URL": demo.url, "BATON_CLIENTS_POOLING_URL": pooling.url}
            command = [python, "-m", "pytest", "-q", "--rootdir", str(HERE), "-c", str(HERE / "pytest.ini"), *arguments]
            return subprocess.run(command, cwd=HERE, env={**os.environ, **urls}, check=False).returncode
        finally:
            demo.stop()
            pooling.stop()


if __name__ == "__main__":
    sys.exit(main())
