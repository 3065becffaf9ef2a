"""What a prefill leg tells the decode leg beside the KV."""

from __future__ import annotations

import msgspec


class FirstToken(msgspec.Struct, array_like=True, frozen=True):
    """Where the decode worker goes on: the token that follows the prompt. Rides with the last block."""

    choice: int
    token_id: int
    position: int
    is_last: bool
    """The token ended its choice."""

    def encode(self) -> bytes:
        """Encode for the way."""
        return msgspec.msgpack.encode(self)

    @staticmethod
    def decode(meta: bytes) -> FirstToken:
        """Read what travelled.

        Raises:
            msgspec.MsgspecError: it is no first token.
        """
        return _decoder.decode(meta)


_decoder: msgspec.msgpack.Decoder[FirstToken] = msgspec.msgpack.Decoder(FirstToken)
