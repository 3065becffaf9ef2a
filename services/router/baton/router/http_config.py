"""How a router listens, beside its address, and to whom it answers; flags are made from it. Names are vLLM's."""

from __future__ import annotations

import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from baton.config import setting
from baton.errors import ConfigError
from baton.listener import is_loopback


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """A router's front: browsers, proxies, TLS."""

    allow_anonymous: bool = setting(
        False, "answer everybody who reaches --host, without a key, beyond this machine too"
    )
    allowed_origins: tuple[str, ...] = setting(
        (),
        "origins whose pages may ask from a browser, * for all; none: all where a key is asked for, else those of this "
        "machine; named ones may also reach a private network",
    )
    allowed_methods: tuple[str, ...] = setting(("*",), "methods that such pages may use")
    allowed_headers: tuple[str, ...] = setting(("*",), "headers that such pages may send")
    allow_credentials: bool = setting(False, "let such pages send cookies")
    root_path: str = setting("", "path under which a proxy offers this router")
    uds: str | None = setting(None, "unix socket to listen on, in place of host and port")
    ssl_keyfile: str | None = setting(None, "file with the key of TLS")
    ssl_certfile: str | None = setting(None, "file with the certificate of TLS; none: no TLS")
    ssl_ca_certs: str | None = setting(None, "file with the certificates that sign those of clients")
    ssl_cert_reqs: int = setting(0, "certificates of clients; 0: none, 1: checked if there is one, 2: required")
    enable_log_requests: bool = setting(False, "log a line for each request that ends, never its text")
    disable_log_stats: bool = setting(False, "log no line of load every 10 s")

    def __post_init__(self) -> None:
        if self.root_path and not self.root_path.startswith("/"):
            raise ConfigError(f"root_path={self.root_path!r} is not valid: it must begin with /.")
        if self.ssl_cert_reqs not in list(ssl.VerifyMode):
            raise ConfigError(f"ssl_cert_reqs={self.ssl_cert_reqs} is not valid: it must be 0, 1 or 2.")
        if self.ssl_certfile is None and (self.ssl_keyfile or self.ssl_ca_certs or self.ssl_cert_reqs):
            raise ConfigError("ssl_keyfile, ssl_ca_certs and ssl_cert_reqs need --ssl-certfile.")
        for name in ("allowed_origins", "allowed_methods", "allowed_headers"):
            object.__setattr__(self, name, _entries(name, getattr(self, name)))

    def is_local(self, api_keys: Sequence[str]) -> bool:
        """Whether the address alone keeps others out: no key, and nothing said of who else may ask."""
        return not (api_keys or self.allow_anonymous or self.uds is not None or "*" in self.allowed_origins)

    def check(self, host: str, api_keys: Sequence[str]) -> None:
        """Refuse what would fail only later: keys that cannot be sent, files that are not there; and an open door.

        Raises:
            ConfigError: with the ways out.
        """
        if any(key.split() != [key] for key in api_keys):
            raise ConfigError("an api_key is not valid: it must be a word without spaces.")
        if not (api_keys or self.allow_anonymous or self.uds is not None or is_loopback(host)):
            raise ConfigError(
                f"host={host!r} would let everybody who reaches it ask without a key: give --api-key, listen on "
                "127.0.0.1, or say --allow-anonymous."
            )
        if self.uds is not None and not Path(self.uds).parent.is_dir():
            raise ConfigError(f"uds={self.uds!r} is not valid: its folder is not there.")
        if self.ssl_certfile is not None:
            self._check_tls(self.ssl_certfile)

    def _check_tls(self, certificate: str) -> None:
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, self.ssl_keyfile)
            if self.ssl_ca_certs is not None:
                context.load_verify_locations(self.ssl_ca_certs)
        except OSError as error:
            raise ConfigError(f"ssl_certfile, ssl_keyfile or ssl_ca_certs cannot be used: {error}.") from None


def _entries(name: str, given: Sequence[str]) -> tuple[str, ...]:
    """Return what is listed: one entry a flag, or all in one as JSON, as vLLM takes them."""
    entries: list[str] = []
    for each in given:
        if not each.lstrip().startswith("["):
            entries.append(each)
            continue
        try:
            listed = json.loads(each)
        except ValueError:
            listed = [None]
        if not all(isinstance(entry, str) for entry in listed):
            raise ConfigError(f"{name}={each[:80]!r} is not valid: it must be a name, or a JSON list of them.")
        entries += listed or ["[]"]  # nobody, which is not the same as nothing said
    return tuple(entries)
