"""What tests of several folders share, and failures named as they happen."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import hypothesis
import pytest
import structlog
from tests.processes import HANG_S
from tests.tiny_models import save_tiny

if TYPE_CHECKING:
    from tests.cluster import Cluster

# Neither an example nor the drawing of examples is late on a machine that is merely slow.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


# httpx gives up after 5 s unless told otherwise, which on a busy machine an answer takes.
for _phase in ("connect", "read", "write", "pool"):
    setattr(inspect.signature(httpx.get).parameters["timeout"].default, _phase, HANG_S)


class NamesFailures:
    """Names each failure at once; pytest does so at the end of the run, which a hang never reaches."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = (crash.message if crash else str(report.longrepr)).partition("\n")[0]
            self._terminal.ensure_newline()
            self._terminal.write_line(f"FAILED {report.nodeid} ({report.when}, {report.duration:.0f} s): {reason}")


def pytest_sessionstart(session: pytest.Session) -> None:
    terminal = session.config.pluginmanager.getplugin("terminalreporter")
    if terminal is not None:  # a worker of xdist has none
        session.config.pluginmanager.register(NamesFailures(terminal))


DEPLOYMENTS = {"cluster", "stack"}
"""Fixtures that start a dozen processes: all who ask for one run on the worker of xdist that has it."""
LONG = (
    "cluster",
    "tests/test_interpreted.py",
    "stack",
    "tests/e2e/test_kvstore.py",
    "tests/e2e/test_up.py",
    "tests/engine/test_compile_check.py",
)
"""What is handed out first, as nobody shall wait for it at the end."""


@pytest.hookimpl(tryfirst=True)  # before xdist writes down the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let workers of xdist take a file at a time, so that what its tests share is made once; the longest first.

    Branches are not counted where a test draws hundreds of cases or works in other processes: it would take two to four
    times as long, and shows nothing that single cases do not show.
    """
    group_of = {item: _group(item) for item in items}
    for item, group in group_of.items():
        item.add_marker(pytest.mark.xdist_group(group))
        if group in DEPLOYMENTS or hypothesis.is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker("no_cover")
    items.sort(key=lambda item: LONG.index(group_of[item]) if group_of[item] in LONG else len(LONG))


def _group(item: pytest.Item) -> str:
    asked_for = DEPLOYMENTS & set(getattr(item, "fixturenames", ()))
    return asked_for.pop() if asked_for else item.nodeid.partition("::")[0]


@pytest.fixture
def no_log() -> Iterator[None]:
    """Take away the log that another test of this process may have set up."""
    before = structlog.get_config() if structlog.is_configured() else None
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    if before is not None:
        structlog.configure(**before)


@pytest.fixture
def quiet_log(no_log: None) -> None:
    """Write no log: in virtual time it would take as long as all else."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a family's tiny checkpoint; to be read only."""
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
