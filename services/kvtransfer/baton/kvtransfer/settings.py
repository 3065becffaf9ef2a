"""What can be set about a transfer, and what is counted of it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

from baton.config import setting
from baton.errors import ConfigError

MIB = 1 << 20
MOST_SOCKETS = 4
LARGEST_NBYTES = 4 * MIB
"""What a message may have where nothing is set, so what every importer takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferConfig:
    """One worker's side of KV transfers."""

    num_sockets: int | None = setting(
        None, "sockets that the KV of a pair of workers is striped over; none: one for every four cores, at most 4"
    )
    frame_nbytes: int | None = setting(
        None, "most bytes of one message, unless one block is larger; none: 2 MiB, and 4 MiB over four sockets"
    )
    lease_s: float = setting(10.0, "seconds that KV is held for a peer which is not heard of")
    renew_s: float = setting(2.0, "seconds between renewals of a lease")
    silence_s: float = setting(3.0, "seconds after which a silent peer is taken for dead")
    stall_s: float = setting(5.0, "seconds after which blocks that were sent and did not come are lost")
    park_s: float = setting(
        5.0, "seconds that a request may come to a prefill worker after the fetch that belongs to it"
    )

    def __post_init__(self) -> None:
        if self.num_sockets is not None and not 1 <= self.num_sockets <= 16:
            raise ConfigError(f"num_sockets={self.num_sockets} is not valid: it must be 1 to 16.")
        if self.frame_nbytes is not None and not 64 << 10 <= self.frame_nbytes <= 64 * MIB:
            raise ConfigError(f"frame_nbytes={self.frame_nbytes} is not valid: it must be 64 KiB to 64 MiB.")
        if not 0 < self.renew_s < self.lease_s:
            raise ConfigError(f"renew_s={self.renew_s} is not valid: it must be above 0, below lease_s={self.lease_s}.")
        if min(self.silence_s, self.stall_s, self.park_s) <= 0:
            raise ConfigError("silence_s, stall_s and park_s must be above 0.")

    @property
    def num_stripes(self) -> int:
        """Sockets to open, ZeroMQ's threads for them, and threads that copy and sum: one of each goes with one pair of sockets.

        A second one on two cores only makes what waits outgrow the caches.
        """
        if self.num_sockets is not None:
            return self.num_sockets
        return max(1, min(MOST_SOCKETS, len(os.sched_getaffinity(0)) // 4))

    @property
    def message_nbytes(self) -> int:
        """Most bytes of one message, unless one block is larger.

        A message takes each side 0.1 to 0.2 ms of its one interpreter, so that 2 MiB would be some 12 GB/s at most. Over
        few sockets the interpreter waits for them, and smaller messages stay in the processor's caches.
        """
        if self.frame_nbytes is not None:
            return self.frame_nbytes
        return LARGEST_NBYTES if self.num_stripes == MOST_SOCKETS else LARGEST_NBYTES // 2


@dataclass(slots=True)
class TransferStats:
    """Counters and gauges; written by the transfer's thread alone, read by anyone."""

    bytes_sent: int = 0
    bytes_received: int = 0
    fetches_queued: int = 0
    """Fetches from here whose prompts are still to be computed."""
    longest_queued_s: float = 0.0
    """The longest predicted time until one of them is."""
    fetches: Counter[str] = field(default_factory=Counter)
    """Ends of fetches here: `done`, or the reason of the failure."""
    releases: Counter[str] = field(default_factory=Counter)
    """Ends of what was offered here: fetched, expired, cancelled, failed."""
    integrity_failures: Counter[str] = field(default_factory=Counter)
    """Authentic blocks that were not what was asked for: checksum, hash, layout, size."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Frames that went no further: garbage, stranger, old_epoch, forged, layout, duplicate, over_credit, ..."""
