"""The frame format of KV transfer, version 2. This docstring is the specification.

Who talks: the *exporter* E (of a prefill worker) binds one ZeroMQ ROUTER a stripe; the *importer* I (of a decode
worker) connects one DEALER a stripe, all with one random routing id of 16 bytes, so that E reaches I on every stripe.
Stripe 0 carries every message but BLOCKS, which may travel on any stripe, so it may be overtaken by all others. Nothing
relies on a message being delivered, delivered once, or in order.

A message is one header frame, and after BLOCKS payload frames, unless I reads E's memory itself:

    header  = tag (16 bytes) | body
    tag     = BLAKE2b(body, key = the ticket's secret, 16 bytes, person "baton kv"); without a ticket (HELLO, WELCOME,
              FAIL of an unknown ticket) the key is empty, and the tag only shows damage
    body    = one msgpack array: type number, then the fields in the order of the classes below
    payload = whole blocks, their bytes as they lie in the cache; one frame for each run of blocks that lie side by
              side in E's memory

The secret itself never travels: who seals a header has it, in both directions. Hashes and checksums in a header are
thus authentic, and the checksums (xxh3-128, big-endian) bind the payload.

    type          way     meaning
    1 HELLO       I->E    who I am and which layout I hold; repeated as a ping while an import is open
    2 WELCOME     E->I    the same of E. Other layout or incarnation than the ticket's: the import fails
    3 FETCH       I->E    send the blocks `from_block`, `from_block + 1`, ... which have these `hashes`, those below
                          `limit` now; `reads`: I has mapped E's memory, or its ring, so that E only says where blocks
                          lie. Repeated each renewal until E answers; may come before E knows the ticket
    4 CREDIT      I->E    blocks below `limit` have a place in I now, those below `num_read` were read from E's ring,
                          whose room E may use again; also renews the lease, so it is repeated
    5 DONE        I->E    all landed and verified: release
    6 CANCEL      I->E    I wants no more: release
    7 BLOCKS      E->I    payload of blocks first_block, ... with their hashes and checksums; if I reads, `places` has
                          their numbers in what it reads (4 bytes each, big-endian) and no payload follows
    8 STATE       E->I    answers FETCH and CREDIT: so many blocks are computed, so many sent; until all are computed,
                          so many tokens come before (its place in the queue), and so long it will take
    9 END         E->I    after the last block: the prompt has num_blocks; `meta` is the legs' (first token, ...)
    10 FAIL       E->I    E will send no more, and why

Block indices count from the beginning of the prompt; its last block may be partly filled, which its hash says. Credits
are absolute (`limit`, `num_read`), so that a CREDIT lost, doubled or late does no harm; E never sends block `limit` or later. A
request and epoch name a ticket; an epoch ends with its ticket, and frames of another epoch are dropped.

I uses a block only when request, epoch, layout, hash and checksum all match. What it reads itself may change when
E's lease ends, which the checksum, taken of I's own copy, then shows. Every number has a range, checked
before anything is allocated; whatever breaks a rule raises `BadFrame`, is counted, and goes no further.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from enum import IntEnum
from hashlib import blake2b
from typing import Annotated, NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import Meta
from xxhash import xxh3_128_digest

from baton.errors import BatonError

VERSION = 2
DIGEST_NBYTES = 16
TAG_NBYTES = 16
MAX_BLOCKS = 1 << 16
"""Blocks of one prompt: a million tokens in blocks of 16."""
MAX_BATCH_BLOCKS = 256
"""Blocks, and thus payload frames, of one BLOCKS message."""
PLACE_NBYTES = 4
MAX_META_NBYTES = 1 << 20
MAX_HEADER_NBYTES = TAG_NBYTES + max(MAX_BLOCKS * DIGEST_NBYTES, MAX_META_NBYTES) + 1024
MAX_NAME_LEN = 128

Buffer = bytes | bytearray | memoryview
Key = tuple[bytes, int]
"""Request id and epoch: what a ticket is known by."""

_U32 = Annotated[int, Meta(ge=0, lt=1 << 32)]
_NumBlocks = Annotated[int, Meta(ge=0, le=MAX_BLOCKS)]
_Id = Annotated[bytes, Meta(min_length=16, max_length=16)]
_Name = Annotated[str, Meta(max_length=MAX_NAME_LEN)]
_Hashes = Annotated[bytes, Meta(max_length=MAX_BLOCKS * DIGEST_NBYTES)]
_BatchDigests = Annotated[bytes, Meta(min_length=DIGEST_NBYTES, max_length=MAX_BATCH_BLOCKS * DIGEST_NBYTES)]


class BadFrame(BatonError):
    """A frame that breaks the format; `reason` is the label under which it is counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class BadTicket(BatonError):
    """A ticket whose fields cannot be a ticket's."""


