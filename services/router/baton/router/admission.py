"""Admission: refuse early, by tokens and blocks, with a reason and the time after which to come again."""

from __future__ import annotations

import math
from dataclasses import dataclass

from baton.errors import QueueFull
from baton.metrics import RouterMetrics
from baton.router.config import RouterConfig
from baton.router.costs import Option
from baton.router.tenants import Tenant, Tenants
from baton.router.turnover import Foresight


@dataclass(slots=True)
class Demand:
    """What one request takes of the workers."""

    tokens: int
    """Prompt tokens, counted until the first token comes."""
    blocks: int
    """KV blocks that it may come to need, counted until its end."""
    tenant: bytes = b""
    is_waiting: bool = True


class Refused(QueueFull):
    """Too much is waiting."""

    cause = ""  # of an error that knows which limit it met

    def __init__(self, message: str, reason: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.cause = reason
        self.retry_after_s = retry_after_s


class Admission:
    """What all accepted requests take together."""

    def __init__(self, config: RouterConfig, metrics: RouterMetrics, tenants: Tenants) -> None:
        self._config = config
        self._tenants = tenants
        self._metrics = metrics
        self.foresight = Foresight()
        """What the dispatcher has learned of waits that are over."""
        self.num_requests = 0
        self.waiting_tokens = 0
        self.blocks = 0

    def admit(self, demand: Demand, way: Option | None, total_blocks: int) -> None:
        """Take a request in, which would go the way given; None: it waits for a worker.

        Raises:
            Refused: with the reason that is counted, and Retry-After.
        """
        self.check(demand, way, total_blocks)
        tenant = self._tenants.of(demand.tenant)
        tenant.num_streams += 1
        tenant.blocks += demand.blocks
        tenant.spend(demand.tokens)
        self.num_requests += 1
        self.waiting_tokens += demand.tokens
        self.blocks += demand.blocks

    def check(self, demand: Demand, way: Option | None, total_blocks: int) -> None:
        """Raise as `admit` would, and take nothing in."""
        config = self._config
        max_tokens = config.max_queued_tokens
        wait_s = 0.0 if way is None else way.wait_ms / 1000
        if self.num_requests >= config.max_streams:
            state = f"{self.num_requests} requests are open, and the limit is --max-streams {config.max_streams}"
            self._refuse("streams", state, wait_s)
        if self.waiting_tokens and max_tokens and self.waiting_tokens + demand.tokens > max_tokens:
            state = (
                f"{self.waiting_tokens} prompt tokens are waiting, and the limit is --max-queued-tokens {max_tokens}"
            )
            self._refuse("queued_tokens", state, wait_s)
        max_blocks = int(config.kv_overcommit * total_blocks)
        tenant = self._tenants.of(demand.tenant)
        self._check_caps(tenant, demand)
        is_full = self.blocks and max_blocks and self.blocks + demand.blocks > max_blocks
        # others' requests keep nobody from a part of the whole
        if is_full and tenant.blocks + demand.blocks > max_blocks * self._tenants.fraction(tenant):
            state = f"accepted requests need {self.blocks} of {total_blocks} KV blocks"
            limit = f"the limit is --kv-overcommit {config.kv_overcommit:g}"
            self._refuse("kv_blocks", f"{state}, and {limit}", max(wait_s, 2.0))
        if way is not None:
            self._check_waits(way)

    def check_reading(self, wait_s: float) -> None:
        """Refuse what would wait too long until its text is looked at.

        Raises:
            Refused: as `admit`.
        """
        most_s = self._config.max_queue_s
        if most_s and wait_s > most_s:
            state = f"a text would wait {wait_s:.1f} s until it is read, and the limit is --max-queue-s {most_s:g}"
            self._refuse("text", state, 2 * wait_s - most_s)

    def _check_caps(self, tenant: Tenant, demand: Demand) -> None:
        """Refuse what is more than a key may take."""
        limits = tenant.limits
        if limits.max_streams and tenant.num_streams >= limits.max_streams:
            self._refuse("tenant", f"this key has {limits.max_streams} open requests, which is its limit", 1.0)
        if limits.max_blocks and tenant.blocks and tenant.blocks + demand.blocks > limits.max_blocks:
            state = f"this key's open requests need {tenant.blocks} KV blocks, and its limit is {limits.max_blocks}"
            self._refuse("tenant", state, 2.0)
        if wait_s := tenant.tokens_in_s():
            self._refuse("tenant", f"this key's limit is {limits.tokens_per_minute} tokens a minute", 2 * wait_s)

    def _check_waits(self, way: Option) -> None:
        """Refuse what would wait too long. What takes long by itself is not overload, and waits for half of the target."""
        target_ms, most_ms = self._config.ttft_target_ms, 1000 * self._config.max_queue_s
        spare_ms = target_ms - min(way.terms["prefill"], target_ms / 2)
        if target_ms and way.first_wait_ms > spare_ms:
            first_s = (way.first_wait_ms + way.terms["prefill"]) / 1000
            state = f"a first token would take {first_s:.1f} s, and the limit is --ttft-target-ms {target_ms:g}"
            self._refuse("ttft", state, (2 * way.first_wait_ms - spare_ms) / 1000)
        wait_s = self.foresight.factor * way.wait_ms / 1000
        if most_ms and 1000 * wait_s > most_ms:
            state = f"a request would wait {wait_s:.1f} s, and the limit is --max-queue-s {most_ms / 1000:g}"
            self._refuse("queue", state, 2 * wait_s - most_ms / 1000)

    def on_first_token(self, demand: Demand) -> None:
        """Its prompt waits no more."""
        if demand.is_waiting:
            demand.is_waiting = False
            self.waiting_tokens -= demand.tokens

    def release(self, demand: Demand, num_completion: int) -> None:
        self.on_first_token(demand)
        tenant = self._tenants.of(demand.tenant)
        tenant.num_streams -= 1
        tenant.blocks -= demand.blocks
        tenant.spend(num_completion)
        self.num_requests -= 1
        self.blocks -= demand.blocks

    def _refuse(self, reason: str, state: str, wait_s: float) -> None:
        """Raise, with the seconds after which half of what waits is done."""
        self._metrics.admission_refusals.inc(reason)
        retry_after = min(max(math.ceil(wait_s / 2), 1), 60)
        message = f"The server is busy: {state}. Try again in {retry_after} s."
        raise Refused(message, reason, retry_after)
