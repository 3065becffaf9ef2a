"""What router and worker say to one another: msgpack structs over one ZeroMQ socket pair. No torch, no text.

A worker's engine process binds a ROUTER socket (mandatory, bounded); each router connects a DEALER and speaks first.
Every message is one frame: a tagged array that `encode` writes and `decode_to_worker` or `decode_to_router` reads.

    router -> worker    Hello, once a second: who I am, whether I want the block log by this way, and my open legs there
                        Start     one leg of a request, under an epoch
                        Pool      the one leg of a request that generates nothing, under an epoch
                        Cancel    closes that epoch of the request, and all before it
                        Command   what an admin asks of the worker itself, under a number
    worker -> router    Welcome   the answer to each Hello: what this worker is, and its load
                        Legs      the answer to each that names legs: those that this worker has
                        Outputs   once a step (and each 250 ms when idle): every stream's tokens, what was pooled, what ended, the load
                        Blocks    once a step at most, to routers that asked: what the prefix cache stored and evicted
                        Done      the answer to each Command, when it is done, or why it is not; after the load that it changed

Rules
- A message that does not decode, or whose numbers are out of range, is dropped and counted; the connection stays.
- Who sends anything has said Hello on this connection; what a stranger sends is dropped and counted.
- Any traffic counts as a heartbeat. A router takes a worker as dead after 3 s of silence or when `incarnation`
  changes, and sends nothing to one that says it is stuck. A worker that has not heard a router for 10 s cancels what it runs
  for it. A pause of one's own is nobody's silence.
- Roll call: a worker stops what it runs for a router and the router does not name in a Hello; a router replays what it had
  sent before a Hello, still waits for and the worker does not name in the answer. Both lists stand in the order of the
  other messages, so that nothing on its way is taken as lost; one that came by an older connection is known by its number.
- A request id is minted by the router (uuid4, hex). What the client calls its request never is a key.
- The epoch rises with each replay. Both sides drop what belongs to a lower epoch than the highest they know. Cancel is
  idempotent and remembered: a Start that arrives after its Cancel is dropped.
- `position` is a token's index in the whole sequence, prompt included, so the first token of an answer stands at
  `num_prompt_tokens`. The router sees gaps and repeats by it. A repeat with the same token is dropped; a repeat with another token
  is an integrity failure.
- Every Start is answered by tokens up to one with a finish_reason (for each choice), or by one `Ended`, or is cancelled;
  every Pool by one `Pooled`, or by one `Ended`, or is cancelled. Any worker pools the same, so a replay needs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Annotated, ClassVar, Literal

import msgspec

from baton.errors import InvalidRequest
from baton.pooling import PoolingFacts, PoolingParams
from baton.prompt import Prompt
from baton.protocol import NOBODY, SamplingParams, Share
from baton.step_pace import StepPace

HELLO_INTERVAL_S = 1.0
LOAD_INTERVAL_S = 0.25
WORKER_SILENCE_S = 3.0
"""After so long without any message a router takes a worker as dead."""
ROUTER_SILENCE_S = 10.0
"""After so long without any message a worker cancels what a router had asked."""
PAUSE_S = 1.0
"""Who did not look at its clock for so long was stopped itself: its machine slept, or a debugger held it."""
MAX_MESSAGE_NBYTES = 32 * 2**20
"""For `zmq.MAXMSGSIZE` on both ends; a prompt of a million tokens is 5 MB."""

Leg = Literal["prefill", "decode", "pool", "store"]
"""A worker whose model pools has that leg alone. A store has no other leg, and takes no requests."""
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Id = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Positive = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e15)]
"""A time or a rate. What a worker says is in these ranges, or no message: an infinite rate would spoil every choice of worker."""


# -- what a worker is -----------------------------------------------------------------------------------------


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a router must know of the model. Workers whose facts differ do not serve together."""

    name: str
    """The name that clients send: the served model name."""
    max_model_len: Positive
    vocab_size: Positive
    block_size: Positive
    eos_token_ids: tuple[int, ...] = ()
    cache_parts: tuple[str, ...] = ()
    """What, beside key and tenant salt, starts the hash chains: `cache_root(key, *cache_parts, salt)`."""
    pooling: PoolingFacts | None = None
    """What the model pools; None: it generates."""


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker announces, in Redis and in each Welcome. It does not change while the process lives."""

    worker_id: str
    incarnation: str
    """Random for each start of the engine process: equal id and another incarnation is another worker."""
    legs: tuple[Leg, ...]
    control: str
    """Endpoint of the control socket."""
    kv: str
    """Endpoint from which KV is fetched; empty for a worker that never prefills."""
    layout: str
    """Fingerprint of the KV layout; only equal ones pair."""
    model: ModelFacts
    http: str = ""
    """Base address of the face: /health, /ready, /metrics."""
    num_places: Count = 0
    """Most sequences in one step; 0: no bound is known."""


class Load(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How busy a worker is. Rates are its own measurements, 0 while it has none."""

    num_running: Count = 0
    num_waiting: Count = 0
    waiting_tokens: Count = 0
    """Prompt tokens that are asked for and not computed yet, chunks of running prompts included."""
    kv_free_blocks: Count = 0
    """Free or evictable."""
    kv_total_blocks: Count = 0
    prefill_rate: Amount = 0.0
    """Prompt tokens a second while it computes prompts (on a decode worker: in the chunks of mixed steps)."""
    decode_step_ms: Amount = 0.0
    """Time of a step without prompt chunks, at the present batch."""
    num_steps: Count = 0
    """Steps since the start: shows that work moves."""
    draining: bool = False
    """No new Start is taken, but for the prefill leg of what decodes here, by which it leaves with its KV. What else runs ends,
    or is handed back as retryable `Ended`."""
    stuck: bool = False
    """The loop does not come out of a step, or its thread stands: nothing goes there until it moves again."""
    in_long_step: bool = False
    """The loop is in a step that takes seconds, as such a step may."""
    context_tokens: Count = 0
    """Tokens whose KV running sequences read in each step."""
    asleep: bool = False
    """No new Start is taken until it is woken up."""


