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
from tests.interpreter import install_once
from tests.processes import HANG_S
from tests.tiny_models import save_tiny
from tests.units import SHARED, rank_of, unit_of
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from baton.kernels.launch import INTERPRET

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
    if INTERPRET:
        install_once()
    terminal = session.config.pluginmanager.getplugin("terminalreporter")
    if terminal is not None:  # a worker of xdist has none
        session.config.pluginmanager.register(NamesFailures(terminal))


class FileAtATime(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out a file's tests together, as what they share is made once then; so with all files of a deployment."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FileAtATime:
    config.option.loadscopereorder = False  # the order is ours
    return FileAtATime(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first, so that no worker of xdist is waited for at the end.

    Branches are not counted where a test draws thousands of steps or works in other processes: it would take two to four
    times as long, and shows nothing that single cases do not show.
    """
    items.sort(key=lambda item: rank_of(item.nodeid))
    for item in items:
        if _deployments(item) or item.name == "runTest":  # of a state machine
            item.add_marker("no_cover")


def pytest_runtest_setup(item: pytest.Item) -> None:
    asked_for = _deployments(item)
    if not asked_for <= {unit_of(item.nodeid)}:
        pytest.fail(f"it asks for {asked_for}: name its file in tests/units.py", pytrace=False)


def _deployments(item: pytest.Item) -> set[str]:
    return SHARED.keys() & set(getattr(item, "fixturenames", ()))


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
