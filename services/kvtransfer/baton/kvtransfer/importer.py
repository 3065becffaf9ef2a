"""The importer: fetches KV that other workers computed. `imports.py` decides; here are the sockets, a set an exporter."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import zmq

from baton.errors import ConfigError
from baton.kvtransfer import wire
from baton.kvtransfer.exchange import Exchange
from baton.kvtransfer.imports import Event, Imports
from baton.kvtransfer.memory import PeerMemory, check_block_ids
from baton.kvtransfer.side import Side
from baton.kvtransfer.sockets import Act, keep_message_memory, make_dealer, send
from baton.kvtransfer.transports.transport import Endpoint, Socket, Transport, choose
from baton.kvtransfer.wire import Key, Ticket
from baton.logs import get_logger

log = get_logger("kvtransfer")
IDLE_S = 60.0
LOOK_S = 1.0
"""Between two looks at who is idle, or gone."""
CLOSE_S = 1.0
CLOSE_LINGER_MS = 200


@dataclass(slots=True)
class _Link:
    dealers: list[Socket]
    memory: PeerMemory | None
    """The exporter's, where its blocks can be read there."""
    used_at: float

    def is_gone(self) -> bool:
        return self.memory is not None and self.memory.is_gone()

    def close(self, linger_ms: int = 0) -> None:
        for dealer in self.dealers:
            dealer.close(linger=linger_ms)
        if self.memory is not None:
            self.memory.close()


class Importer(Exchange[Event]):
    """Fetch blocks from the exporters of other workers."""

    _messages_a_turn = 8  # as much as a few tens of MiB

    def __init__(self, side: Side) -> None:
        """Make ready; connect to an exporter when the first ticket names it."""
        keep_message_memory()
        self._imports = Imports(side)
        super().__init__(side, self._imports, self._imports.events)
        self._links: dict[str, _Link] = {}
        self._look_at = 0.0

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
        check_block_ids(self._side.memory, block_ids)
        endpoint = Endpoint.parse(ticket.source)
        transports = choose(self._side.transports, endpoint)
        self._begin(key)
        self._side.memory.expect(block_ids)
        self._tell(self._connect, ticket.source, transports, endpoint)
        self._tell(self._fetch, key, ticket, from_block, joined, list(block_ids))

    def grant(self, request_id: bytes, epoch: int, block_ids: Sequence[int]) -> None:
        """Let the next wanted blocks land in these places: the credit. They belong to the import until it ends."""
        check_block_ids(self._side.memory, block_ids)
        self._side.memory.expect(block_ids)
        self._tell(self._imports.grant, (request_id, epoch), list(block_ids))

    def cancel(self, request_id: bytes, epoch: int) -> None:
        """Give up: ends as `FetchFailed`. Safe to repeat, and too late."""
        self._tell(self._imports.cancel, (request_id, epoch))

    # For the thread that transfers

    def sockets(self) -> Mapping[Socket, Act]:
        """Sockets on which exporters answer."""
        receive = self._imports.receive
        return {dealer: partial(receive, source) for source, link in self._links.items() for dealer in link.dealers}

    def _fetch(self, key: Key, ticket: Ticket, from_block: int, hashes: bytes, block_ids: Sequence[int]) -> None:
        link = self._links.get(ticket.source)
        memory = None if link is None else link.memory
        self._imports.fetch(key, ticket, from_block, hashes, block_ids, memory)

    def _send(self) -> bool:
        now = time.monotonic()
        while self._imports.requests:
            source, header = self._imports.requests.popleft()
            link = self._links.get(source)
            if link is None:
                self._imports.lose(source)
            else:
                link.used_at = now
                send(link.dealers[0], header)
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self._let_go(now)
        return False

    def _let_go(self, now: float) -> None:
        """Close the links that nobody uses, or whose exporter's process has ended: what is asked of it is lost."""
        for source, link in list(self._links.items()):
            is_gone = link.is_gone()
            if (is_gone or now - link.used_at > IDLE_S) and not self._imports.is_landing_from(source):
                self._links.pop(source).close()
                if is_gone:
                    self._imports.lose(source)

    def _connect(self, source: str, transports: Iterable[Transport], endpoint: Endpoint) -> None:
        """Connect to an exporter by the first transport that can; if none can, what is asked of it ends as unreachable."""
        if source in self._links:
            return
        for transport in transports:
            addresses = endpoint.addresses[transport.scheme]
            link = _Link([], None, time.monotonic())
            try:
                self._link_up(link, transport, addresses)
            except (
                ConfigError,
                zmq.ZMQError,
            ) as error:  # it went with its process, is no address, or out of a GPU's reach
                log.warning("kv_path_failed", transport=transport.scheme, source=addresses[0], reason=str(error))
                link.close()
                continue
            self._links[source] = link
            log.info(
                "kv_path",
                transport=transport.scheme,
                source=addresses[0],
                num_sockets=len(addresses),
                is_encrypted=self._side.keys is not None,
                block_nbytes=self._side.memory.block_nbytes,
                measured_gb_s=None
                if link.memory is None or link.memory.rate is None
                else round(link.memory.rate / 1e9, 1),
            )
            return

    def _link_up(self, link: _Link, transport: Transport, addresses: Sequence[str]) -> None:
        routing_id = b"\x01" + secrets.token_bytes(15)
        link.memory = transport.map(addresses[0])
        for address in addresses:
            dealer = make_dealer(self._context, self._side, routing_id)
            link.dealers.append(dealer)
            transport.connect(dealer, address)

    def _disconnect(self) -> None:
        self._settle(CLOSE_S)
        self._send()
        for link in self._links.values():
            link.close(CLOSE_LINGER_MS)
        self._links.clear()
        self._context.term()