# -- router -> worker -----------------------------------------------------------------------------------------


class OpenLeg(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A leg that has not ended, for one side's view of it."""

    request_id: str
    epoch: int
    choices: list[int]
    """Those that have not ended."""


class Hello(msgspec.Struct, tag="hello", array_like=True, frozen=True):
    """Make oneself known; repeated as the heartbeat."""

    router_id: str
    wants_blocks: bool = False
    """Whether to send the block log on this socket, beginning with a snapshot: for routers without Redis."""
    refusal: str = ""
    """Why this router sends the worker nothing, if so."""
    number: int = 0
    """Of this roll call, rising with each over all of a router's workers; 0: this is none, and `legs` says nothing."""
    legs: list[OpenLeg] = []
    """All that this router has sent there, and that has not ended."""


class Ticket(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The right to fetch one prompt's KV from one prefill worker."""

    request_id: bytes  # 16
    epoch: int
    secret: bytes  # 16, random
    layout: str
    source: str
    """KV endpoint of the prefill worker, as it announced it."""
    source_incarnation: str
    num_tokens: int
    """Prompt tokens."""


class ChoiceStart(msgspec.Struct, array_like=True, frozen=True):
    """One choice to run, after the tokens that the client already has."""

    index: int
    emitted: list[int] = []


class Start(msgspec.Struct, tag="start", array_like=True, frozen=True):
    """Run one leg of a request.

    Leg "prefill": compute the prompt, sample choice 0's first token and answer it, hold the KV for the ticket.
    Leg "decode" with a ticket: fetch the blocks that are not cached, go on after the first token, which comes with
    the KV and is not repeated to the router for choice 0. Without one, or when the fetch fails: compute what is missing.
    """

    request_id: str
    epoch: int
    leg: Leg
    prompt: Prompt
    choices: list[ChoiceStart]
    params: SamplingParams
    seed: int
    """Effective: the router mints one if the user gave none. The same in every epoch."""
    priority: int = 0
    seconds_left: float | None = None
    """When it was sent; after so long the worker may end the request as "deadline". Clocks of two machines differ."""
    salt: bytes = b""
    """The tenant's part of the hash chain's root."""
    ticket: Ticket | None = None
    share: Share = NOBODY


class Pool(msgspec.Struct, tag="pool", array_like=True, frozen=True):
    """Compute a prompt, and answer what the model pools of it."""

    leg: ClassVar[Leg] = "pool"
    choices: ClassVar[tuple[ChoiceStart, ...]] = (ChoiceStart(0),)

    request_id: str
    epoch: int
    prompt: Prompt
    params: PoolingParams
    priority: int = 0
    seconds_left: float | None = None
    """As in Start."""
    salt: bytes = b""
    share: Share = NOBODY


class Cancel(msgspec.Struct, tag="cancel", array_like=True, frozen=True, gc=False):
    """End an epoch of a request, and all before it; or, with `choice`, only that choice of that epoch."""

    request_id: str
    epoch: int
    choice: int | None = None


Order = Literal["reset_prefix_cache", "sleep", "wake_up"]


class Command(msgspec.Struct, tag="command", array_like=True, frozen=True, gc=False):
    """Do something to the worker itself.

    reset_prefix_cache   forget what is cached; sequences that run go on with what they have. `external`: behind the device too
    sleep                take nothing new, end what runs, then (from `level` 1 on) give back the memory of KV
    wake_up              take new requests again
    """

    number: Count
    """Of this router's, for the answer."""
    order: Order
    level: Annotated[int, msgspec.Meta(ge=0, le=2)] = 0
    external: bool = False


# -- worker -> router -----------------------------------------------------------------------------------------


class Welcome(msgspec.Struct, tag="welcome", array_like=True, frozen=True):
    """The answer to each Hello."""

    info: WorkerInfo
    load: Load
    pace: StepPace | None = None
    """How long its steps take, and may take. Not in the load, which goes with each step's tokens: it changes slowly."""
    store: str = ""
    """Of its host, whose blocks it shares; empty: none, or one that does not answer."""


class Legs(msgspec.Struct, tag="legs", array_like=True, frozen=True):
    """The answer to a roll call, after all that was said before it."""

    incarnation: str
    number: Count
    """The Hello's."""
    legs: list[OpenLeg]
    """All that this worker runs for the router. A prompt that only waits to be fetched is not among them."""


class TokenLogprobs(msgspec.Struct, array_like=True, frozen=True):
    """Log-probabilities at one position: the token itself first, then the likeliest ones in order."""

    token_ids: list[int]
    logprobs: list[float]
    ranks: list[int]
    """1: the likeliest; 0: not looked for."""


_ROW = msgspec.msgpack.Decoder(TokenLogprobs | None)


def write_row(row: TokenLogprobs | None) -> msgspec.Raw:
    """Write the log-probabilities of one position: a tenth of the memory, and nothing for the collector to walk."""
    return msgspec.Raw(msgspec.msgpack.encode(row))


def write_rows(rows: Iterable[TokenLogprobs | None]) -> list[msgspec.Raw]:
    """Write the log-probabilities of a prompt's positions; the first has none."""
    return [write_row(row) for row in rows]


def read_rows(rows: Iterable[msgspec.Raw]) -> list[TokenLogprobs | None]:
    """Read some of them."""
    return list(map(_ROW.decode, rows))


class Token(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One new token of one choice."""

    request_id: str
    epoch: Id
    choice: Id
    position: Id
    token_id: Id
    finish_reason: Literal["stop", "length", "repetition"] | None = None
    stop_reason: int | str | None = None
    """The stop token id that ended it, or a word for why; None for the model's own end of text."""
    num_cached: Count = 0
    """Prompt tokens that this worker found in its own prefix cache, or behind it. With a choice's first token."""
    num_fetched: Count = 0
    """Prompt tokens whose KV came from another worker. With a choice's first token."""
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[msgspec.Raw] | None = None
    """With choice 0's first token, if asked: one entry a prompt token, as `read_rows` reads them: all would take 80 ms."""
    num_restored: Count = 0
    """Of `num_cached`, those whose KV came back from the host's memory. With a choice's first token."""


class Pooled(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What came of a Pool: all of it."""

    request_id: str
    epoch: Id
    data: bytes
    """float32, little-endian, row by row."""
    shape: tuple[Count, ...]
    """[size], or [tokens, size]."""
    num_cached: Count = 0
    """Prompt tokens that were found in this worker's prefix cache, or behind it."""
    num_restored: Count = 0
    """Of those, the ones whose KV came back from the host's memory."""


class LegError(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Why a leg ended without its tokens."""

    kind: str
    """invalid_request | context_too_long | unsupported | queue_full | out_of_blocks | draining | deadline |
    transfer | integrity | internal. Further words are taken as internal."""
    message: str
    retryable: bool = False
    """Whether another worker, or this one later, could do it: then the router replays."""
    field: str | None = None


class Ended(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A leg that failed; `choice` None: all its choices."""

    request_id: str
    epoch: Id
    error: LegError
    choice: int | None = None


class Transfer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One prompt's KV that arrived: what routers learn links from. Sent by the decode worker."""

    request_id: str
    epoch: Id
    source_incarnation: str
    num_tokens: Count
    nbytes: Count
    seconds: Amount
    """From the first credit to the last verified block."""
    exposed_seconds: Amount
    """The part of it that came after the prefill had ended."""


class Computed(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How a leg came to its first token here; sent with it."""

    request_id: str
    epoch: Id
    num_tokens: Count
    """Of the prompt, and of what was emitted before, that this worker computed."""
    num_cached: Count
    """Of the prompt, in this worker's prefix cache."""
    waited_seconds: Amount
    """From the Start, or from the last block of a transfer, to the first step with a part of it."""
    seconds: Amount
    """From there to the token."""


STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper edges by which steps are counted; beyond the last there is one more place."""


class Counted(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a worker has counted, for all routers together, since it last said so: to one router, so that sums are right."""

    num_preemptions: Count
    num_step_tokens: Count
    """That its steps computed."""
    steps: list[Count]
    """How many steps had so many tokens, by `STEP_TOKENS`."""


class Outputs(msgspec.Struct, tag="outputs", array_like=True, frozen=True):
    """Everything one step gave one router."""

    worker_id: str
    incarnation: str
    tokens: list[Token]
    load: Load
    ended: list[Ended] = []
    transfers: list[Transfer] = []
    computed: list[Computed] = []
    counted: Counted | None = None
    pooled: list[Pooled] = []


class Blocks(msgspec.Struct, tag="blocks", array_like=True, frozen=True):
    """One entry of a worker's block log; the same in Redis and on the socket.

    Entries of an incarnation are numbered from 1 without gaps. Evictions apply before stores. A snapshot says what is cached after
    entry `sequence`, all of it in `stored`; who sees a gap asks for (or reads) a snapshot.
    """

    worker_id: str
    incarnation: str
    sequence: Count
    stored: list[bytes] = []
    evicted: list[bytes] = []
    is_snapshot: bool = False


class Done(msgspec.Struct, tag="done", array_like=True, frozen=True, gc=False):
    """The end of a Command."""

    incarnation: str
    number: Count
    error: str = ""
    """Why it was not done; empty: it was."""


ToWorker = Hello | Start | Pool | Cancel | Command
ToRouter = Welcome | Outputs | Blocks | Legs | Done

_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_to_router: msgspec.msgpack.Decoder[ToRouter] = msgspec.msgpack.Decoder(ToRouter)


encode: Callable[[ToWorker | ToRouter], bytes] = msgspec.msgpack.Encoder().encode
"""Make the frame of a message."""


class BadMessage(ValueError):
    """A frame that is no message of this protocol, or one with numbers out of range; its text is for the log."""


def decode_to_worker(frame: bytes | memoryview) -> ToWorker:
    """Read what a router sent, or raise `BadMessage`."""
    try:
        message = _to_worker.decode(frame)
    # sampling parameters and prompts check themselves
    except (msgspec.MsgspecError, UnicodeDecodeError, InvalidRequest, RecursionError) as error:
        raise BadMessage(str(error)) from None
    if isinstance(message, Start):
        _check_start(message)
    elif isinstance(message, Pool):
        _check_pool(message)
    elif isinstance(message, Cancel):
        _check(0 <= message.epoch < 2**31, "epoch is out of range")
    return message


def decode_to_router(frame: bytes | memoryview) -> ToRouter:
    """Read what a worker sent, or raise `BadMessage`."""
    try:
        return _to_router.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(str(error)) from None


def _check_start(start: Start) -> None:
    """Refuse what no router of ours sends; ids against the vocabulary are checked by the leg, which knows it."""
    _check_request(start)
    _check(0 < len(start.choices) <= start.params.n, "choices do not match n")
    indices = [choice.index for choice in start.choices]
    _check(len(set(indices)) == len(indices) and min(indices) >= 0, "choices repeat")
    _check(max(indices) < start.params.n, "a choice exceeds n")
    _check(all(min(choice.emitted, default=0) >= 0 for choice in start.choices), "a token id is negative")
    _check(-(2**63) <= start.seed < 2**63, "seed is out of range")
    ticket = start.ticket
    if ticket is not None:
        _check(len(ticket.request_id) == 16 and len(ticket.secret) == 16, "the ticket is malformed")
        _check(ticket.epoch == start.epoch, "the ticket belongs to another epoch")
        _check(ticket.num_tokens == len(start.prompt), "the ticket belongs to another prompt")


def _check_request(asked: Start | Pool) -> None:
    _check(len(asked.request_id) == 32, "request_id is not a uuid")
    _check(0 <= asked.epoch < 2**31, "epoch is out of range")
    _check(bool(asked.prompt.token_ids), "the prompt is empty")
    _check(min(asked.prompt.token_ids) >= 0, "a token id is negative")
    _check(asked.seconds_left is None or not math.isnan(asked.seconds_left), "seconds_left is no number")
    _check(len(asked.share.tenant) <= 32 and 0 < asked.share.weight < 1e6, "the share is out of range")


def _check_pool(pool: Pool) -> None:
    """Refuse what no router of ours sends."""
    _check_request(pool)
    _check(0 <= pool.params.second_at <= len(pool.prompt), "the second text begins behind the prompt")


def _check(holds: bool, reason: str) -> None:
    if not holds:
        raise BadMessage(reason)
