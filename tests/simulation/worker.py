"""A worker in virtual time: the real messages, table of runs and roll call, made-up tokens, KV that only is counted.

As in a real one, the part that hears (`deliver`) answers at once, and the part that steps (`turn`) takes what was heard.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.fake_worker import prompt_crc, token_at
from tests.simulation.network import Network

from baton.messages import (
    LOAD_INTERVAL_S,
    PAUSE_S,
    ROUTER_SILENCE_S,
    BadMessage,
    Cancel,
    Computed,
    Ended,
    Hello,
    Leg,
    LegError,
    Legs,
    Load,
    ModelFacts,
    Outputs,
    Start,
    Token,
    ToRouter,
    Transfer,
    Welcome,
    WorkerInfo,
    decode_to_worker,
    encode,
)
from baton.worker.mailbox import Peer
from baton.worker.roll_call import open_legs, strays
from baton.worker.runs import ClosedEpochs, Run, Runs

STEP_S = 0.02
PREFILL_RATE = 2000.0
LEASE_S = 3.0
SILENT_S = 2.0
"""After so long without a word of the prefill worker the decode worker computes the prompt itself."""
NUM_BLOCKS = 1000
FACTS = ModelFacts(name="m", max_model_len=400, vocab_size=400, block_size=16)
LOW, HIGH = 5, 400
WRONGS = (
    "unknown choice",
    "far",
    "again",
    "other epoch",
    "stranger",
    "known otherwise",
    "busy",
    "broken",
    "impossible",
)
"""What a worker may answer wrongly."""


@dataclass(slots=True, eq=False)
class Work:
    """A run, and how far it is."""

    run: Run
    crc: int
    ready_at: float
    """When its prompt is computed; inf: it waits for its KV."""
    asked_at: float
    next_at: dict[int, int] = field(default_factory=dict)
    """By open choice: the place in the answer of its next token."""
    held_until: float = 0.0
    """Of a prompt whose KV waits to be fetched."""


class SimulatedWorker:
    """One worker at one endpoint; each life has another incarnation."""

    def __init__(
        self,
        network: Network,
        rng: random.Random,
        worker_id: str,
        legs: tuple[Leg, ...],
        by_incarnation: dict[str, Any],
    ) -> None:
        self.worker_id = worker_id
        self.endpoint = f"sim://{worker_id}"
        self._network = network
        self._world = network.world
        self._rng = rng
        self._legs = legs
        self._by_incarnation = by_incarnation
        self._num_lives = 0
        self._stopped_until = 0.0
        self._unread: deque[tuple[bytes, bytes]] = deque()
        self.is_listening = False
        self.wrong = ""
        self.num_wrong = 0
        """So many of the next tokens are answered wrongly."""
        network.add(self.endpoint, self)
        self.begin()

    # -- its life -----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start, with nothing of an earlier life."""
        self._num_lives += 1
        self.is_listening = True
        self.is_draining = False
        self.info = WorkerInfo(
            worker_id=self.worker_id,
            incarnation=f"{self.worker_id}-{self._num_lives}",
            legs=self._legs,
            control=self.endpoint,
            kv="tcp://kv" if "prefill" in self._legs else "",
            layout="l",
            model=FACTS,
        )
        self._by_incarnation[self.info.incarnation] = self
        self.runs = Runs()
        self._works: dict[Run, Work] = {}
        self._closed, self._ended = ClosedEpochs(self._world.clock), ClosedEpochs(self._world.clock)
        self._peers: list[Peer] = []
        self._by_identity: dict[bytes, Peer] = {}
        self._arrived: list[tuple[Peer, Start | Cancel | Hello]] = []
        self._said: dict[Peer, Outputs] = {}
        self._num_steps = 0
        self._looked_at = self._world.now
        self._unread.clear()
        life = self._num_lives
        self._is_awake = False
        self._world.after(0.0, lambda: self._look(life))

    def die(self) -> None:
        """End without a word."""
        self.is_listening = False
        self._by_incarnation.pop(self.info.incarnation)
        self._network.clients[self.endpoint].lose_connection()

    def stop(self, for_s: float) -> None:
        """Do nothing for a while, and then go on."""
        self._stopped_until = self._world.now + for_s

    @property
    def is_stopped(self) -> bool:
        return self._world.now < self._stopped_until

    def drain(self) -> None:
        """Take nothing more, and hand back what runs."""
        self.is_draining = True
        self._wake(0.0)
        for run in self.runs:
            if not run.is_over:
                self._fail(run, LegError("draining", "it ends", True))

    # -- hearing ------------------------------------------------------------------------------------------

    def deliver(self, identity: bytes, frame: bytes) -> None:
        """Have a frame to read."""
        if self.is_listening:
            self._unread.append((identity, frame))
            if not self.is_stopped:
                self._read()

    def _read(self) -> None:
        while self._unread:
            identity, frame = self._unread.popleft()
            try:
                message = decode_to_worker(frame)
            except BadMessage:
                continue
            if isinstance(message, Hello):
                self._send(self._greeted(identity, message), Welcome(self.info, self._load()))
            elif (peer := self._by_identity.get(identity)) is not None:  # else a stranger
                peer.heard_at = self._world.now
                self._arrive(peer, message)

    def _greeted(self, identity: bytes, hello: Hello) -> Peer:
        """As `Mailbox`: know a router by its id, and which connection and roll call are its last."""
        peer = next((each for each in self._peers if each.router_id == hello.router_id), None)
        if peer is None:
            peer = self._by_identity[identity] = Peer(hello.router_id, identity, self._world.now)
            self._peers.append(peer)
        elif 0 < hello.number <= peer.num_calls:
            return peer
        elif peer.identity != identity:
            self._by_identity.pop(peer.identity, None)
            peer.identity = identity
            self._by_identity[identity] = peer
        peer.heard_at = self._world.now
        if hello.number:
            peer.num_calls = hello.number
            self._arrive(peer, hello)
        return peer

    def _arrive(self, peer: Peer, message: Start | Cancel | Hello) -> None:
        self._arrived.append((peer, message))
        self._wake(0.0)

    def _wake(self, delay_s: float) -> None:
        """Have the loop turn, unless it does."""
        if not self._is_awake:
            self._is_awake, life = True, self._num_lives
            self._world.after(delay_s, lambda: self._turn(life))

    def _look(self, life: int) -> None:
        """Forget routers that are silent, and let others know the load."""
        if life != self._num_lives or not self.is_listening:
            return
        if self.is_stopped:
            self._world.after(self._stopped_until - self._world.now, lambda: self._look(life))
            return
        self._read()
        now, pause_s = self._world.now, self._world.now - self._looked_at
        self._looked_at = now
        for peer in list(self._peers):
            if pause_s > PAUSE_S:
                peer.heard_at = min(peer.heard_at + pause_s, now)
            if now - peer.heard_at > ROUTER_SILENCE_S:
                self._lose(peer)
            elif now - peer.told_at >= LOAD_INTERVAL_S:
                self._send(peer, Outputs(self.worker_id, self.info.incarnation, [], self._load()))
        self._world.after(LOAD_INTERVAL_S / 2, lambda: self._look(life))

    def _lose(self, peer: Peer) -> None:
        self._world.note(self.worker_id, "gives up the router")
        peer.is_lost = True
        peer.backlog.clear()
        self._peers.remove(peer)
        self._by_identity.pop(peer.identity, None)
        for run in self.runs:
            if run.peer is peer:
                self._stop_run(run)

    # -- stepping -----------------------------------------------------------------------------------------

    def _turn(self, life: int) -> None:
        """Go round once."""
        if life != self._num_lives or not self.is_listening:
            return
        if self.is_stopped:
            self._world.after(self._stopped_until - self._world.now, lambda: self._turn(life))
            return
        self._is_awake = False
        self._read()
        calls = self._take_arrived()
        self._step()
        said, self._said = self._said, {}
        for peer, outputs in said.items():
            self._send(peer, outputs)
        for peer, number in calls:
            self._send(peer, Legs(self.info.incarnation, number, open_legs(self.runs, peer)))
        if self.runs:
            self._wake(STEP_S)

    def _take_arrived(self) -> list[tuple[Peer, int]]:
        calls = []
        arrived, self._arrived = self._arrived, []
        for peer, message in arrived:
            if isinstance(message, Start):
                self._start(peer, message)
            elif isinstance(message, Cancel):
                self._cancel(message)
            else:
                calls.append((peer, message.number))
                for run, choice in list(strays(self.runs, peer, message.legs)):
                    self._stop_choice(run, choice)
        return calls

    def _start(self, peer: Peer, start: Start) -> None:
        siblings = self.runs.of_request(start.request_id)
        if (
            any(r.start.epoch == start.epoch and r.start.leg == start.leg for r in siblings)
            or any(r.start.epoch > start.epoch for r in siblings)
            or self._closed.is_closed(start.request_id, start.epoch)
            or self._ended.is_closed(f"{start.request_id}/{start.leg}", start.epoch)
        ):
            return
        for run in siblings:
            self._stop_run(run)
        run = Run.of(start, peer)
        if self.is_draining:
            self._say(peer).ended.append(Ended(start.request_id, start.epoch, LegError("draining", "it ends", True)))
            return
        self.runs.open(run)
        now, seconds = self._world.now, len(start.prompt) / PREFILL_RATE
        is_fetching = start.leg == "decode" and start.ticket is not None
        work = Work(run, prompt_crc(start.prompt.token_ids), float("inf") if is_fetching else now + seconds, now)
        work.next_at = {choice.index: len(choice.emitted) for choice in start.choices}
        if start.leg == "prefill":
            work.next_at = {start.choices[0].index: len(start.choices[0].emitted)}
        self._works[run] = work

    def _cancel(self, cancel: Cancel) -> None:
        if cancel.choice is None:
            self._closed.close(cancel.request_id, cancel.epoch)
        for run in self.runs.of_request(cancel.request_id):
            if cancel.choice is None and run.start.epoch <= cancel.epoch:
                self._stop_run(run)
            elif cancel.choice is not None and run.start.epoch == cancel.epoch:
                self._stop_choice(run, cancel.choice)

    def _stop_choice(self, run: Run, choice: int | None) -> None:
        if choice is not None:
            run.open_choices.discard(choice)
            self._works[run].next_at.pop(choice, None)
        if choice is None or not run.open_choices:
            self._stop_run(run)

    def _stop_run(self, run: Run) -> None:
        self._ended.close(f"{run.start.request_id}/{run.start.leg}", run.start.epoch)
        self._works.pop(run, None)
        self.runs.close(run)

    def _fail(self, run: Run, error: LegError) -> None:
        self._say(run.peer).ended.append(Ended(run.start.request_id, run.start.epoch, error))
        self._stop_run(run)

    def _step(self) -> None:
        """Say a token of each run whose prompt is there."""
        now = self._world.now
        has_stepped = False
        for run, work in list(self._works.items()):
            if run.is_over:  # a prompt's KV that waits to be fetched
                if now >= work.held_until:
                    self._stop_run(run)
                continue
            if work.ready_at == float("inf"):
                self._fetch(work)
            if work.ready_at > now:
                has_stepped = has_stepped or work.ready_at < float("inf")
                continue
            has_stepped = True
            self._advance(run, work)
        self._num_steps += has_stepped

    def _fetch(self, work: Work) -> None:
        """Look whether the KV is there; who hears nothing for long, or is told that there is none, computes it."""
        start, now = work.run.start, self._world.now
        assert start.ticket is not None
        peer: SimulatedWorker | None = self._by_incarnation.get(start.ticket.source_incarnation)
        held = None
        if peer is not None and not peer.is_stopped and self._rng.random() > 0.02:
            runs = peer.runs.of_request(start.request_id)
            held = next((r for r in runs if r.start.leg == "prefill" and r.start.epoch == start.epoch), None)
        if held is not None:
            work.asked_at = now
            if held.is_over and peer is not None:
                peer._stop_run(held)
                work.ready_at = now
                if 0 in work.next_at:  # the first token comes with the KV
                    work.next_at[0] = max(work.next_at[0], 1)
                    if self._is_last(start, 1):
                        work.run.open_choices.discard(0)
                        del work.next_at[0]
                seconds = now - work.run.began_at
                source = start.ticket.source_incarnation
                report = Transfer(start.request_id, start.epoch, source, len(start.prompt), 1, 0.01, max(seconds, 0.0))
                self._say(work.run.peer).transfers.append(report)
                if not work.next_at:
                    self._stop_run(work.run)
        elif now - work.asked_at > SILENT_S:
            self._world.note(self.worker_id, "computes itself", bytes.fromhex(start.request_id[-4:]).decode())
            work.ready_at = now + len(start.prompt) / PREFILL_RATE

    def _advance(self, run: Run, work: Work) -> None:
        """Say the next token of each choice."""
        out, start = self._say(run.peer), run.start
        if not run.begun_choices:
            out.computed.append(Computed(start.request_id, start.epoch, len(start.prompt), 0, 0.0, 0.01))
        for choice, at in list(work.next_at.items()):
            run.begun_choices.add(choice)
            is_last = self._is_last(start, at + 1)
            reason: Any = "length" if is_last else None
            token_id = token_at(work.crc, choice, at, LOW, HIGH)
            token = Token(start.request_id, start.epoch, choice, len(start.prompt) + at, token_id, reason)
            if self.num_wrong and self._say_wrong(run, token):
                return
            out.tokens.append(token)
            work.next_at[choice] = at + 1
            if is_last:
                run.open_choices.discard(choice)
                del work.next_at[choice]
            if start.leg == "prefill":
                run.is_over = True
                work.held_until = self._world.now + LEASE_S
                return
        if not work.next_at:
            self._stop_run(run)

    def _say_wrong(self, run: Run, token: Token) -> bool:
        """Say something that breaks the rules; return whether the run is over by it."""
        self.num_wrong -= 1
        out = self._say(run.peer)
        changes: dict[str, Any] = {}
        self._world.note(self.worker_id, "is wrong:", self.wrong, bytes.fromhex(token.request_id[-4:]).decode())
        match self.wrong:
            case "unknown choice":
                changes = {"choice": 77}
            case "far":
                changes = {"position": token.position + 3}
            case "again":
                pass
            case "other epoch":
                changes = {"epoch": token.epoch + self._rng.choice((1, 5)), "token_id": 3}
            case "stranger":
                changes = {"request_id": "0" * 32}
            case "known otherwise":
                # of a first token nobody knows better
                is_known = token.position - len(run.start.prompt) > 1
                changes = {"position": token.position - is_known, "token_id": 3} if is_known else {}
            case "busy" | "broken" | "impossible":
                kinds = {"busy": "out_of_blocks", "broken": "internal", "impossible": "invalid_request"}
                self._fail(run, LegError(kinds[self.wrong], "told to", self.wrong != "impossible"))
                return True
        fields = {name: getattr(token, name) for name in Token.__struct_fields__}
        out.tokens.append(Token(**(fields | changes)))
        return False

    def _is_last(self, start: Start, num_tokens: int) -> bool:
        assert start.params.max_tokens is not None
        return num_tokens >= start.params.max_tokens

    # -- saying -------------------------------------------------------------------------------------------

    def _say(self, peer: Peer) -> Outputs:
        """Return what this turn says to a router."""
        if peer not in self._said:
            self._said[peer] = Outputs(self.worker_id, self.info.incarnation, [], self._load(), [], [], [])
        return self._said[peer]

    def _load(self) -> Load:
        open_runs = [run for run in self.runs if not run.is_over]
        return Load(
            num_running=len(open_runs),
            kv_free_blocks=NUM_BLOCKS - len(self.runs),
            kv_total_blocks=NUM_BLOCKS,
            prefill_rate=PREFILL_RATE,
            decode_step_ms=1000 * STEP_S,
            num_steps=self._num_steps,
            draining=self.is_draining,
        )

    def _send(self, peer: Peer, message: ToRouter) -> None:
        if peer.is_lost:
            return
        peer.backlog.append(encode(message))
        connection = self._network.by_identity[peer.identity]
        while peer.backlog and not connection.to_router.is_cut:
            peer.told_at = self._world.now
            connection.to_router.send(peer.backlog.popleft())


def expected(token_ids: list[int], choice: int, num_tokens: int) -> list[int]:
    """Return the answer that all workers give."""
    crc = prompt_crc(token_ids)
    return [token_at(crc, choice, at, LOW, HIGH) for at in range(num_tokens)]


Workers = Mapping[str, SimulatedWorker]
