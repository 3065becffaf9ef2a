"""ResponseStore: answers that later requests may ask for or build on, each for its own tenant.

In Redis, if the router has one, so that any router can go on with a conversation; and in this router's memory, which is
what remains when Redis does not answer. Soft state: it has a bound and an end, and no request fails for want of it but
one that names an answer that is gone.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import msgspec

from baton.errors import BatonError, Unavailable
from baton.logs import get_logger
from baton.registry import RegistryDown
from baton.router.config import RouterConfig
from baton.router.openai.outlets import Status
from baton.router.responses.records import ResponseRecords

OPEN = ("queued", "in_progress")
"""Statuses of what is still being made."""
_DELETED = b""
_TAG_NBYTES = 16
_TEND_S, _LEASE_S = 1.0, 15.0
_MAX_WRITES = 64
"""That wait for Redis at once; those beyond are kept in memory alone."""
_log = get_logger("responses")
Key = tuple[bytes, str]


class Record(msgspec.Struct, array_like=True):
    """An answer as it is kept."""

    status: Status
    response: bytes
    """OpenAI's object, as JSON."""
    input: bytes
    """The items of its input, a list in JSON."""
    before: bytes
    """The items of the conversation before that, a list in JSON."""

    @property
    def nbytes(self) -> int:
        return len(self.response) + len(self.input) + len(self.before)

    def output(self) -> bytes:
        """Return the items of the answer, a list in JSON."""
        return bytes(_RESPONSES.decode(self.response).output)

    def conversation(self) -> bytes:
        """Return all items up to the end of the answer, a list in JSON."""
        lists = (self.before, self.input, self.output())
        return b"[%b]" % b",".join(inner for each in lists if (inner := each.strip()[1:-1].strip()))


class _Response(msgspec.Struct):
    output: msgspec.Raw = msgspec.Raw(b"[]")


_RESPONSES = msgspec.json.Decoder(_Response)
_RECORDS = msgspec.msgpack.Decoder(Record)


class Making(Protocol):
    """An answer that this router makes in the background."""

    def so_far(self) -> bytes:
        """Return the response as far as it has come."""

    def cancel(self) -> None:
        """Nobody wants it any more."""

    def fail(self, error: BatonError, /) -> None:
        """It cannot be made."""


