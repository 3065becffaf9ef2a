"""Imports over the whole package: down the floors, and never in a circle; under TYPE_CHECKING and inside functions too."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

from baton.checkout import ROOT

FLOORS = ("compose", "services", "shared", "kernels")
"""The top-level folders; each stands on those after it."""
ROOTS = {
    **{path.stem: floor for floor in ("compose", "shared", "kernels") for path in (ROOT / floor / "baton").glob("*")},
    **{path.stem: "services" for path in (ROOT / "services").glob("*/baton/*")},
}
LEGS = ("prefill", "decode")


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Each module of the package with those that it imports."""
    graph = grimp.build_graph("baton", cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def floor_of(module: str) -> int:
    return FLOORS.index(ROOTS[module.split(".")[1]])


def test_no_import_runs_up(imports: dict[str, set[str]]) -> None:
    up = [
        f"{module} -> {imported}"
        for module, all_imported in imports.items()
        for imported in all_imported
        if module != "baton" and floor_of(imported) < floor_of(module)
    ]
    assert up == []


def test_services_meet_in_messages_alone_but_for_the_legs_which_stand_on_the_transfer(
    imports: dict[str, set[str]],
) -> None:
    met = {
        (module.split(".")[1], imported.split(".")[1])
        for module, all_imported in imports.items()
        for imported in all_imported
        if module != "baton" and floor_of(module) == floor_of(imported) == FLOORS.index("services")
    }
    assert {pair for pair in met if pair[0] != pair[1]} == {(leg, "kvtransfer") for leg in LEGS}


def test_no_modules_import_one_another_in_a_circle(imports: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(reversed(error.args[1]))}")
