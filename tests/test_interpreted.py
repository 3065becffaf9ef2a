"""Kernels, and what runs them, in Triton's interpreter: where there is no GPU, their tests run once more in processes of it.

TRITON_INTERPRET must be set before the first import, and starting to test takes 7 s: so it is one process for each worker of xdist.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from baton.kernels.launch import INTERPRET

PARTS = {"kernels": ("kernels",), "what runs them": ("engine/test_padded_steps.py", "engine/test_compile_check.py")}
CASE_S = 1200
"""What one case may take in the interpreter, where the longest takes some seconds on an idle core: only a hang takes so long."""
HANG_S = 7200
"""What all cases together may take: a machine that is merely slow is not stopped."""


@pytest.mark.timeout(HANG_S)
@pytest.mark.skipif(INTERPRET or torch.cuda.is_available(), reason="the kernels already run here")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("part", PARTS)
def test_kernels_and_what_runs_them_pass_the_same_tests_in_the_interpreter(part: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    options = ["-v", "-x", "--tb=short", "-p", "no:cacheprovider", f"--timeout={CASE_S}"]
    # numpy warns of what a device computes silently: log(0), rows of padding that overflow
    options += ["-W", "ignore::RuntimeWarning"]
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", *(str(folder / tests) for tests in PARTS[part]), *options]
    lines: list[str] = []
    with subprocess.Popen(
        command, env=environment, cwd=folder.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as running:
        assert running.stdout is not None
        try:
            for line in running.stdout:  # each is seen as it ends
                print(line, end="", flush=True)
                lines.append(line)
        except BaseException:
            running.kill()
            raise
    failed = [line.strip() for line in lines if line.startswith(("FAILED", "ERROR"))]
    assert running.returncode == 0, f"in the interpreter: {failed or 'no test failed'}\n{''.join(lines)[-5000:]}"
