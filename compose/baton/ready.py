"""Ask the service of this container for /ready: `python -m baton.ready`, for health checks. Loads nothing else of Baton."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import sys


def main() -> int:
    """Return 0 if it is ready; else say what it answers, and return 1."""
    host = os.environ.get("BATON_HOST", "127.0.0.1")
    host = {"auto": socket.gethostname(), "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        port, tls = int(os.environ["BATON_PORT"]), bool(os.environ.get("BATON_SSL_CERTFILE"))
        trusting = ssl._create_unverified_context() if tls else None  # it is this container's own
        connection = (
            http.client.HTTPConnection(host, port, timeout=4)
            if trusting is None
            else http.client.HTTPSConnection(host, port, timeout=4, context=trusting)
        )
        connection.request("GET", "/ready")
        answer = connection.getresponse()
        print(answer.read(500).decode(errors="replace"))
        return 0 if answer.status == 200 else 1
    except (KeyError, ValueError, OSError, http.client.HTTPException) as error:
        print(f"{type(error).__name__}: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
