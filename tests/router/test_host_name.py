"""Workers that are named, not addressed: names that do not answer, that lead elsewhere, that are none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from baton.errors import ConfigError
from baton.router.config import RouterConfig
from baton.router.host_name import HostName

from .cluster import Cluster, FakeProcess, free_port, wait_until
from .tokenizer_folder import make_tokenizer_folder


class Names:
    """What DNS says, in place of the machine's own; a name that is not here is not answered before the end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: dict[str, str] = {}
        self.asked: set[str] = set()
        self.is_over = threading.Event()
        self._ask = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._answer)

    def _answer(self, host: Any, *args: Any, **options: Any) -> Any:
        if isinstance(host, str) and host.endswith(".test"):
            self.asked.add(host)
            while host not in self.addresses:
                if self.is_over.wait(0.01):
                    raise socket.gaierror(socket.EAI_AGAIN, "no answer")
            host = self.addresses[host]
        return self._ask(host, *args, **options)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    names = Names(monkeypatch)
    yield names
    names.is_over.set()


@pytest.fixture
def started() -> Iterator[list[FakeProcess | Cluster]]:
    started: list[FakeProcess | Cluster] = []
    yield started
    for each in reversed(started):
        each.stop()


def serve(folder: Path, started: list[FakeProcess | Cluster], *endpoints: str) -> Cluster:
    router = Cluster(RouterConfig(model=str(make_tokenizer_folder(folder / "tiny")), worker=endpoints))
    started.append(router)
    router.start()
    return router


def test_a_name_that_dns_does_not_answer_costs_only_itself(
    tmp_path: Path, names: Names, started: list[FakeProcess | Cluster]
) -> None:
    port = free_port()
    good = FakeProcess(worker_id="good").start()
    late = FakeProcess(worker_id="late", control=f"tcp://127.0.0.1:{port}").start()
    started += [good, late]
    router = serve(tmp_path, started, f"tcp://silent.test:{port}", good.settings.control)
    router.wait_for_workers(1)
    assert names.asked == {"silent.test"}
    answer = router.client().completions.create(model="tiny", prompt="hello", max_tokens=20)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20
    names.addresses["silent.test"] = "127.0.0.1"
    router.wait_for_workers(2)
    assert not router.state.pool.lost


def test_a_name_that_leads_elsewhere_is_followed(
    tmp_path: Path, names: Names, started: list[FakeProcess | Cluster]
) -> None:
    port = free_port()
    first = FakeProcess(worker_id="first", control=f"tcp://127.0.0.1:{port}").start()
    started.append(first)
    names.addresses["moves.test"] = "127.0.0.1"
    router = serve(tmp_path, started, f"tcp://moves.test:{port}")
    router.wait_for_workers(1)
    first.kill()
    started.append(FakeProcess(worker_id="second", control=f"tcp://127.0.0.2:{port}").start())
    names.addresses["moves.test"] = "127.0.0.2"
    wait_until(lambda: set(router.state.pool.workers) == {"second"})


@pytest.mark.asyncio
@pytest.mark.parametrize("endpoint", ["tcp://a b:1", "tcp://a:0", "tcp://a:70000", "tcp://a", "tcp://eth0;a:1"])
async def test_what_cannot_be_a_name_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="tcp://HOST:PORT"):
        HostName.of(endpoint, lambda: None)


@pytest.mark.asyncio
@pytest.mark.parametrize("endpoint", ["tcp://[::1]:1", "tcp://10.0.0.1:1", "tcp://[fe80::1%eth0]:1", "ipc:///tmp/x"])
async def test_addresses_are_not_looked_up(endpoint: str) -> None:
    assert HostName.of(endpoint, lambda: None) is None
