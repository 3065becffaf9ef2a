"""Networks that come late, in crumbs, slowly, wrong or not at all: between router and workers, and between P and D."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from tests.kvtransfer.blocks import Blocks, TestTicket, block_hashes, request_id
from tests.kvtransfer.test_transfer import CONFIG, Workers, ends_of, offer_all
from tests.proxy import Proxy, Toxics, proxied
from tests.router.cluster import Cluster, FakeProcess, wait_until
from tests.router.cluster import cluster as router_and_workers
from tests.router.test_faults import run_streams, wait_for_tokens

from baton.kvtransfer.imports import Fetched, FetchFailed
from baton.kvtransfer.transports.transport import Endpoint

NUM_STREAMS = 12

# -- between a router and its workers ---------------------------------------------------------------------------------


class Network:
    """A router whose ways to its two workers go through proxies."""

    def __init__(self, made: Cluster, proxies: list[Proxy]) -> None:
        self.made = made
        self.proxies = proxies

    def num_workers(self) -> int:
        return len(self.made.state.pool.workers)

    @contextlib.contextmanager
    def wrong(self, **what: float) -> Iterator[Proxy]:
        """Have something be wrong on the way to one worker."""
        proxy = self.proxies[0]
        for name, value in what.items():
            setattr(proxy.toxics, name, value)
        yield proxy
        for name in what:
            setattr(proxy.toxics, name, getattr(Toxics(), name))
        wait_until(lambda: self.num_workers() == 2)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    workers = [FakeProcess(worker_id=name, step_ms=5.0).start() for name in ("d0", "d1")]
    with contextlib.ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.stop)
        ports = [int(worker.settings.control.rpartition(":")[2]) for worker in workers]
        proxies = [stack.enter_context(proxied(port)) for port in ports]
        endpoints = [f"tcp://127.0.0.1:{proxy.port}" for proxy in proxies]
        folder = tmp_path_factory.mktemp("network")
        made = stack.enter_context(router_and_workers(folder, [], is_static=False, policy="round-robin"))
        made.ask(lambda state: [state.pool.connect(endpoint) for endpoint in endpoints])
        made.wait_for_workers(len(endpoints))
        yield Network(made, proxies)


@pytest.mark.parametrize(
    "what", [{"late_s": 0.08}, {"slice_nbytes": 7}, {"bytes_per_s": 30_000.0}], ids=["late", "in crumbs", "slow"]
)
def test_a_bad_way_to_a_worker_costs_no_token(network: Network, what: dict[str, float]) -> None:
    def meanwhile() -> None:
        wait_for_tokens(network.made, "d0")
        with network.wrong(**what) as proxy:
            num_bytes = proxy.num_bytes
            wait_until(lambda: proxy.num_bytes > num_bytes + 2_000)

    run_streams(network.made, NUM_STREAMS, meanwhile)


def test_a_worker_behind_a_half_open_way_is_given_up_and_let_in_again(network: Network) -> None:
    def meanwhile() -> None:
        wait_for_tokens(network.made, "d0")
        with network.wrong(is_half_open=True, is_one_way=True):  # it hears us, and we do not hear it
            wait_until(lambda: network.num_workers() == 1)

    run_streams(network.made, NUM_STREAMS, meanwhile)


def test_a_way_that_breaks_again_and_again_costs_no_token(network: Network) -> None:
    proxy = network.proxies[0]

    def meanwhile() -> None:
        for _ in range(3):
            wait_for_tokens(network.made, "d0")
            num_connections = proxy.num_connections
            proxy.cut()
            wait_until(lambda seen=num_connections: proxy.num_connections > seen)  # type: ignore[misc]

    run_streams(network.made, NUM_STREAMS, meanwhile)
    wait_until(lambda: network.num_workers() == 2)


# -- between a prefill and a decode worker ----------------------------------------------------------------------------


@contextlib.contextmanager
def fetching(
    what: Toxics, silence_s: float = 60.0
) -> Iterator[tuple[list[Proxy], Callable[[], Fetched | FetchFailed]]]:
    """Fetch 60 blocks over real sockets through proxies; what is said to be there must be right."""
    workers, theirs, ours = Workers("tcp"), Blocks(60, seed=2), Blocks(60)
    try:
        config = replace(CONFIG, silence_s=silence_s, stall_s=silence_s)
        exporter = workers.exporter(theirs.memory, config=config)
        importer = workers.importer(ours.memory, config=config)
        with contextlib.ExitStack() as stack:
            source, proxies = exporter.endpoint, []
            for address in Endpoint.parse(source).addresses["tcp"]:
                port = int(address.rpartition(":")[2])
                proxies.append(stack.enter_context(proxied(port)))
                proxies[-1].toxics = what
                source = source.replace(f":{port}", f":{proxies[-1].port}")
            ticket = TestTicket(request_id(1), source=source)
            importer.fetch(ticket, 0, block_hashes(1, 60), range(60))
            offer_all(exporter, ticket, 1, list(range(60)))

            def end() -> Fetched | FetchFailed:
                (ended,) = ends_of(importer)
                num_good = 60 if isinstance(ended, Fetched) else ended.num_blocks
                assert (ours.bytes[:num_good] == theirs.bytes[:num_good]).all()
                return ended

            yield proxies, end
    finally:
        workers.stop()


@pytest.mark.parametrize(
    "what", [Toxics(late_s=0.02), Toxics(slice_nbytes=1000), Toxics(bytes_per_s=2e6)], ids=["late", "in crumbs", "slow"]
)
def test_blocks_come_whole_over_a_bad_way(what: Toxics) -> None:
    with fetching(what) as (_, end):
        assert isinstance(end(), Fetched)


@pytest.mark.parametrize("every", [300_000, 60_000, 5_000])
def test_no_corrupted_block_is_taken_for_a_good_one(every: int) -> None:
    with fetching(Toxics(corrupt_every=every), silence_s=2.0) as (proxies, end):
        end()
        assert every > 5_000 or sum(proxy.num_corrupted for proxy in proxies) > 0


def test_a_half_open_way_ends_the_fetch_with_what_is_good() -> None:
    with fetching(Toxics(is_half_open=True, is_one_way=True), silence_s=1.0) as (_, end):
        assert isinstance(end(), FetchFailed)


def test_a_way_that_breaks_is_taken_up_again_or_ends_the_fetch() -> None:
    with fetching(Toxics(bytes_per_s=4e5), silence_s=3.0) as (proxies, end):
        wait_until(lambda: any(proxy.num_bytes > 20_000 for proxy in proxies))
        for proxy in proxies:
            proxy.toxics = Toxics()
            proxy.cut()
        end()
