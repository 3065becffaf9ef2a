import importlib.util
from pathlib import Path

import pytest
import torch
from tests.interpreter import HANG_S, passes_in_the_interpreter

from baton.kernels.launch import INTERPRET


@pytest.mark.timeout(HANG_S)
@pytest.mark.skipif(INTERPRET or torch.cuda.is_available(), reason="the kernels already run here")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_pass_the_same_tests_in_the_interpreter():
    passes_in_the_interpreter(Path(__file__).parent)
