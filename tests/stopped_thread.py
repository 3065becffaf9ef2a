"""Stop the main thread of a process, and only that one, as a debugger does; other threads go on.

    python -m tests.stopped_thread PID

Stops it at the first line that it reads, and says "stopped"; lets it go on when it is ended itself, and ends with the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

_SEIZE, _INTERRUPT = 0x4206, 0x4207
_WALL = 0x40000000


@contextlib.contextmanager
def stopping_main_thread(pid: int) -> Iterator[Callable[[], None]]:
    """Give what stops it; it goes on at the end."""
    tracer = subprocess.Popen(
        [sys.executable, __file__, str(pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    stdin, stdout = tracer.stdin, tracer.stdout
    assert stdin is not None
    assert stdout is not None

    def stop() -> None:
        stdin.write("stop\n")
        assert stdout.readline().strip() == "stopped"

    try:
        assert stdout.readline().strip() == "ready"
        yield stop
    finally:
        tracer.kill()
        tracer.wait()
        stdin.close()
        stdout.close()


def main() -> None:
    """Trace until the process is gone."""
    pid = int(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    print("ready", flush=True)
    sys.stdin.readline()
    for request in (_SEIZE, _INTERRUPT):
        if libc.ptrace(request, pid, None, None) != 0:
            sys.exit(f"ptrace: {os.strerror(ctypes.get_errno())}")
    status = os.waitpid(pid, _WALL)[1]
    print("stopped", flush=True)
    while os.WIFSTOPPED(status):
        status = os.waitpid(pid, _WALL)[1]


if __name__ == "__main__":
    main()
