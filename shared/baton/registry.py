"""Where workers announce themselves and log their cached blocks.

Soft state only (a lease of 3 s, hashes of blocks, load): wiped, slow or gone, it costs cache hits and the discovery of new
workers, never a request. Nothing on a request's path waits for it. What somebody else wrote under one of the keys costs that
key, and is said once.

Keys, for a model `m` and a worker `w`
    baton:{m}:workers             set of worker ids that may be alive
    baton:{m}:worker:{w}          hash with a 3 s lease: legs, addresses, incarnation, layout, model facts, load, KV usage
    baton:{m}:blocks:{w}          stream of `Blocks` entries; the id of an entry is its sequence number
    baton:{m}:blocks:{w}:snapshot one `Blocks` snapshot; the stream before it may be trimmed
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from baton.errors import BatonError, ConfigError
from baton.logs import get_logger
from baton.messages import BadMessage, Blocks, Load, WorkerInfo, decode_to_router, encode

LEASE_S = 3.0
RENEW_S = 1.0
_STREAM_LEN = 4_000
_ANSWER_S = 1.0
"""After so long Redis counts as gone for this call."""
_log = get_logger("registry")


class RegistryDown(BatonError):
    """The registry does not answer; go on with what is known."""

    status = 503
    retryable = True


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker as it announced itself."""

    info: WorkerInfo
    load: Load


class BlockLog:
    """The block log of one incarnation as it stands: its end, and all that is cached then."""

    def __init__(self, worker_id: str, incarnation: str) -> None:
        self._worker_id = worker_id
        self.incarnation = incarnation
        self.sequence = 0
        """Of the last entry."""
        self._hashes: set[bytes] = set()

    def entry(self, stored: list[bytes], evicted: list[bytes]) -> Blocks:
        """Make the next entry. Evictions are taken as earlier than stores: pass what is true at the end."""
        entry = Blocks(self._worker_id, self.incarnation, self.sequence + 1, stored, evicted)
        self.add(entry)
        return entry

    def add(self, entry: Blocks) -> None:
        """Take in an entry."""
        self._hashes.difference_update(entry.evicted)
        self._hashes.update(entry.stored)
        self.sequence = entry.sequence

    def snapshot(self) -> Blocks:
        """All hashes after the last entry."""
        return Blocks(self._worker_id, self.incarnation, self.sequence, list(self._hashes), [], True)


