"""What routers ask of a worker itself, for admins: to forget what it has cached, to sleep, to wake up.

    AWAKE ── sleep ──▶ TIRED ── nothing runs any more ──▶ ASLEEP
      ▲                  │ takes nothing new                │ has given back the memory of KV, from level 1 on
      └───── wake_up ────┴──────────────────────────────────┘

Whatever a sleep's level, what was cached is forgotten only where memory is given back.
"""

from __future__ import annotations

from baton.engine.engine import Engine
from baton.logs import get_logger
from baton.messages import Command, Done
from baton.worker.mailbox import Peer

_WOKEN = "it was woken up meanwhile"
log = get_logger("errands")


class Errands:
    """Owned by the loop's thread."""

    def __init__(self, engine: Engine, incarnation: str) -> None:
        self._engine = engine
        self._incarnation = incarnation
        self._tired: list[tuple[Peer, Command]] = []
        """Those who wait until it sleeps."""
        self._done: list[tuple[Peer, Done]] = []
        self.takes_nothing = False
        """Whether it sleeps, or is about to."""

    def take(self, peer: Peer, command: Command) -> None:
        """Do what is asked, or begin to."""
        match command.order:
            case "reset_prefix_cache":
                self._engine.forget_prefixes(external=command.external)
                self._end(peer, command)
            case "sleep":
                if why_not := self._why_awake(command.level):
                    self._end(peer, command, why_not)
                else:
                    self.takes_nothing = True
                    self._tired.append((peer, command))
            case "wake_up":
                tired, self._tired = self._tired, []
                for other, its in tired:
                    self._end(other, its, _WOKEN)
                if self.takes_nothing:
                    log.info("awake")
                self.takes_nothing = False
                self._end(peer, command)

    def advance(self, num_runs: int) -> None:
        """Fall asleep, if it is to and nothing runs any more."""
        if not self._tired or num_runs or self._engine.has_work:
            return
        tired, self._tired = self._tired, []
        level = max(command.level for _, command in tired)
        if level:
            self._engine.give_back_kv()
        log.info("asleep", level=level)
        for peer, command in tired:
            self._end(peer, command)

    def take_done(self) -> list[tuple[Peer, Done]]:
        """Take the answers since the last call; the load that they change goes before them."""
        done, self._done = self._done, []
        return done

    def _why_awake(self, level: int) -> str:
        """Say why it cannot sleep so deep; empty: it can."""
        if level > 1:
            return "level=2 is not served: weights stay where they are. Use level 1 or 0"
        if level and not self._engine.can_give_back_kv:
            return (
                "level=1 is not served on a GPU: captured steps and other workers know where its KV lies. Use level 0"
            )
        return ""

    def _end(self, peer: Peer, command: Command, error: str = "") -> None:
        self._done.append((peer, Done(self._incarnation, command.number, error)))
