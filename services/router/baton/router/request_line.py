"""One line in the log for each request that ended: whose, how it went, how many tokens, how long; never what was said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.types import Scope

from baton.logs import get_logger
from baton.router.dispatcher import Running

_QUIET = ("/health", "/ready", "/metrics", "/debug", "/page")
"""What machines ask for again and again."""
_log = get_logger("http")


def log_request(scope: Scope, status: int, seconds: float) -> None:
    """Tell of an HTTP request and of the generations that it began, which are listed in its state."""
    state, path = scope["state"], getattr(scope.get("route"), "path", scope["path"][:200])
    if not path.startswith(_QUIET):
        facts = {"method": scope["method"], "path": path, "status": status, "seconds": round(seconds, 4)}
        _log.info("request", request_id=state["request_id"], **facts, **_answer(state.get("running", ())))


def _answer(running: Sequence[Running]) -> dict[str, Any]:
    """Sum up the generations of one request, one a prompt."""
    if not running:
        return {}
    usages = [each.flow.usage for each in running]
    waits = [each.first_token_at - each.arrived_at for each in running if each.first_token_at]
    decision = running[0].decision
    facts = {
        "state": running[-1].record.state,
        "prompt_tokens": sum(usage.num_prompt for usage in usages),
        "cached_tokens": sum(usage.num_cached for usage in usages),
        "completion_tokens": sum(usage.num_completion for usage in usages),
        "first_token_s": round(min(waits), 4) if waits else None,
        "replays": sum(each.num_replays for each in running),
        "prefill": None if decision is None else decision.chosen.prefill,
        "decode": None if decision is None else decision.chosen.decode,
    }
    return {name: value for name, value in facts.items() if value is not None}
