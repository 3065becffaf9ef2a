"""Every error that Baton raises on purpose, as one tree.

    BatonError
    ├── InvalidRequest          400  the user's request is wrong: says field, value, limit and way out
    │   ├── ContextTooLong      400  prompt (and answer) do not fit the model's context
    │   └── UnsupportedFeature  400  a known parameter that this build does not serve
    ├── QueueFull               429  admission refused; retry later
    ├── Unavailable             503  no worker can take the request now; retry later
    ├── ConfigError             500  a flag or file is wrong: raised at start, never in a request
    │   ├── ModelLoadError           the checkpoint is missing, damaged or not ours to load
    │   ├── KernelError              a kernel does not compile on this device
    │   └── OutOfMemory              model and cache do not fit the device
    └── OutOfBlocks             500  the pool has fewer blocks than asked; the scheduler's own signal

Each class knows its HTTP status and whether trying again can help. `assert` is for our own invariants.
"""

from __future__ import annotations

import re
from typing import Self


class BatonError(Exception):
    """Any error that Baton raises on purpose."""

    status: int = 500
    retryable: bool = False
    retry_after_s: int = 1
    """Of what is retryable: when to come again."""
    is_recorded: bool = False
    """Whether the record of a request tells of it already."""

    @property
    def cause(self) -> str:
        """A word of ours for it, which holds nothing that a user wrote."""
        return re.sub(r"(?<!^)([A-Z])", r"_\1", type(self).__name__).lower()


class InvalidRequest(BatonError, ValueError):
    """A request that breaks a rule of the API; a `ValueError` too, as Python's callers expect for a wrong argument.

    `field` is the parameter's name as the user wrote it; the message carries value, limit and way out.
    """

    status = 400

    def __init__(self, message: str, *, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.code = code

    @property
    def cause(self) -> str:
        return self.code or super().cause

    def of(self, which: str) -> Self:
        """Return the same error, told of one of several."""
        return type(self)(f"{which}: {self}", field=self.field, code=self.code)


class ContextTooLong(InvalidRequest):
    """Prompt, or prompt and answer, exceed the model's context."""


class UnsupportedFeature(InvalidRequest):
    """A parameter that exists in the API but is not served by this build."""


class QueueFull(BatonError):
    """The waiting queue is at its bound."""

    status = 429
    retryable = True


class Unavailable(BatonError):
    """No worker can take the request now."""

    status = 503
    retryable = True


class ConfigError(BatonError):
    """A flag, a file or a combination of them is wrong; raised at start."""


class ModelLoadError(ConfigError):
    """A checkpoint cannot be loaded, with the reason and the way out."""


class KernelError(ConfigError):
    """A kernel does not compile on this device with this Triton; raised at start."""


class OutOfMemory(ConfigError):
    """Model, activations and KV cache do not fit the device."""


class OutOfBlocks(BatonError):
    """Fewer blocks are available than were asked for, even after eviction."""


def refuse(field: str, value: object, limit: str, way_out: str = "", *, code: str | None = None) -> InvalidRequest:
    """Make the one kind of message a user sees for a wrong value: field, value, limit, way out."""
    return InvalidRequest(_message(field, value, limit, way_out), field=field, code=code)


def unsupported(field: str, value: object, reason: str, way_out: str = "") -> UnsupportedFeature:
    """Make the same message for what is known but not served."""
    return UnsupportedFeature(_message(field, value, reason, way_out), field=field)


def _message(field: str, value: object, limit: str, way_out: str) -> str:
    message = f"{field}={show(value)} is not valid: {limit}."
    return f"{message} {way_out}" if way_out else message


def show(value: object) -> str:
    """Return a value as short text; never fails, whatever was sent."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:77] + "..."
