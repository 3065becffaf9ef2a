"""`make soak`: a stack of its own under faults for half an hour, or for SOAK=8h; then mutated frames and requests.

It ends with 1 where a stream is lost or changed, where what processes hold at rest grows, or where a mutated frame or a
drawn request breaks something. A shorter time draws fewer of those.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.processes import BatonProcess, eventually, free_ports

from baton.chaos import seconds_of

FULL_S = 1800.0
"""From this time on all of these are drawn."""
NUM_DECODED, NUM_LIVE, NUM_SEEDS, NUM_REQUESTS = 1_000_000, 100_000, 100_000, 350
"""Frames for decoders and for live sockets, seeds of the simulation, requests for each route and kind."""
PASSWORD = "of this stack only"


def main() -> int:
    """Run all of it; return the exit status."""
    lasting = sys.argv[1] if len(sys.argv) > 1 else "30m"
    part = min(seconds_of(lasting) / FULL_S, 1.0)
    failed = [name for name, status in (("faults", disturb(lasting)), ("drawn", draw(part))) if status]
    print(f"soak: {' and '.join(failed)} failed" if failed else "soak: all is right", flush=True)
    return 1 if failed else 0


def disturb(lasting: str) -> int:
    """Start a stack, let `baton chaos` disturb it for so long, and end it."""
    environment = {"BATON_REDIS_PASSWORD": PASSWORD}
    with tempfile.TemporaryDirectory(prefix="baton-soak-") as folder:
        (port,) = free_ports(1)
        arguments = ["up", "--prefill", "2", "--decode", "2", "--port", str(port), "--drain-s", "1"]
        stack = BatonProcess(arguments, Path(folder, "up.log"), port, environment).start()
        try:
            eventually(lambda: "Try:" in stack.log() or not stack.is_running, "all are ready")
            command = [
                sys.executable,
                "-m",
                "baton.cli",
                "chaos",
                "--url",
                stack.url,
                "--for",
                lasting,
                "--streams",
                "24",
            ]
            status = subprocess.run(command, env={**os.environ, **environment}, check=False).returncode
            if status:
                print(stack.log(), flush=True)
            return status
        finally:
            stack.stop()


def draw(part: float) -> int:
    """Run the tests that draw their cases, with as many as the time is worth."""
    numbers = {"FRAMES": NUM_DECODED, "LIVE_FRAMES": NUM_LIVE, "SEEDS": NUM_SEEDS, "FUZZ_EXAMPLES": NUM_REQUESTS}
    environment = {**os.environ, **{name: str(max(int(part * number), 16)) for name, number in numbers.items()}}
    files = ["tests/faults/test_mutated_frames.py", "tests/router/test_fuzz.py", "tests/simulation"]
    return subprocess.run([sys.executable, "-m", "pytest", "-n", "2", *files], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
