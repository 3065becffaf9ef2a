"""Where a decode worker gets the KV of prompts that others computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from baton.kvtransfer.imports import Event
from baton.kvtransfer.wire import Ticket


class KVSource(Protocol):
    """What the leg needs of a source; the importer, which fetches from a ticket's exporter, is one.

    Nothing here waits. A request and epoch name a fetch. Its last event is `Fetched` or `FetchFailed`; until then the
    granted blocks are the source's to write.
    """

    def fetch(self, ticket: Ticket, from_block: int, names: Sequence[bytes], block_ids: Sequence[int], /) -> None:
        """Ask for the blocks with these names; the first is the prompt's block `from_block`. `block_ids`: a first grant.

        Raises:
            BatonError, ValueError: the ticket is none, or leads nowhere that can be reached from here.
        """

    def grant(self, request_id: bytes, epoch: int, block_ids: Sequence[int], /) -> None:
        """Let the next wanted blocks land in these places."""

    def cancel(self, request_id: bytes, epoch: int, /) -> None:
        """Give up; ends as `FetchFailed`, with what is good until then. Safe to repeat, and too late."""

    def events(self) -> list[Event]:
        """Take what has happened since: `Landed`, `Fetched`, `FetchFailed`."""