class Ticket(Protocol):
    """What both sides were told about one transfer. Any object with these attributes will do."""

    @property
    def request_id(self) -> bytes: ...
    @property
    def epoch(self) -> int: ...
    @property
    def secret(self) -> bytes: ...
    @property
    def layout(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def source_incarnation(self) -> str: ...


class _Greeting(msgspec.Struct, array_like=True, frozen=True):
    version: Annotated[int, Meta(ge=0, lt=1 << 16)]
    incarnation: _Name
    layout: _Name


class Hello(_Greeting, tag=1, frozen=True):
    pass


class Welcome(_Greeting, tag=2, frozen=True):
    pass


class OfTicket(msgspec.Struct, array_like=True, frozen=True):
    """A message about one ticket."""

    request_id: _Id
    epoch: _U32


class Reads(IntEnum):
    """What an importer reads of its exporter's memory."""

    NOTHING = 0
    """All bytes come over the sockets."""
    BLOCKS = 1
    """Blocks where they lie."""
    RING = 2
    """Blocks in host memory, to where the exporter's device copies them."""


class Fetch(OfTicket, tag=3, frozen=True):
    layout: _Name
    from_block: _NumBlocks
    limit: _NumBlocks
    hashes: _Hashes
    reads: Reads = Reads.NOTHING


class Credit(OfTicket, tag=4, frozen=True):
    limit: _NumBlocks
    num_read: _NumBlocks = 0


class Done(OfTicket, tag=5, frozen=True):
    pass


class Cancel(OfTicket, tag=6, frozen=True):
    pass


class Blocks(OfTicket, tag=7, frozen=True):
    layout: _Name
    first_block: _NumBlocks
    hashes: _BatchDigests
    checksums: _BatchDigests
    places: Annotated[bytes, Meta(max_length=MAX_BATCH_BLOCKS * PLACE_NBYTES)] = b""

    @property
    def num_blocks(self) -> int:
        return len(self.hashes) // DIGEST_NBYTES


class State(OfTicket, tag=8, frozen=True):
    num_computed: _NumBlocks
    num_sent: _NumBlocks
    num_ahead: _U32 = 0
    """Prompt tokens that are computed until this prompt is whole, its own included; 0: it is, or nobody knows."""
    ready_s: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0
    """Seconds until then, as predicted; 0: not known."""


class End(OfTicket, tag=9, frozen=True):
    num_blocks: _NumBlocks
    age_s: Annotated[float, Meta(ge=0.0, le=1e6)]
    """Seconds since the prompt was computed."""
    meta: Annotated[bytes, Meta(max_length=MAX_META_NBYTES)]


class Fail(OfTicket, tag=10, frozen=True):
    reason: _Name


ToExporter = Hello | Fetch | Credit | Done | Cancel
ToImporter = Welcome | Blocks | State | End | Fail
TO_EXPORTER: msgspec.msgpack.Decoder[ToExporter] = msgspec.msgpack.Decoder(ToExporter)
TO_IMPORTER: msgspec.msgpack.Decoder[ToImporter] = msgspec.msgpack.Decoder(ToImporter)
_encoder = msgspec.msgpack.Encoder()
_M = TypeVar("_M", ToExporter, ToImporter)


class Sealed(NamedTuple):
    """The two parts of a header."""

    tag: bytes
    body: bytes

    def is_authentic(self, secret: bytes) -> bool:
        """Whether who sealed the header knew the secret; takes constant time."""
        return hmac.compare_digest(self.tag, _tag(self.body, secret))


checksum = xxh3_128_digest
"""Of a block's bytes, to know that they have arrived."""


def seal(message: ToExporter | ToImporter, secret: bytes = b"") -> bytes:
    """Make the header frame of a message."""
    body = _encoder.encode(message)
    return _tag(body, secret) + body


def parse(header: Buffer, decoder: msgspec.msgpack.Decoder[_M]) -> tuple[_M, Sealed]:
    """Decode a header frame; who sealed it is to be checked with the secret of its ticket.

    Raises:
        BadFrame: it is no header of this version, or a field is out of its range.
    """
    if not TAG_NBYTES < len(header) <= MAX_HEADER_NBYTES:
        raise BadFrame("garbage", f"a header of {len(header)} bytes")
    frame = bytes(header)
    sealed = Sealed(frame[:TAG_NBYTES], frame[TAG_NBYTES:])
    try:
        message = decoder.decode(sealed.body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadFrame("garbage", str(error)) from None
    if isinstance(message, Fetch):
        whole = len(message.hashes) % DIGEST_NBYTES == 0
        if not whole or message.from_block + len(message.hashes) // DIGEST_NBYTES > MAX_BLOCKS:
            raise BadFrame("garbage", "FETCH of a broken or over-long list of hashes")
    elif isinstance(message, Blocks) and (
        len(message.hashes) % DIGEST_NBYTES
        or len(message.hashes) != len(message.checksums)
        or len(message.places) not in (0, message.num_blocks * PLACE_NBYTES)
    ):
        raise BadFrame("garbage", "BLOCKS with unequal lists of hashes, checksums and places")
    return message, sealed


def split_payload(num_blocks: int, block_nbytes: int, frames: Sequence[Buffer]) -> list[memoryview]:
    """Cut the payload of a BLOCKS message into its blocks, without copying.

    Raises:
        BadFrame: a frame is no whole number of blocks, or there are more or fewer blocks than announced.
    """
    if sum(len(frame) for frame in frames) != num_blocks * block_nbytes:
        raise BadFrame("garbage", f"payload is not {num_blocks} blocks of {block_nbytes} bytes")
    blocks: list[memoryview] = []
    for frame in frames:
        if not len(frame) or len(frame) % block_nbytes:
            raise BadFrame("garbage", "a payload frame is not whole blocks")
        view = memoryview(frame)
        blocks += [view[at : at + block_nbytes] for at in range(0, len(view), block_nbytes)]
    return blocks


def join_places(block_ids: Sequence[int]) -> bytes:
    """Put the numbers of blocks side by side, as BLOCKS carries them."""
    return struct.pack(f">{len(block_ids)}I", *block_ids)


def read_places(places: bytes, num_blocks: int) -> list[int]:
    """Return the numbers of blocks in a memory of so many.

    Raises:
        BadFrame: one lies beyond the memory.
    """
    block_ids = [block_id for (block_id,) in struct.iter_unpack(">I", places)]
    if max(block_ids) >= num_blocks:
        raise BadFrame("garbage", "a place beyond the memory")
    return block_ids


def digests(joined: bytes) -> list[bytes]:
    """Cut hashes or checksums that stand side by side."""
    return [joined[at : at + DIGEST_NBYTES] for at in range(0, len(joined), DIGEST_NBYTES)]


def layout_fingerprint(block_nbytes: int, *parts: str) -> str:
    """Name a layout: two workers' names are equal only if their blocks mean the same, byte for byte.

    `parts` say what a block holds: model and revision, shape, dtype, block size.
    """
    digest = blake2b(digest_size=DIGEST_NBYTES, person=b"baton kv layout")
    for part in (str(VERSION), str(block_nbytes), *parts):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def check_ticket(ticket: Ticket) -> Key:
    """Check a ticket's fields, and return its key.

    Raises:
        BadTicket: a field is of the wrong size.
    """
    if len(ticket.request_id) != 16:
        raise BadTicket(f"request_id has {len(ticket.request_id)} bytes, not 16")
    if not 0 <= ticket.epoch < 1 << 32:
        raise BadTicket(f"epoch={ticket.epoch} is not in 0 to 2**32 - 1")
    if not 16 <= len(ticket.secret) <= 64:
        raise BadTicket(f"secret has {len(ticket.secret)} bytes, not 16 to 64")
    if len(ticket.layout) > MAX_NAME_LEN or len(ticket.source_incarnation) > MAX_NAME_LEN:
        raise BadTicket(f"layout or source_incarnation is longer than {MAX_NAME_LEN}")
    return ticket.request_id, ticket.epoch


def join_hashes(hashes: Sequence[bytes]) -> bytes:
    """Put block hashes side by side, as messages carry them.

    Raises:
        ValueError: one is not 16 bytes, or there are more than a prompt can have.
    """
    if len(hashes) > MAX_BLOCKS or any(len(block_hash) != DIGEST_NBYTES for block_hash in hashes):
        raise ValueError(f"block hashes must be at most {MAX_BLOCKS} of {DIGEST_NBYTES} bytes")
    return b"".join(hashes)


def _tag(body: bytes, secret: bytes) -> bytes:
    return blake2b(body, digest_size=TAG_NBYTES, key=secret, person=b"baton kv").digest()
