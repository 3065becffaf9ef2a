"""The importer: fetches KV that other workers computed.

The engine's thread asks and takes events; none of its methods but `poll`, `service` and `close` waits for anything.
The thread that owns it (a `TransferThread`) sends, receives, verifies and writes into the blocks. What counts as
landed is decided in `imports.py`; here are the sockets: one set for each exporter, kept while it is in use.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import zmq

from baton.curve import CurveKeys
from baton.errors import ConfigError
from baton.kvtransfer import wire
from baton.kvtransfer.exchange import Exchange
from baton.kvtransfer.imports import Event, Fetched, FetchFailed, Imports
from baton.kvtransfer.memory import BlockMemory, check_block_ids
from baton.kvtransfer.settings import TransferConfig, TransferStats
from baton.kvtransfer.sockets import keep_message_memory, make_dealer, receive_frames, send_frame
from baton.kvtransfer.transports.transport import Endpoint, Socket, Transport, choose
from baton.kvtransfer.wire import Key, Ticket
from baton.logs import get_logger

log = get_logger("kvtransfer")
MESSAGES_A_TURN = 8
"""Of one socket before the others have theirs: as much as a few tens of MiB."""
IDLE_S = 60.0
CLOSE_LINGER_MS = 200


@dataclass(slots=True)
class _Link:
    dealers: list[Socket]
    shared: memoryview | None
    """The exporter's blocks, where they can be read in its memory."""
    used_at: float


class Importer(Exchange[Event]):
    """Fetch blocks from the exporters of other workers."""

    _ends = (Fetched, FetchFailed)

    def __init__(
        self,
        memory: BlockMemory,
        layout: str,
        *,
        incarnation: str,
        config: TransferConfig | None = None,
        transports: Sequence[Transport] | None = None,
        keys: CurveKeys | None = None,
        stats: TransferStats | None = None,
        on_event: Callable[[], None] | None = None,
    ) -> None:
        """Make ready; connect to an exporter when the first ticket names it.

        `on_event` is called, in the owning thread, when there are events to take.
        """
        keep_message_memory()
        super().__init__(memory, config, transports, stats, on_event)
        self._imports = Imports(memory, layout, incarnation, self._config, self.stats, time.monotonic)
        self._events = self._imports.events
        self._keys = keys
        self._links: dict[str, _Link] = {}

    # For the engine's thread

    def fetch(self, ticket: Ticket, from_block: int, hashes: Sequence[bytes], block_ids: Sequence[int] = ()) -> None:
        """Ask the ticket's exporter for the blocks with these hashes; the first is the prompt's block `from_block`.

        With no hashes, wait for its `meta` only. `block_ids` are a first grant.

        Raises:
            BadTicket: its fields are of the wrong size.
            ConfigError: its source is no endpoint, or none that this worker's transports reach.
            ValueError: the ticket is being fetched already.
        """
        key = wire.check_ticket(ticket)
        joined = wire.join_hashes(hashes)
        if not 0 <= from_block <= wire.MAX_BLOCKS - len(hashes):
            raise ValueError(f"from_block={from_block} and {len(hashes)} more are above {wire.MAX_BLOCKS} blocks")
        check_block_ids(self._memory, block_ids)
        choose(self._transports, Endpoint.parse(ticket.source))
        self._begin(key)
        self._memory.expect(block_ids)
        self._tell(self._fetch, key, ticket, from_block, joined, list(block_ids))

    def grant(self, request_id: bytes, epoch: int, block_ids: Sequence[int]) -> None:
        """Let the next wanted blocks land in these places: the credit. They belong to the import until it ends."""
        check_block_ids(self._memory, block_ids)
        self._memory.expect(block_ids)
        self._tell(self._imports.grant, (request_id, epoch), list(block_ids))

    def cancel(self, request_id: bytes, epoch: int) -> None:
        """Give up: ends as `FetchFailed`. Safe to repeat, and too late."""
        self._tell(self._imports.cancel, (request_id, epoch))

    # For the owning thread

    def sockets(self) -> Sequence[Socket]:
        """Sockets on which exporters answer."""
        return [dealer for link in self._links.values() for dealer in link.dealers]

    def service(self, stirred: Container[Socket | int]) -> float:
        """Do all that can be done now; return the seconds until there may be more."""
        self._obey(stirred)
        more = self._receive(stirred)
        self._imports.sweep()
        self._send_requests()
        self._announce()
        if more:
            return 0.0
        return 0.001 if self._imports.is_landing else self._imports.seconds_to_sweep()

    def close(self) -> None:
        """Give up all imports, tell their exporters, and disconnect."""
        self._obey()
        deadline = time.monotonic() + 1.0
        self._imports.close()
        while self._imports.num_open and time.monotonic() < deadline:
            self._imports.sweep()
            time.sleep(0.001)
        self._send_requests()
        for link in self._links.values():
            for dealer in link.dealers:
                dealer.close(linger=CLOSE_LINGER_MS)
        self._links.clear()
        self._context.term()
        self._announce()
        self.wakeup.close()

    def _fetch(self, key: Key, ticket: Ticket, from_block: int, hashes: bytes, block_ids: Sequence[int]) -> None:
        link = self._links.get(ticket.source) or self._connect(ticket.source)
        shared = None if link is None else link.shared
        self._imports.fetch(key, ticket, from_block, hashes, block_ids, shared)

    def _receive(self, stirred: Container[Socket | int]) -> bool:
        """Act on what exporters say; True: there may be more."""
        more = False
        for source, link in self._links.items():
            for dealer in link.dealers:
                if dealer not in stirred:
                    continue
                for _ in range(MESSAGES_A_TURN):
                    frames = receive_frames(dealer)
                    if frames is None:
                        break
                    self._imports.receive(source, frames)
                else:
                    more = True
        return more

    def _send_requests(self) -> None:
        now = time.monotonic()
        while self._imports.requests:
            source, header = self._imports.requests.popleft()
            link = self._links.get(source) or self._connect(source)
            if link is None:
                self._imports.lose(source)
                continue
            link.used_at = now
            send_frame(link.dealers[0], header)
        for source, link in list(self._links.items()):
            if now - link.used_at > IDLE_S:
                del self._links[source]
                for dealer in link.dealers:
                    dealer.close(linger=0)

    def _connect(self, source: str) -> _Link | None:
        routing_id = b"\x01" + secrets.token_bytes(15)
        dealers: list[Socket] = []
        try:
            endpoint = Endpoint.parse(source)
            transport = choose(self._transports, endpoint)
            addresses = endpoint.addresses[transport.scheme]
            shared = transport.map(addresses[0])
            for address in addresses:
                dealers.append(
                    make_dealer(self._context, self._config, self._keys, routing_id, self._memory.block_nbytes)
                )
                transport.connect(dealers[-1], address)
        except (ConfigError, zmq.ZMQError) as error:  # it went with its process, or is no address
            log.warning("source_unreachable", source=source, reason=str(error))
            for dealer in dealers:
                dealer.close(linger=0)
            return None
        log.info(
            "kv_path",
            transport=transport.scheme,
            source=addresses[0],
            num_sockets=len(dealers),
            is_encrypted=self._keys is not None,
            block_nbytes=self._memory.block_nbytes,
        )
        link = self._links[source] = _Link(dealers, shared, time.monotonic())
        return link
