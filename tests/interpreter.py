"""Tests that need Triton's interpreter, where TRITON_INTERPRET must be set before the first import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CASE_S = 1200
"""What one case may take in the interpreter, where the longest takes 11 s on an idle core: only a hang takes so long."""

HANG_S = 7200
"""What all cases together may take, for `pytest.mark.timeout`: a machine that is merely slow is not stopped."""


def passes_in_the_interpreter(tests: Path) -> None:
    """Run a file or folder of tests again, in a process of its own, until one fails; each is printed as it ends.

    Raises:
        AssertionError: the one that failed, or was never collected, by name and with its traceback.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    options = ["-v", "-x", "--tb=short", "-p", "no:cacheprovider", f"--timeout={CASE_S}"]
    # numpy warns of what a device computes silently: log(0), rows of padding that overflow
    options += ["-W", "ignore::RuntimeWarning"]
    command = [sys.executable, "-m", "pytest", str(tests), *options]
    root = Path(__file__).parents[1]
    lines: list[str] = []
    with subprocess.Popen(
        command, env=environment, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as running:
        assert running.stdout is not None
        try:
            for line in running.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        except BaseException:
            running.kill()
            raise
    failed = [line.strip() for line in lines if line.startswith(("FAILED", "ERROR"))]
    assert running.returncode == 0, f"in the interpreter: {failed or 'no test failed'}\n{''.join(lines)[-5000:]}"
