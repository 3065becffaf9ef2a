"""Tests that need Triton's interpreter, where TRITON_INTERPRET must be set before the first import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def passes_in_the_interpreter(tests: Path) -> None:
    """Run a file or folder of tests again, in a process of its own.

    Raises:
        AssertionError: one of them fails.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", str(tests), "-q", "-x", "-p", "no:cacheprovider"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
