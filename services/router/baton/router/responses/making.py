"""ResponseInMaking: one request to /v1/responses, from the chat that it came to, to where its answer goes."""

from __future__ import annotations

from collections.abc import Callable

import orjson

from baton.errors import BatonError, unsupported
from baton.messages import TokenLogprobs
from baton.requests.chat import ChatRequest
from baton.requests.responses import Kept
from baton.requests.translated import Context
from baton.router.openai.blocks import BlockSink
from baton.router.openai.chat import OpenChat
from baton.router.openai.logprobs import chat_logprob
from baton.router.openai.outlets import Outlet, Status
from baton.router.responses.frame import ResponseFrame
from baton.router.responses.store import Key, Record, ResponseStore
from baton.router.responses.writer import ResponseWriter
from baton.router.router_state import RouterState


class ResponseInMaking:
    """Who writes a response, keeps it, and may end it before its time."""

    def __init__(
        self, router: RouterState, key: Key, model: str, request: ChatRequest, kept: Kept, context: Context
    ) -> None:
        """Take what was read of a request.

        Raises:
            InvalidRequest: it wants to be kept where nothing is.
        """
        store = router.responses
        if not store.is_on and (kept.store or kept.background):
            field = "store" if kept.store else "background"
            raise unsupported(field, True, "this router keeps no responses (--response-store off)")
        self.stores = store.is_on and kept.store is not False
        defaults = router.sampling_defaults
        temperature, top_p = request.temperature, request.top_p
        self.frame = ResponseFrame(
            key[1],
            model,
            kept,
            store=self.stores,
            temperature=defaults.get("temperature", 1.0) if temperature is None else temperature,
            top_p=defaults.get("top_p", 1.0) if top_p is None else top_p,
        )
        self._router = router
        self._store: ResponseStore = store
        self._key = key
        self._request = request
        self._kept = kept
        self._before = context.before
        self._chat: OpenChat | None = None
        self._writer: ResponseWriter | None = None

    def open(self, chat: OpenChat, outlet: Outlet) -> ResponseWriter:
        """Take where the answer comes from and where it goes; return who writes it."""
        self._chat = chat
        self._writer = ResponseWriter(self.frame, outlet, seals_reasoning=self._kept.seals_reasoning)
        return self._writer

    async def start(self) -> dict[str, str]:
        """Send the request on its way; return headers with the route, for those who asked for it."""
        assert self._chat is not None
        assert self._writer is not None
        opened = self._chat.opened
        write_score = self._write_score if self._kept.with_logprobs else None
        sink = BlockSink(self._writer, opened.tally, len(self._chat.prompt), write_score, opened.cancel)
        return await opened.start([sink], self._chat.new_parser)

    def record(self, status: Status, response: bytes) -> Record:
        return Record(status, response, self._kept.input, self._before)

    def keep(self, status: Status, response: bytes, then: Callable[[], None]) -> None:
        """Keep the whole response, if that is wanted, and do what is to be done then."""
        self._store.making.pop(self._key, None)
        if self.stores:
            self._store.put_then(self._key, self.record(status, response), then)
        else:
            then()

    # -- in the background ---------------------------------------------------------------------------------

    async def start_in_background(self) -> None:
        """Send the request on its way, known to all routers."""
        assert self._writer is not None
        await self._store.put(self._key, self.record("queued", self.frame.write("queued")))
        await self._store.tend(self._key, self)
        self._writer.queue()
        try:
            await self.start()
        except BaseException:
            self._store.making.pop(self._key, None)
            await self._store.delete(self._key)
            raise

    def so_far(self) -> bytes:
        """Return the response as far as it has come."""
        assert self._writer is not None
        return self.frame.write("in_progress" if self._writer.has_begun else "queued", self._writer.output)

    def cancel(self) -> None:
        """Nobody wants it any more."""
        assert self._chat is not None
        assert self._writer is not None
        self._chat.opened.cancel()
        self._writer.cancel()

    def fail(self, error: BatonError) -> None:
        """It cannot be made."""
        assert self._chat is not None
        assert self._writer is not None
        self._chat.opened.cancel()
        self._writer.fail(error)

    def _write_score(self, row: TokenLogprobs) -> bytes:
        skips = self._request.skip_special_tokens is not False
        return orjson.dumps(chat_logprob(row, self._router.tokenizer, skips_special=skips))
