"""Connections between a router and its workers, as ZeroMQ has them, and all that can go wrong with them.

Each connection keeps the order of its messages. A new one has another identity; what the old one held is lost, or is
read later. Faults last for a while: messages are lost, doubled, swapped with the next, cut short, or come late.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.simulation.world import World

from baton.messages import BadMessage, Hello, ToRouter, ToWorker, decode_to_router, encode
from baton.router.workers import WorkerGone

FAULTS = ("drop", "delay", "double", "swap", "garble")


class Faults:
    """What is wrong with the messages of one direction, for a while."""

    def __init__(self) -> None:
        self.kind = ""
        self.until = 0.0
        self.share = 0.0


class Channel:
    """One direction of one connection."""

    def __init__(self, world: World, rng: random.Random, faults: Faults, deliver: Callable[[bytes], None]) -> None:
        self._world = world
        self._rng = rng
        self._faults = faults
        self._deliver = deliver
        self._last_at = 0.0
        self._swapped: bytes | None = None
        self.is_cut = False

    def send(self, frame: bytes) -> None:
        """Put a message on its way."""
        faults, rng = self._faults, self._rng
        kind = faults.kind if self._world.now < faults.until and rng.random() < faults.share else ""
        held, self._swapped = self._swapped, None
        if kind == "swap" and held is None:
            self._swapped = frame
            self._world.after(0.5, self._let_go)
            return
        frames = [frame] if held is None else [frame, held]
        if kind == "drop":
            frames = frames[1:]
        elif kind == "double":
            frames.append(frame)
        elif kind == "garble":
            frames[0] = frame[: rng.randrange(len(frame))]
        late_s = rng.uniform(0.0, 4.0) if kind == "delay" else 0.0
        for each in frames:
            self._put(each, late_s)

    def _let_go(self) -> None:
        """Send what waits for a next message that does not come."""
        if self._swapped is not None:
            held, self._swapped = self._swapped, None
            self._put(held, 0.0)

    def _put(self, frame: bytes, late_s: float) -> None:
        world = self._world
        self._last_at = max(self._last_at, world.now + self._rng.uniform(0.0002, 0.003) + late_s)
        world.after(self._last_at - world.now, lambda: self._arrive(frame))

    def _arrive(self, frame: bytes) -> None:
        if not self.is_cut:
            self._deliver(frame)


class Connection:
    """A router's socket to one worker, from the time it is connected until it is cut or closed."""

    def __init__(self, network: Network, client: SimulatedClient, number: int) -> None:
        self.identity = b"%d" % number
        self._client = client
        worker = network.workers[client.endpoint]
        to_worker, to_router = network.faults[client.endpoint]
        self.to_worker = Channel(
            network.world, network.rng, to_worker, lambda frame: worker.deliver(self.identity, frame)
        )
        self.to_router = Channel(network.world, network.rng, to_router, client.deliver)

    def cut(self, *, is_read_on: bool = False) -> None:
        """End it; with `is_read_on` what it holds is still read by the worker."""
        self.to_worker.is_cut = not is_read_on
        self.to_router.is_cut = True


class Network:
    """All connections: what the pool opens its clients by."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.workers: dict[str, Any] = {}
        """By endpoint."""
        self.faults: dict[str, tuple[Faults, Faults]] = {}
        self.by_identity: dict[bytes, Connection] = {}
        self.clients: dict[str, SimulatedClient] = {}
        self._num_connections = 0

    def add(self, endpoint: str, worker: Any) -> None:
        """Have a worker live at an endpoint."""
        self.workers[endpoint] = worker
        self.faults.setdefault(endpoint, (Faults(), Faults()))

    def connect(self, client: SimulatedClient) -> Connection:
        """Make a connection to whoever lives there."""
        self._num_connections += 1
        made = Connection(self, client, self._num_connections)
        self.by_identity[made.identity] = made
        return made

    def open(
        self, endpoint: str, on_message: Callable[[Any, ToRouter], None], on_bad_message: Callable[[Any, str], None]
    ) -> SimulatedClient:
        """As `Connections.open`."""
        client = self.clients[endpoint] = SimulatedClient(self, endpoint, on_message, on_bad_message)
        return client

    def close(self) -> None:
        """As `Connections.close`."""


class SimulatedClient:
    """What stands in the place of a `WorkerClient`."""

    def __init__(
        self,
        network: Network,
        endpoint: str,
        on_message: Callable[[Any, ToRouter], None],
        on_bad_message: Callable[[Any, str], None],
    ) -> None:
        self.endpoint = endpoint
        self.last_heard = 0.0
        self.refusal = ""
        self._network = network
        self._world = network.world
        self._on_message = on_message
        self._on_bad_message = on_bad_message
        self._inbox: list[bytes] = []
        self._connection: Connection | None = None
        self._is_dialling = False
        self.reopen()

    # -- what the pool calls ------------------------------------------------------------------------------

    def reopen(self) -> None:
        """Connect anew, and drop what the old connection had queued."""
        self.close()
        self._dial()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.cut(is_read_on=self._network.rng.random() < 0.5)
            self._connection = None
        self._inbox.clear()

    def hello(self, hello: Hello) -> None:
        """Say who we are; silently nothing while the worker is away."""
        if self._connection is not None:
            self.send(hello)

    def send(self, message: ToWorker) -> None:
        if self._connection is None:
            raise WorkerGone(self.endpoint)
        self._connection.to_worker.send(encode(message))

    # -- what happens to it -------------------------------------------------------------------------------

    def lose_connection(self) -> None:
        """Have it cut: by a network that breaks, or by the end of the worker."""
        if self._connection is not None:
            self._connection.cut()
            self._connection = None
        self._dial()

    def _dial(self) -> None:
        if not self._is_dialling:
            self._is_dialling = True
            self._world.after(self._network.rng.uniform(0.002, 0.4), self._try)

    def _try(self) -> None:
        self._is_dialling = False
        if self._connection is None:
            if self._network.workers[self.endpoint].is_listening:
                self._connection = self._network.connect(self)
            else:
                self._dial()

    def deliver(self, frame: bytes) -> None:
        """Have a frame to read."""
        if not self._inbox:
            self._world.tell_router(self._read)
        self._inbox.append(frame)

    def _read(self) -> None:
        """Read all that came, as `WorkerClient` does; what it holds may be dropped while it reads."""
        while self._inbox:
            frame = self._inbox.pop(0)
            try:
                message = decode_to_router(frame)
            except BadMessage as error:
                self._on_bad_message(self, str(error))
                continue
            self.last_heard = self._world.now
            try:
                self._on_message(self, message)
            except Exception as error:
                self._world.violated(f"the router failed on a message: {error!r}")
