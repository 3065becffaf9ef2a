"""Tie a process to the one that starts it: it is killed when that one is gone, however that one ended.

Linux has a signal for it, which is asked for by the child itself, so this file is run first and becomes the command. It
survives that, since it belongs to the process. Elsewhere a child outlives a parent that is killed.

    python tied.py PID COMMAND ARGUMENT...
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def tied(command: Sequence[str]) -> list[str]:
    """Return what runs `command` tied to this process; start it from the main thread, whose end counts."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def main() -> None:
    """Become the command."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(sys.argv[1]):  # it was gone before we asked
            sys.exit(1)
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
