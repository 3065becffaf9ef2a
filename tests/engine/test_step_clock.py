"""Steps are measured where they run."""

from __future__ import annotations

import pytest
import torch

from baton.engine.step_clock import StepClock


def test_the_host_measures_what_it_computes_itself() -> None:
    clock = StepClock(torch.device("cpu"))
    marks = [clock.mark() for _ in range(3)]
    assert clock.seconds(marks[0], marks[2]) >= clock.seconds(marks[0], marks[1]) >= 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_measures_each_of_two_launches_though_the_host_looks_after_both() -> None:
    clock = StepClock(torch.device("cuda"))
    a = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    marks = [clock.mark()]
    for num_products in (10, 100):
        for _ in range(num_products):
            a @ a
        marks.append(clock.mark())
    short, long = clock.seconds(marks[0], marks[1]), clock.seconds(marks[1], marks[2])
    assert 3 * short < long  # ten times the work