class Registry:
    """What workers write and routers read, in Redis or Valkey. Every call may raise `RegistryDown`."""

    def __init__(self, url: str, model_name: str, password: str | None = None) -> None:
        """`password` is Redis's, where the URL has none. Connects when first asked.

        Raises:
            ConfigError: the URL is none.
        """
        try:
            if "://" not in url:  # redis-py takes what comes before a colon for the scheme, and its own host
                raise ValueError
            self._redis: Any = redis.from_url(
                url,
                password=password,
                socket_timeout=_ANSWER_S,
                socket_connect_timeout=_ANSWER_S,
                retry=Retry(NoBackoff(), 0),
                protocol=2,  # later ones answer XREAD in other shapes
            )
        except ValueError:  # whose text may hold a part of a password
            form = "redis://HOST:6379, with %2F for a / in its password"
            raise ConfigError(f"redis_url is not valid: it must be as {form}.") from None
        self.prefix = f"baton:{model_name}:"
        self._told: set[str] = set()
        """Bad keys that were spoken of."""

    async def announce(self, info: WorkerInfo, load: Load) -> None:
        """Write or renew a worker's lease; call it each second."""
        key, workers = f"{self.prefix}worker:{info.worker_id}", f"{self.prefix}workers"

        def fill(pipe: Any) -> None:
            pipe.hset(key, mapping=_to_fields(info, load))
            pipe.pexpire(key, int(LEASE_S * 1000))
            pipe.sadd(workers, info.worker_id)

        await self._write(fill, {key: b"hash", workers: b"set"})

    async def holder(self, worker_id: str) -> tuple[str, str] | None:
        """Read whose lease an id is: incarnation and control endpoint; None: nobody's."""
        key = f"{self.prefix}worker:{worker_id}"
        async with answering():
            incarnation, control = await self._or_none(self._redis.hmget(key, "incarnation", "control"), key) or (
                b"",
                b"",
            )
        return (
            (incarnation.decode(errors="replace"), (control or b"").decode(errors="replace")) if incarnation else None
        )

    async def withdraw(self, info: WorkerInfo) -> None:
        """Take back what a worker wrote, at its end."""
        blocks = f"{self.prefix}blocks:{info.worker_id}"
        async with answering(), self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(f"{self.prefix}worker:{info.worker_id}", blocks, f"{blocks}:snapshot")
            pipe.srem(f"{self.prefix}workers", info.worker_id)
            await pipe.execute()

    async def append_blocks(self, entry: Blocks) -> None:
        """Add an entry to a worker's block log; the first of an incarnation replaces the log."""
        key = f"{self.prefix}blocks:{entry.worker_id}"

        def fill(pipe: Any) -> None:
            if entry.sequence == 1:
                pipe.delete(key, f"{key}:snapshot")
            pipe.xadd(key, {"e": encode(entry)}, id=f"{entry.sequence}-1", maxlen=_STREAM_LEN, approximate=True)

        await self._write(fill, {key: b"stream"})

    async def write_snapshot(self, entry: Blocks) -> None:
        """Replace a worker's snapshot."""
        async with answering():
            await self._redis.set(f"{self.prefix}blocks:{entry.worker_id}:snapshot", encode(entry))

    async def workers(self) -> list[WorkerRecord]:
        """Read the workers with a live lease."""
        async with answering():
            members = await self._or_none(self._redis.smembers(f"{self.prefix}workers"), f"{self.prefix}workers")
            if not members:
                return []
            keys = {member: f"{self.prefix}worker:".encode() + member for member in members}
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in keys.values():
                    pipe.hgetall(key)
                rows = dict(zip(keys, await pipe.execute(raise_on_error=False), strict=True))
            gone = [member for member, row in rows.items() if not row]
            if gone:
                await self._redis.srem(f"{self.prefix}workers", *gone)
        records = []
        for member, row in rows.items():
            record = None if not row or isinstance(row, Exception) else _from_fields(row)
            if record is not None:
                records.append(record)
            elif row:
                self._tell(keys[member], "it is no worker's hash")
        return records

    async def read_blocks(self, after: Mapping[str, int]) -> list[Blocks]:
        """Read the entries of each named worker after a sequence number, in order."""
        if not after:
            return []
        streams = {f"{self.prefix}blocks:{worker_id}": f"{sequence}-1" for worker_id, sequence in after.items()}
        async with answering():
            try:
                rows = await self._redis.xread(streams, count=500)
            except ResponseError:  # one of them is no stream, which Redis does not say of which
                answers = [
                    await self._or_none(self._redis.xread({key: at}, count=500), key) for key, at in streams.items()
                ]
                rows = [row for answer in answers for row in answer or ()]
        entries = (_decode(fields.get(b"e", b"")) for _stream, row in rows for _id, fields in row)
        return [entry for entry in entries if entry is not None]

    async def read_snapshot(self, worker_id: str) -> Blocks | None:
        """Read a worker's snapshot; None: there is none."""
        key = f"{self.prefix}blocks:{worker_id}:snapshot"
        async with answering():
            raw = await self._or_none(self._redis.get(key), key)
        return None if raw is None else _decode(raw)

    @property
    def client(self) -> Any:
        """Redis itself, for others who keep something there; calls are made within `answering`."""
        return self._redis

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _write(self, fill: Callable[[Any], None], kinds: Mapping[str, bytes]) -> None:
        """Execute what `fill` puts into a pipeline; keys of ours that hold something else are cleared for it."""
        async with answering(), self._redis.pipeline(transaction=True) as pipe:
            fill(pipe)
            try:
                await pipe.execute()
            except ResponseError as error:
                if "WRONGTYPE" not in str(error):
                    raise
                await self._clear(kinds)
                fill(pipe)
                await pipe.execute()

    async def _or_none(self, answer: Awaitable[Any], key: str) -> Any:
        """Return what Redis answers; None if it says that the key holds something else."""
        try:
            return await answer
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            self._tell(key.encode(), str(error))
            return None

    async def _clear(self, kinds: Mapping[str, bytes]) -> None:
        """Delete those of our keys that hold something of another kind."""
        for key, kind in kinds.items():
            if await self._redis.type(key) not in (kind, b"none"):
                self._tell(key.encode(), f"it was no {kind.decode()}; deleted")
                await self._redis.delete(key)

    def _tell(self, key: bytes, reason: str) -> None:
        name = key.decode(errors="backslashreplace")
        if name not in self._told:
            self._told.add(name)
            _log.warning("registry_bad_key", key=name, reason=reason)


@contextlib.asynccontextmanager
async def answering() -> AsyncIterator[None]:
    """Bound one exchange, and turn what redis-py raises into `RegistryDown`."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            yield
    except (RedisError, OSError, TimeoutError) as error:
        raise RegistryDown(f"Redis does not answer: {error}") from error


def _decode(raw: bytes) -> Blocks | None:
    """Read an entry; None: somebody else wrote there. A gap follows, and a snapshot heals it."""
    with contextlib.suppress(BadMessage):
        message = decode_to_router(raw)
        return message if isinstance(message, Blocks) else None
    return None


def _to_fields(info: WorkerInfo, load: Load) -> dict[str, str | bytes]:
    used = load.kv_total_blocks - load.kv_free_blocks
    return {
        "id": info.worker_id,
        "incarnation": info.incarnation,
        "legs": ",".join(info.legs),
        "control": info.control,
        "kv": info.kv,
        "http": info.http,
        "layout": info.layout,
        "model": msgspec.json.encode(info.model),
        "load": msgspec.json.encode(msgspec.structs.asdict(load)),
        "kv_usage": f"{used / load.kv_total_blocks:.4f}" if load.kv_total_blocks else "0",
    }


def _from_fields(row: Mapping[bytes, bytes]) -> WorkerRecord | None:
    """Read a worker's hash; None if it is not one."""
    try:
        text = {key.decode(): value.decode() for key, value in row.items()}
        info = msgspec.convert(
            {
                **text,
                "worker_id": text["id"],
                "legs": [leg for leg in text["legs"].split(",") if leg],
                "model": msgspec.json.decode(text["model"]),
            },
            WorkerInfo,
        )
        load = Load(**msgspec.json.decode(text["load"]))
    except (KeyError, TypeError, UnicodeDecodeError, msgspec.MsgspecError):
        return None
    return WorkerRecord(info, load)
