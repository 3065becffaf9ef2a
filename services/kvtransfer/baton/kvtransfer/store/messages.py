"""What a worker and the store of its host say to one another; this docstring is the specification.

The store binds one ZeroMQ ROUTER at the unix socket `control` in its folder; each engine process connects one DEALER and speaks
first. Blocks never travel: both map the file `arena` beside the socket, whose slots are blocks, side by side. A message is one
frame:

    frame = tag (16 bytes) | body       tag = BLAKE2b(body, key = the deployment's cache key, hashed, person "baton store")
    body  = one msgpack array: type number, then the fields in the order of the classes below

    type        way   meaning
    1 HELLO     C->S  who I am, whose layout my blocks have; repeated each second as a sign of life
    2 WANT      C->S  lend me the blocks of these names, under this number; those on disk if reading them takes no longer than that
    3 DONE      C->S  what was lent under this number is read; `bad`: places in the list whose bytes were not as their sums say
    4 RESERVE   C->S  grant me so many slots to write in
    5 COMMIT    C->S  these granted slots hold the blocks of these names, whose bytes have these checksums; `unused` do not
    6 WELCOME   S->C  the answer to each HELLO: the arena, whether it takes these blocks, and the number of this session
    7 KNOWN     S->C  what became findable and what is not any more; `is_whole`: all there is
    8 LENT      S->C  the answer to WANT: for each name its slot, or NONE; with checksums, and whether it came from disk
    9 GRANTED   S->C  the answer to RESERVE: slots, maybe fewer, maybe none
    10 CLEAR    C->S  forget the blocks of my layout that nobody reads, on disk too

A worker names no slot but those it was granted; a COMMIT of others is dropped. Slots are granted ahead of need, so that a block can be
copied out at once. What a worker reads or writes is its own until DONE or COMMIT, or until it has been silent for `SILENCE_S`:
then its session ends, and the slots go to others. Whoever was stopped for so long and reads or writes on finds, or leaves, bytes
that do not have their checksum: who uses a block sums its own copy of it first. Checksums are opaque to the store.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Callable
from hashlib import blake2b
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

VERSION = 1
DIGEST_NBYTES = 16
TAG_NBYTES = 16
MAX_NAMES = 4096
"""Of one message; 64k tokens in blocks of 16."""
SILENCE_S = 10.0
HELLO_S = 1.0
NONE = (1 << 32) - 1
"""No slot."""

_U32 = Annotated[int, Meta(ge=0, lt=1 << 32)]
_Layout = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
_Name = Annotated[bytes, Meta(min_length=DIGEST_NBYTES, max_length=DIGEST_NBYTES)]
_Names = Annotated[list[_Name], Meta(max_length=MAX_NAMES)]
_Slots = Annotated[list[_U32], Meta(max_length=MAX_NAMES)]


class BadMessage(ValueError):
    """A frame that is no message of this protocol."""


class Hello(msgspec.Struct, array_like=True, frozen=True, tag=1):
    version: int
    layout: _Layout
    block_nbytes: Annotated[int, Meta(ge=1, lt=1 << 40)]
    incarnation: Annotated[str, Meta(max_length=128)] = ""
    """Of the store that this is said to; empty: not known yet. Another one's memory holds nothing of ours."""


class Want(msgspec.Struct, array_like=True, frozen=True, tag=2):
    number: _U32
    names: _Names
    worth_s: float = math.inf
    """For how long to read from disk at most: what computing them takes."""


class Done(msgspec.Struct, array_like=True, frozen=True, tag=3):
    number: _U32
    bad: _Slots = []


class Reserve(msgspec.Struct, array_like=True, frozen=True, tag=4):
    num_slots: Annotated[int, Meta(ge=1, le=MAX_NAMES)]


class Commit(msgspec.Struct, array_like=True, frozen=True, tag=5):
    session: int
    slots: _Slots
    names: _Names
    checksums: _Names
    unused: _Slots = []


class Welcome(msgspec.Struct, array_like=True, frozen=True, tag=6):
    store_id: str
    incarnation: str
    refusal: str = ""
    """Why these blocks are not taken, if so."""
    arena_inode: int = 0
    arena_nbytes: int = 0
    num_slots: int = 0
    session: int = 0


class Known(msgspec.Struct, array_like=True, frozen=True, tag=7):
    stored: list[bytes]
    evicted: list[bytes] = []
    is_whole: bool = False


class Lent(msgspec.Struct, array_like=True, frozen=True, tag=8):
    number: int
    slots: list[int]
    checksums: list[bytes]
    from_disk: list[bool]


class Granted(msgspec.Struct, array_like=True, frozen=True, tag=9):
    session: int
    slots: list[int]


class Clear(msgspec.Struct, array_like=True, frozen=True, tag=10):
    pass


ToStore = Hello | Want | Done | Reserve | Commit | Clear
ToClient = Welcome | Known | Lent | Granted
_M = TypeVar("_M", ToStore, ToClient)
_to_store: msgspec.msgpack.Decoder[ToStore] = msgspec.msgpack.Decoder(ToStore)
_to_client: msgspec.msgpack.Decoder[ToClient] = msgspec.msgpack.Decoder(ToClient)
_encode: Callable[[ToStore | ToClient], bytes] = msgspec.msgpack.Encoder().encode


class Seal:
    """Writes and reads frames, under the deployment's key."""

    def __init__(self, cache_key: str) -> None:
        self._key = blake2b(cache_key.encode(), digest_size=32, person=b"baton store key").digest()

    def write(self, message: ToStore | ToClient) -> bytes:
        """Make the frame of a message."""
        body = _encode(message)
        return self._tag(body) + body

    def to_store(self, frame: bytes) -> ToStore:
        """Read what a worker sent, or raise `BadMessage`."""
        return self._read(frame, _to_store)

    def to_client(self, frame: bytes) -> ToClient:
        """Read what the store sent, or raise `BadMessage`."""
        return self._read(frame, _to_client)

    def _read(self, frame: bytes, decoder: msgspec.msgpack.Decoder[_M]) -> _M:
        tag, body = frame[:TAG_NBYTES], frame[TAG_NBYTES:]
        if not hmac.compare_digest(tag, self._tag(body)):
            raise BadMessage("its seal is another deployment's: give both the same --cache-key")
        try:
            return decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadMessage(str(error)) from None

    def _tag(self, body: bytes) -> bytes:
        return blake2b(body, digest_size=TAG_NBYTES, key=self._key, person=b"baton store").digest()
