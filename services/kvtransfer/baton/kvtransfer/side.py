"""What exporter and importer of a worker have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from baton.curve import CurveKeys
from baton.kvtransfer.memory import BlockMemory
from baton.kvtransfer.settings import TransferConfig, TransferStats
from baton.kvtransfer.transports.transport import Transport


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """One worker's side of its transfers."""

    memory: BlockMemory
    layout: str
    incarnation: str
    transports: Sequence[Transport] = ()
    """Ways to other workers, the best first: an exporter listens on all."""
    keys: CurveKeys | None = None
    config: TransferConfig = field(default_factory=TransferConfig)
    stats: TransferStats = field(default_factory=TransferStats)
    on_event: Callable[[], None] = lambda: None
    """Called in the transferring thread when there are events to take."""
    clock: Callable[[], float] = time.monotonic
