"""Run each operation's tests where it can run: its reference on a CPU, its kernel on a GPU or under TRITON_INTERPRET=1."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from baton.kernels.launch import INTERPRET

RELATIVE_ERROR = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def is_kernel() -> bool:
    """Whether the public functions run kernels here, not references."""
    return torch.cuda.is_available() or INTERPRET


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with np.errstate(
        all="ignore"
    ):  # the interpreter computes with numpy, which warns of log(0) where a device does not
        yield


@pytest.fixture
def assert_close():
    """Compare with a float64 result by the norm of the difference; NaN never passes."""

    def check(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        limit = RELATIVE_ERROR[dtype or actual.dtype]
        actual, expected = actual.double().cpu(), expected.double().cpu()
        assert actual.shape == expected.shape
        error = (actual - expected).norm() / expected.norm().clamp(min=1e-30)
        assert error.item() < limit

    return check


@pytest.fixture
def same_bits_anywhere(monkeypatch) -> None:
    """Let the interpreter's matrix products give a row the same bits wherever it stands, as a GPU's do.

    They are numpy's, whose BLAS adds up the rows of one product in different orders; in float64, rounded, that is not seen.
    """
    if INTERPRET and not torch.cuda.is_available():
        matmul = np.matmul
        monkeypatch.setattr(np, "matmul", lambda a, b, dtype: matmul(a, b, dtype=np.float64).astype(dtype))
