"""Who may ask: API keys, compared in constant time; every route but the named public ones needs one."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from fastapi import Request

from baton.errors import BatonError

TENANT = "baton.tenant"
"""Of a scope, which no client writes: whose request it is that comes from within."""
PUBLIC_PATHS = frozenset({"/health", "/ready", "/ping"})
ADMIN_PATHS = frozenset(
    ("/reset_prefix_cache", "/sleep", "/wake_up", "/is_sleeping", "/abort_requests", "/server_info")
)


class NotAuthorized(BatonError):
    """No key, or a wrong one."""

    status = 401


class AdminOff(BatonError):
    """Nobody is an admin here."""

    status = 403


class Authenticator:
    """Checks keys and names tenants; knows keys only as hashes."""

    def __init__(self, keys: Sequence[str], salt_key: str) -> None:
        self._hashes = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._salt_key = salt_key.encode()

    def authorize(self, authorization: str | None) -> bytes:
        """Return the tenant's salt for its KV; empty when no keys are set and all share one cache.

        Raises:
            NotAuthorized: the header is missing, malformed or holds no known key.
        """
        if not self._hashes:
            return b""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise NotAuthorized("No API key was given. Send the header 'Authorization: Bearer <key>'.")
        given = hashlib.sha256(key.strip().encode("latin-1")).digest()  # the bytes that came
        matches = [hmac.compare_digest(given, known) for known in self._hashes]  # all of them, always
        if not any(matches):
            raise NotAuthorized("The API key is not known here.")
        return _tenant_of(given, self._salt_key)


def tenant_of(key: str, salt_key: str) -> bytes:
    """Return what stands for a key in the deployment, and is no key."""
    return _tenant_of(hashlib.sha256(key.encode()).digest(), salt_key.encode())


def _tenant_of(key_hash: bytes, salt_key: bytes) -> bytes:
    return hashlib.blake2b(key_hash, key=salt_key[:64], digest_size=16, person=b"baton tenant").digest()


def salt_of(tenant: bytes, cache_salt: str | None) -> bytes:
    """Join a tenant's salt with the one that its request names; equal only if both are."""
    if cache_salt is None:
        return tenant
    return hashlib.blake2b(cache_salt.encode(), key=tenant, digest_size=16, person=b"baton salt").digest()


async def require_key(request: Request) -> None:
    """Refuse a request without a known key; the dependency of every route that is not public."""
    if TENANT in request.scope:  # who asked from within was let in before
        request.state.tenant = request.scope[TENANT]
        return
    authenticator: Authenticator = request.app.state.authenticator
    given = request.headers.get("authorization")
    if given is None and (key := request.headers.get("x-api-key")) is not None:  # where Anthropic's clients put it
        given = f"Bearer {key}"
    request.state.tenant = authenticator.authorize(given)


class AdminAuthenticator:
    """Checks the key of admins, which no key of clients stands for."""

    def __init__(self, key: str | None) -> None:
        self._hash = None if key is None else hashlib.sha256(key.encode()).digest()

    def authorize(self, authorization: str | None) -> None:
        """Refuse who is no admin.

        Raises:
            AdminOff: there is no key to give.
            NotAuthorized: the header is missing, malformed or holds another key.
        """
        if self._hash is None:
            raise AdminOff(
                "Routes for admins are off. Start the router with --admin-api-key KEY or BATON_ADMIN_API_KEY, and send "
                "that key as 'Authorization: Bearer KEY'."
            )
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode("latin-1")).digest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, self._hash):
            raise NotAuthorized("This route is for admins: send the key of --admin-api-key.")


async def require_admin(request: Request) -> None:
    """Refuse who is no admin; the dependency of every route that acts on workers. Nobody asks from within."""
    authenticator: AdminAuthenticator = request.app.state.admin_authenticator
    if TENANT in request.scope:
        raise NotAuthorized("This route is for admins.")
    authenticator.authorize(request.headers.get("authorization"))