class ResponseStore:
    """All answers that this router knows of, and those that it makes in the background."""

    def __init__(self, config: RouterConfig, records: ResponseRecords | None, is_cut_off: Callable[[], bool]) -> None:
        """`is_cut_off` tells whether Redis is known not to answer, so that nobody waits for it."""
        self.is_on = config.response_store != "off"
        self.making: dict[Key, Making] = {}
        self._config = config
        self._records = records
        self._is_cut_off = is_cut_off
        self._memory: OrderedDict[Key, tuple[Record, float]] = OrderedDict()
        """Records and when they end, the one that was used last at the end."""
        self._nbytes = 0
        self._num_of: dict[bytes, int] = {}
        self._num_writes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        """Writes that somebody waits for; the event loop holds none itself."""
        self._tending: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Say of what is being made that it will not be."""
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)
        for made in list(self.making.values()):
            made.fail(Unavailable("The server is shutting down and could not wait for the end of the answer."))
        await asyncio.gather(*self._tasks)

    # -- records ------------------------------------------------------------------------------------------

    async def put(self, key: Key, record: Record) -> None:
        """Keep a record; returns when every router knows of it, or Redis does not answer."""
        self._remember(key, record)
        await self._write(key, record)

    def put_then(self, key: Key, record: Record, then: Callable[[], None]) -> None:
        """Keep a record, and do what is to be done then."""

        async def share() -> None:
            await self._write(key, record)
            then()

        self._remember(key, record)
        if self._records is None:
            then()
        else:
            task = asyncio.get_running_loop().create_task(share())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def get(self, key: Key) -> Record | None:
        """Return a tenant's record; None: it has none of this id."""
        mine = self._recall(key)
        if self._records is None or self._is_cut_off() or key in self.making:
            return mine
        try:
            raw, is_tended = await self._records.read(_owner(key), key[1])
        except RegistryDown:
            return mine
        if raw is None:
            return mine
        if raw == _DELETED:
            self._forget(key)
            return None
        if not hmac.compare_digest(raw[:_TAG_NBYTES], self._tag(key, raw[_TAG_NBYTES:])):  # somebody else wrote there
            return mine
        record = _RECORDS.decode(raw[_TAG_NBYTES:])
        if record.status in OPEN and not is_tended:
            record.status = "failed"
            record.response = _failed(record.response)
        return record

    async def delete(self, key: Key) -> None:
        """Forget a record, on every router."""
        self._forget(key)
        await self._write(key, None)

    async def cancel(self, key: Key) -> None:
        """Cancel what is being made, here or by another router."""
        made = self.making.get(key)
        if made is not None:
            made.cancel()
        elif self._records is not None:
            try:
                await self._records.ask_to_cancel(_owner(key), key[1], self._config.response_ttl_s)
            except RegistryDown:
                raise Unavailable("Another router makes this response, and cannot be told. Try again.") from None

    # -- what is made here ---------------------------------------------------------------------------------

    async def tend(self, key: Key, made: Making) -> None:
        """Count an answer among those that are made here, until it is taken out of `making`."""
        self.making[key] = made
        if self._records is not None:
            await self._tend(key)
            if self._tending is None or self._tending.done():
                self._tending = asyncio.get_running_loop().create_task(self._tend_all())

    async def _tend_all(self) -> None:
        while self.making:
            await asyncio.sleep(_TEND_S)
            for key in list(self.making):
                await self._tend(key)

    async def _tend(self, key: Key) -> None:
        if self._records is None or self._is_cut_off():
            return
        try:
            is_cancelled = await self._records.tend(_owner(key), key[1], _LEASE_S)
        except RegistryDown:
            return
        if is_cancelled and key in self.making:
            self.making[key].cancel()

    # -- memory and Redis ----------------------------------------------------------------------------------

    def _remember(self, key: Key, record: Record) -> None:
        self._forget(key)
        if record.nbytes > self._config.response_memory_nbytes:
            return
        self._memory[key] = record, time.monotonic() + self._config.response_ttl_s
        self._nbytes += record.nbytes
        self._num_of[key[0]] = self._num_of.get(key[0], 0) + 1
        while self._nbytes > self._config.response_memory_nbytes:
            self._forget(next(iter(self._memory)))
        if self._num_of[key[0]] > self._config.max_responses:
            self._forget(next(each for each in self._memory if each[0] == key[0]))

    def _recall(self, key: Key) -> Record | None:
        record, ends_at = self._memory.get(key, (None, 0.0))
        if record is None:
            return None
        if time.monotonic() > ends_at:
            self._forget(key)
            return None
        self._memory.move_to_end(key)
        return record

    def _forget(self, key: Key) -> None:
        known = self._memory.pop(key, None)
        if known is not None:
            self._nbytes -= known[0].nbytes
            self._num_of[key[0]] -= 1

    async def _write(self, key: Key, record: Record | None) -> None:
        """Tell Redis of a record, or of its end."""
        if self._records is None or self._is_cut_off() or self._num_writes >= _MAX_WRITES:
            return
        self._num_writes += 1
        config, raw = self._config, _DELETED
        if record is not None:
            data = msgspec.msgpack.encode(record)
            raw = self._tag(key, data) + data
        try:
            await self._records.write(
                *(_owner(key), key[1], raw),
                ttl_s=config.response_ttl_s,
                most=config.max_responses,
                most_nbytes=config.response_memory_nbytes,
            )
        except RegistryDown as error:
            _log.warning("response_not_shared", reason=str(error), effect="only this router knows of it")
        finally:
            self._num_writes -= 1

    def _tag(self, key: Key, data: bytes) -> bytes:
        """Return what only routers of this deployment can write before a record."""
        secret = self._config.cache_key.encode()[:64]
        tag = hashlib.blake2b(key[0] + key[1].encode(), key=secret, digest_size=_TAG_NBYTES, person=b"baton response")
        tag.update(data)
        return tag.digest()


def _owner(key: Key) -> str:
    return key[0].hex() or "-"


def _failed(response: bytes) -> bytes:
    """Say of a response that was being made that the router which made it has gone."""
    fields = msgspec.json.decode(response)
    message = "The server that made this response has gone. Send the request again."
    return msgspec.json.encode(fields | {"status": "failed", "error": {"code": "server_error", "message": message}})
