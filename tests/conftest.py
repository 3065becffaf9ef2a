"""What tests of several folders share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from tests.tiny_models import save_tiny

if TYPE_CHECKING:
    from tests.cluster import Cluster

hypothesis.settings.register_profile("patient", deadline=None)  # a busy machine takes long over any example
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of a family's tiny checkpoint; to be read only."""
    made: dict[str, Path] = {}

    def checkpoint(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny(family, tmp_path_factory.mktemp(family))
        return made[family]

    return checkpoint


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Run Redis, two prefill workers, two decode workers and a router for each topology, for all who ask."""
    from tests.cluster import running_cluster

    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster
