"""A worker's settings beside the engine's; flags are made from them."""

from __future__ import annotations

from dataclasses import dataclass

from baton.config import setting
from baton.errors import ConfigError

ITL_TARGET_HELP = (
    "longest gap between an answer's tokens: chunks of other prompts are sized to it; 0: any; none: 30 on a GPU, or more "
    "where steps take long by themselves, and any on a CPU"
)
_WILDCARDS = ("0.0.0.0", "::", "[::]", "*", "")


def check_itl_target(target_ms: float | None) -> None:
    """Raise ConfigError for a target that is none."""
    if target_ms is not None and not 0 <= target_ms <= 1e6:
        raise ConfigError(f"itl_target_ms={target_ms!r} is not valid: it is in milliseconds, 0 to a million.")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """One worker: where it listens, how it is known, how it ends."""

    worker_id: str = setting("", "name of this worker, the same after a restart; none: host and a random part")
    served_model_name: tuple[str, ...] = setting((), "names that clients may send; the first counts; none: the model's")
    host: str = setting(
        "127.0.0.1", "address to listen on, for HTTP, requests and KV; auto: that of this machine's own name"
    )
    announce_host: str = setting("", "address under which others reach this worker; none: --host")
    port: int = setting(0, "port of /health, /ready and /metrics; 0: a free one")
    control_port: int = setting(0, "port on which routers connect; 0: a free one")
    control_uds: str | None = setting(
        None, "path of a Unix socket for routers, in place of --control-port: who may open it may send requests"
    )
    kv_port: int = setting(0, "first port from which KV is fetched; 0: free ones")
    kv_transports: tuple[str, ...] = setting(
        (),
        "ways that KV may take, of cuda_ipc, shm_ring, shm, ipc and tcp; none: each, the fastest that a pair can first",
    )
    kv_store: str | None = setting(
        None, "folder of this host's `baton kvstore`, whose blocks this worker shares; none: it shares none"
    )
    redis_url: str | None = setting(None, "where to announce itself; none: routers are told of it by --worker")
    redis_password: str | None = setting(None, "password of Redis, where the URL has none")
    cache_key: str = setting("", "secret of the deployment under which blocks are hashed; the same on routers")
    curve_public_key: str | None = setting(None, "CURVE key pair of the workers (Z85), for control between hosts")
    curve_secret_key: str | None = setting(None, "CURVE key pair of the workers (Z85), for control between hosts")
    encrypt_kv: bool = setting(False, "encrypt KV too; costs six times the speed")
    lease_s: float = setting(10.0, "seconds that KV is held for a decode worker which is not heard of")
    drain_s: float = setting(20.0, "how long what runs may go on after SIGTERM before it is handed back")
    max_prefill_chunk: int | None = setting(None, "most prompt tokens in a step that also decodes; none: no limit")
    itl_target_ms: float | None = setting(None, ITL_TARGET_HELP)

    def __post_init__(self) -> None:
        if (self.curve_public_key is None) != (self.curve_secret_key is None):
            raise ConfigError("curve_public_key and curve_secret_key go together: give both.")
        if self.host in (*_WILDCARDS, "auto") and self.curve_secret_key is None:
            raise ConfigError(
                f"host={self.host!r} would let every network send requests: name one address, or give "
                f"--curve-public-key and --curve-secret-key (`baton secrets FOLDER` makes them)."
            )
        if self.host in _WILDCARDS and not self.announce_host:
            raise ConfigError(f"host={self.host!r} says where to listen only: name --announce-host too.")
        check_itl_target(self.itl_target_ms)
        if self.lease_s < 3 or self.drain_s < 0:
            raise ConfigError("lease_s must be at least 3, and drain_s at least 0.")

    @property
    def reached_at(self) -> str:
        """The host that others connect to."""
        return self.announce_host or self.host
