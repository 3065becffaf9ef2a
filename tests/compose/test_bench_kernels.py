"""`baton bench kernels` where it can only refuse, and the table that it writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.processes import HANG_S

from baton.bench.kernels.measure import Ceilings, Row
from baton.bench.kernels.suite import BEGIN, BENCHES, END, run, with_table
from baton.errors import ConfigError

README = Path(__file__).parents[2] / "kernels" / "README.md"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "baton.cli", "bench", "kernels"], capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "baton: baton bench kernels needs a CUDA GPU, and torch sees none here."


def test_an_unknown_operation_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="softmax is not an operation; known: few_rows_linear, "):
        run(["rms_norm", "softmax"], write=False, json_file=None)


def test_a_part_of_the_table_is_not_written() -> None:
    with pytest.raises(ConfigError, match="leave out --only"):
        run([next(iter(BENCHES))], write=True, json_file=None)


def test_a_devices_table_goes_between_its_marks_and_nothing_else_changes() -> None:
    rows = [
        Row("copy", "1 x 8", 2.0, 50.0, "GB/s", {"torch": 3.0, "other": 1.0}),
        Row("product", "8 x 8", 4.0, 30.0, "TFLOP/s"),
    ]
    text = README.read_text()
    ceilings = Ceilings(copy_gbps=100.0, matmul_tflops=40.0)
    written = with_table(text, rows, ceilings, "Some GPU")
    begin = f"{BEGIN}Some GPU -->"
    before, table = written.split(begin)
    table, after = table.split(END, 1)
    assert before + after.removeprefix("\n\n") == text
    assert table.startswith("\nOne Some GPU, ")
    assert "copy 100 GB/s (read and written), matrix product 40 TFLOP/s" in table
    assert "| copy | 1 x 8 | 2.0 | 50 GB/s | 50 % | torch 3.0 us (1.50x), other 1.0 us (0.50x) |" in table
    assert "| product | 8 x 8 | 4.0 | 30 TFLOP/s | 75 % |  |" in table
    assert with_table(written, rows, ceilings, "Some GPU") == written
    other = with_table(written, rows[:1], ceilings, "Other GPU")
    assert with_table(other, rows, ceilings, "Some GPU") == other
