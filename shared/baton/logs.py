"""Logs: one event a line with its facts as fields; for people on a terminal, JSON elsewhere.

log = get_logger("pool")
log.warning("worker_lost", worker_id="d0", silent_s=3.1)
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from dataclasses import dataclass
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from baton.config import setting

_is_json: bool | None = None
"""Whether this process's events are JSON, and what it says beside them has to be too; None: before `setup_logs`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """What a process tells of itself, and how; flags are made from it."""

    log_level: Literal["debug", "info", "warning", "error", "critical"] = setting("info", "least level that is told")
    log_format: Literal["auto", "text", "json"] = setting(
        "auto", "auto: text on a terminal and by `baton up`, JSON elsewhere"
    )


def setup_logs(service: str, config: LogConfig) -> None:
    """Send every event of this process, warnings and the libraries' too, to standard error."""
    global _is_json
    number = logging.getLevelNamesMapping()[config.log_level.upper()]
    _is_json = config.log_format == "json" or (config.log_format == "auto" and not sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso" if _is_json else "%Y-%m-%d %H:%M:%S", utc=_is_json),
        lambda _logger, _method, event: {**event, "service": service},
    ]
    # The default traceback shows local variables, which may be a user's words, and takes seconds to draw.
    plain = structlog.dev.plain_traceback
    render: list[Processor] = [structlog.dev.ConsoleRenderer(colors=shows_colours(), exception_formatter=plain)]
    stream = sys.stderr
    if _is_json:
        sys.stderr = _ForeignLines(stream)
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render]
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(number, logging.WARNING))  # libraries speak only when something is wrong
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    logging.captureWarnings(True)
    sys.excepthook = _on_crash
    threading.excepthook = lambda crash: _on_crash(crash.exc_type, crash.exc_value, crash.exc_traceback)


def get_logger(name: str) -> FilteringBoundLogger:
    """Make a logger whose events carry `name` as their part; works before `setup_logs` too."""
    return cast(FilteringBoundLogger, structlog.get_logger(part=name))


def shows_colours() -> bool:
    """Whether standard error is a terminal whose owner wants colours."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def say_why_it_ends(error: Exception, *, as_json: bool = False) -> None:
    """Tell the one thing that a user has to know of a service that cannot go on; as JSON too if no log is set up yet."""
    if as_json and _is_json is None:
        setup_logs("baton", LogConfig(log_format="json"))
    if _is_json:
        get_logger("main").critical(str(error))
    else:
        print(f"baton: {error}", file=sys.stderr)


class _ForeignLines(io.TextIOBase):
    """Standard error where the log is JSON: what else is written there, by libraries of their own, becomes events."""

    encoding = "utf-8"

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rest = ""

    def write(self, text: str) -> int:
        """Take text; each line that it ends is an event."""
        *lines, self._rest = (self._rest + text).replace("\r", "\n").split("\n")
        for line in filter(str.strip, lines):
            get_logger("stderr").info(line)
        return len(text)

    def fileno(self) -> int:
        return self._stream.fileno()


def _on_crash(kind: type[BaseException], error: BaseException | None, trace: Any) -> None:
    if not issubclass(kind, (KeyboardInterrupt, SystemExit)):
        get_logger("main").critical("crashed", exc_info=(kind, error, trace))
