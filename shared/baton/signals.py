"""The signals that ask a process to end in order."""

from __future__ import annotations

import signal


def end_signals() -> list[signal.Signals]:
    """Return Ctrl-C, SIGTERM and, unless it is ignored as under nohup, the hang-up of a terminal."""
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hang_up]
