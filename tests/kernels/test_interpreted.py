import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from baton.kernels.launch import INTERPRET


@pytest.mark.skipif(INTERPRET or torch.cuda.is_available(), reason="the kernels already run here")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_pass_the_same_tests_in_the_interpreter():
    """Run this folder again in a process of its own, where TRITON_INTERPRET is set before the first import."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", str(folder), "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=environment, cwd=folder.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
