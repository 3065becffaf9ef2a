"""Tenants: whose a request is, and what each key may take: its weight beside others, and its caps.

`--tenants FILE` is YAML: API keys, and `"*"` for those that it does not name, with limits of `TenantLimits`:

    "*": {max_streams: 64}
    sk-alice: {weight: 4, tokens_per_minute: 100000, priority: -10}
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from baton.errors import ConfigError, refuse
from baton.protocol import NOBODY, Share
from baton.router.auth import tenant_of


class TenantLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key may take. 0: no cap of its own."""

    weight: float = 1.0
    """Its share of a worker that others want too, beside their weights."""
    tokens_per_minute: int = 0
    """Of prompts and answers; a minute's worth may come at once."""
    max_streams: int = 0
    max_blocks: int = 0
    """KV blocks that its open requests may come to need."""
    priority: int = 0
    """The lowest number, which is served first, that its requests may give."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < 1e6 or min(self.tokens_per_minute, self.max_streams, self.max_blocks) < 0:
            raise ValueError("weight must be above 0 and below 1e6, and caps at least 0")


class Tenant:
    """One key's limits, and what its open requests take."""

    __slots__ = ("_at", "_clock", "_tokens", "blocks", "limits", "num_streams", "share")

    def __init__(self, share: Share, limits: TenantLimits, clock: Callable[[], float]) -> None:
        self.share = share
        """As workers see it."""
        self.limits = limits
        self.num_streams = self.blocks = 0
        self._tokens = float(limits.tokens_per_minute)
        self._clock, self._at = clock, clock()

    def tokens_in_s(self) -> float:
        """In how many seconds it has tokens to spend; 0: now."""
        rate, now = self.limits.tokens_per_minute / 60, self._clock()
        if not rate:
            return 0.0
        self._tokens = min(self._tokens + rate * (now - self._at), 60 * rate)
        self._at = now
        return max(-self._tokens / rate, 0.0)

    def spend(self, num_tokens: int) -> None:
        """Count tokens. What is begun is served to its end, so it may come to owe some."""
        if self.limits.tokens_per_minute:
            self._tokens -= num_tokens


class Tenants:
    """All keys' tenants, by the hash that stands for a key. With one key, or none, nobody is told apart."""

    def __init__(
        self, keys: Sequence[str], salt_key: str, file: str | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the file.

        Raises:
            ConfigError: the file cannot be read, names a key that is none, or a limit that is not valid.
        """
        limits = {} if file is None else _read(Path(file), keys)
        usual = limits.get("*", TenantLimits())
        nobody = Tenant(NOBODY, TenantLimits(priority=-(2**31)), clock)
        self._tenants = {b"": nobody}
        for key in keys:
            tenant, own = tenant_of(key, salt_key), limits.get(key, usual)
            self._tenants[tenant] = Tenant(Share(tenant, own.weight) if len(set(keys)) > 1 else NOBODY, own, clock)

    def of(self, tenant: bytes) -> Tenant:
        """Return the tenant that the authenticator named."""
        return self._tenants[tenant]

    def fraction(self, tenant: Tenant) -> float:
        """A tenant's part, 0 to 1, of what all that have open requests share."""
        weights = [each.share.weight for each in self._tenants.values() if each.num_streams and each is not tenant]
        return tenant.share.weight / (tenant.share.weight + sum(weights))

    def check_priority(self, tenant: bytes, priority: int) -> None:
        """Refuse a request that would go before those that its key may not pass.

        Raises:
            InvalidRequest: with the lowest number that it may give.
        """
        lowest = self.of(tenant).limits.priority
        if priority < lowest:
            reason = f"requests of this key may give {lowest} or more"
            raise refuse("priority", priority, reason, "The router's file --tenants says what a key may.")


def _read(file: Path, keys: Sequence[str]) -> dict[str, TenantLimits]:
    field = f"tenants={str(file)!r} is not valid"
    try:
        entries = yaml.safe_load(file.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{field}: {type(error).__name__}: it must be a YAML file that can be read.") from None
    if not isinstance(entries, dict):
        raise ConfigError(f"{field}: it must hold API keys, each with its limits.")
    limits: dict[str, TenantLimits] = {}
    for at, (key, given) in enumerate(entries.items(), 1):
        if key != "*" and key not in keys:  # which is a secret, even a wrong one
            raise ConfigError(f"{field}: its entry {at} is no key of --api-key, nor '*'.")
        limits[key] = _limits(given, f"{field}: entry {at}")
    return limits


def _limits(given: Any, field: str) -> TenantLimits:
    try:
        return msgspec.convert(given or {}, TenantLimits)
    except msgspec.ValidationError as error:
        names = ", ".join(TenantLimits.__struct_fields__)
        raise ConfigError(f"{field}: {error}. Limits are {names}.") from None
