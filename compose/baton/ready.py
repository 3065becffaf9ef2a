"""Ask the service of this container for /ready: `python -m baton.ready`, for health checks. Loads nothing else of Baton."""

from __future__ import annotations

import http.client
import os
import socket
import sys


def main() -> int:
    """Return 0 if it is ready; else say what it answers, and return 1."""
    host = os.environ.get("BATON_HOST", "127.0.0.1")
    host = {"auto": socket.gethostname(), "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        connection = http.client.HTTPConnection(host, int(os.environ["BATON_PORT"]), timeout=4)
        connection.request("GET", "/ready")
        answer = connection.getresponse()
        print(answer.read(500).decode(errors="replace"))
        return 0 if answer.status == 200 else 1
    except (KeyError, ValueError, OSError, http.client.HTTPException) as error:
        print(f"{type(error).__name__}: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
