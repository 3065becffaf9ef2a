"""ResponseRecords: answers that later requests may build on, in Redis or Valkey, beside what the registry has there.

Keys, for a model `m`, an owner `o` and an answer `a`
    baton:{m}:response:{o}:{a}          the record; empty: it was deleted
    baton:{m}:response:{o}:{a}:lease    there while the router that makes it lives
    baton:{m}:response:{o}:{a}:cancel   there when somebody has cancelled it
    baton:{m}:responses                 sorted set of all `{o}:{a}` by when they were written
    baton:{m}:responses:{o}             the same of one owner
    baton:{m}:responses:nbytes          hash: the length of each record, and under no name that of all
"""

from __future__ import annotations

import time
from typing import Any

from baton.registry import Registry, answering

# Write a record, and delete the oldest as long as there are too many, too much, or some that have expired.
_WRITE = """
local prefix, member, owner, record, ttl, now, most, most_nbytes = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]),
    tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local all, sizes = prefix .. 'responses', prefix .. 'responses:nbytes'
local own = all .. ':' .. owner
local known = tonumber(redis.call('HGET', sizes, member) or 0)
redis.call('SET', prefix .. 'response:' .. member, record, 'EX', ttl)
redis.call('ZADD', all, now, member)
redis.call('ZADD', own, now, member)
redis.call('HSET', sizes, member, #record)
local total = redis.call('HINCRBY', sizes, '', #record - known)
local function drop(each)
    total = redis.call('HINCRBY', sizes, '', -tonumber(redis.call('HGET', sizes, each) or 0))
    redis.call('HDEL', sizes, each)
    redis.call('ZREM', all, each)
    redis.call('ZREM', all .. ':' .. string.match(each, '^[^:]*'), each)
    redis.call('DEL', prefix .. 'response:' .. each)
end
if redis.call('ZCARD', own) > most then
    drop(redis.call('ZRANGE', own, 0, 0)[1])
end
local oldest = redis.call('ZRANGE', all, 0, 0, 'WITHSCORES')
while oldest[1] and (total > most_nbytes or tonumber(oldest[2]) < now - ttl) do
    drop(oldest[1])
    oldest = redis.call('ZRANGE', all, 0, 0, 'WITHSCORES')
end
for _, key in ipairs({all, own, sizes}) do
    redis.call('EXPIRE', key, ttl)
end
"""


class ResponseRecords:
    """Answers, each of one owner, as bytes. Every call may raise `RegistryDown`."""

    def __init__(self, registry: Registry) -> None:
        self._redis: Any = registry.client
        self._prefix = registry.prefix
        self._write = self._redis.register_script(_WRITE)

    async def write(self, owner: str, name: str, record: bytes, *, ttl_s: float, most: int, most_nbytes: int) -> None:
        """Write a record for so long. The oldest go beyond `most` of its owner, and `most_nbytes` of all."""
        args = (f"{owner}:{name}", owner, record, max(int(ttl_s), 1), time.time(), most, most_nbytes)
        async with answering():
            await self._write(args=[self._prefix, *args])

    async def read(self, owner: str, name: str) -> tuple[bytes | None, bool]:
        """Read a record, None if there is none; and whether the router that makes it lives."""
        key = self._key(owner, name)
        async with answering():
            record, lease = await self._redis.mget(key, f"{key}:lease")
        return record, lease is not None

    async def tend(self, owner: str, name: str, lease_s: float) -> bool:
        """Renew the lease of an answer that is being made; whether somebody has cancelled it."""
        key = self._key(owner, name)
        async with answering(), self._redis.pipeline(transaction=False) as pipe:
            pipe.set(f"{key}:lease", b"1", px=int(1000 * lease_s))
            pipe.get(f"{key}:cancel")
            _, cancel = await pipe.execute()
        return cancel is not None

    async def ask_to_cancel(self, owner: str, name: str, ttl_s: float) -> None:
        """Cancel what another router makes."""
        async with answering():
            await self._redis.set(f"{self._key(owner, name)}:cancel", b"1", ex=max(int(ttl_s), 1))

    def _key(self, owner: str, name: str) -> str:
        return f"{self._prefix}response:{owner}:{name}"
