"""The address that a service is reached at."""

from __future__ import annotations

import ipaddress
import socket

from baton.errors import ConfigError


def bind_tcp(host: str, port: int) -> socket.socket:
    """Take an address, not listening yet; port 0 takes a free one.

    Raises:
        ConfigError: another process has it, or this machine does not.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}. Choose another --port.") from None
    return bound


def bracketed(host: str) -> str:
    """Return a host as URLs have it: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on a host; a name that has no address reaches nobody."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host or None, 0, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return True
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)
