"""Settings of a host's store; flags are made from them."""

from __future__ import annotations

from dataclasses import dataclass

from baton.config import setting
from baton.errors import ConfigError

GIB = 2**30
DEFAULT_FOLDER = "/dev/shm/baton-kvstore"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSize:
    """How much a store keeps, and where."""

    kv_store_size: float | None = setting(
        None,
        "GiB of memory in which the workers of this host share KV; none: 4 for `baton kvstore`, no store by `baton up`",
    )
    kv_store_dir: str | None = setting(None, "folder in which the store keeps KV on disk too; none: in memory only")
    kv_store_dir_size: float = setting(64.0, "most GiB of KV on disk; what was used least is removed")

    def __post_init__(self) -> None:
        for name in ("kv_store_size", "kv_store_dir_size"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e6:
                raise ConfigError(f"{name}={value!r} is not valid: it is a number of GiB, above 0 and below a million.")

    @property
    def nbytes(self) -> int:
        """Of the memory."""
        return int((self.kv_store_size or 4.0) * GIB)

    @property
    def disk_nbytes(self) -> int:
        """Of the disk."""
        return int(self.kv_store_dir_size * GIB)


NO_STORE = StoreSize()
"""By `baton up`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """One store beside its size: where workers find it, how it is known."""

    kv_store: str = setting(DEFAULT_FOLDER, "folder, in memory, in which the store and the workers of its host meet")
    worker_id: str = setting("", "name of this store, the same after a restart; none: kvstore and the host's name")
    model: str | None = setting(None, "hub id or folder of the model; none: the bundled demo model")
    served_model_name: tuple[str, ...] = setting((), "names that clients may send; the first counts; none: the model's")
    host: str = setting("127.0.0.1", "address to listen on, for HTTP; auto: that of this machine's own name")
    announce_host: str = setting("", "address under which others reach this store's HTTP; none: --host")
    port: int = setting(0, "port of /health, /ready and /metrics; 0: a free one")
    redis_url: str | None = setting(None, "where to tell routers which blocks there are; none: they do not know")
    redis_password: str | None = setting(None, "password of Redis, where the URL has none")
    cache_key: str = setting("", "secret of the deployment; the same on its workers")

    @property
    def reached_at(self) -> str:
        """The host that others connect to."""
        return self.announce_host or self.host
