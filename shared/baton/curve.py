"""CURVE: the key pair that a deployment's workers share, and sockets that only its holders connect to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """A key pair in ZeroMQ's Z85 form. Who lacks it is refused."""

    public: bytes
    secret: bytes

    @classmethod
    def generate(cls) -> CurveKeys:
        """Make a new pair."""
        return cls(*zmq.curve_keypair())

    def guard(self, context: zmq.Context[Any]) -> ThreadAuthenticator:
        """Let only holders of the pair connect to the context's CURVE sockets. Stop it before the context."""
        guardian = ThreadAuthenticator(context)
        guardian.start()
        guardian.configure_curve_callback(domain="*", credentials_provider=self)
        return guardian

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client may connect; the authenticator asks."""
        return key == self.public

    def serve(self, socket: zmq.Socket[Any]) -> None:
        """Make a socket that binds ask for the keys."""
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = self.public, self.secret

    def connect(self, socket: zmq.Socket[Any]) -> None:
        """Have a socket that connects show the keys."""
        socket.curve_serverkey = self.public
        socket.curve_publickey, socket.curve_secretkey = self.public, self.secret
