"""What a worker's face and a store share: HTTP on a listener, word in the registry, and the signals that end both."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI

from baton.signals import end_signals
from baton.worker.announcer import Announcer


@contextlib.asynccontextmanager
async def served(
    app: FastAPI, listener: socket.socket, announcer: Announcer, draining: asyncio.Event
) -> AsyncIterator[None]:
    """Answer on a bound socket and announce, while the block runs; a signal to end sets `draining`."""
    listener.listen(128)
    listener.setblocking(False)
    loop = asyncio.get_running_loop()
    ends = end_signals()
    for number in ends:
        loop.add_signal_handler(number, draining.set)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    serving = asyncio.create_task(server.serve([listener]))
    announcing = asyncio.create_task(announcer.run())
    try:
        yield
    finally:
        server.should_exit = True
        announcing.cancel()
        await asyncio.gather(serving, announcing, return_exceptions=True)
        await announcer.close()
        for number in ends:  # one more must not make a clean end a killed one
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
