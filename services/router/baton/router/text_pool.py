"""TextPool: text work that would stall streams, kept off the event loop.

Short texts are encoded at once: handing them over would cost more. Long ones go to threads, in which the tokenizer
lets others run. Templates render in a process that is ended when it takes too long.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from baton.errors import InvalidRequest, refuse
from baton.logs import get_logger
from baton.protocol import prompt_too_long
from baton.requests.conversation import Conversation
from baton.router.config import RouterConfig
from baton.router.helper_process import HelperDied, HelperPool, HelperTooSlow
from baton.text import Tokenizer, TooManyTokens

_INLINE_LEN = 1500
"""Characters encoded on the loop: below a millisecond."""
_MAX_TOKENS = 2**20
"""Ids that a text may have: a list of them is made while everything else waits, for 30 ms."""
_HEAD_LEN = 16
"""Characters a token of the context: if so many have twice as many tokens as it holds, the rest need not be looked at."""
_T = TypeVar("_T")
_log = get_logger("text_pool")


class TextPool:
    """Encoding and rendering for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, config: RouterConfig) -> None:
        self.tokenizer = tokenizer
        self._config = config
        self._threads = ThreadPoolExecutor(config.tokenizer_threads or 1, "tokenize")
        self._aside = ThreadPoolExecutor(1, "tokenize-aside")
        """For texts of any length that nobody generates from: prompts do not wait behind them."""
        self._renderers = HelperPool("baton.router.render", 2)

    @property
    def wait_s(self) -> float:
        """Predict how long a conversation that comes now waits for those before it to be rendered."""
        return self._renderers.wait_s

    async def start(self) -> None:
        if self.tokenizer.chat_templates.sources or self._config.trust_request_chat_template:
            await self._renderers.start()

    async def close(self) -> None:
        await self._renderers.close()
        for threads in (self._threads, self._aside):
            threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[..., _T], *args: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    async def encode(
        self, text: str, *, add_special_tokens: bool = True, max_model_len: int | None = None
    ) -> list[int]:
        """Return a text's token ids.

        Raises:
            InvalidRequest: more than the context holds, if that is given, or than are given at once.
        """
        work = functools.partial(_encode, self.tokenizer, text, add_special_tokens, max_model_len)
        if len(text) <= _INLINE_LEN:
            return work()
        threads = self._aside if max_model_len is None else self._threads
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    async def chat_ids(
        self, request: Conversation, *, add_special_tokens: bool, max_model_len: int | None = None
    ) -> list[int]:
        """Return the token ids of a conversation, which may have been rendered already; raises as `render_chat`."""
        if request.rendered is None:
            return await self.render_chat(
                add_special_tokens=add_special_tokens,
                max_model_len=max_model_len,
                template=request.own_template(trusted=self._config.trust_request_chat_template),
                **request.for_template(),
            )
        return await self.encode(request.rendered, add_special_tokens=add_special_tokens, max_model_len=max_model_len)

    async def render_chat(
        self,
        *,
        add_special_tokens: bool = False,
        max_model_len: int | None = None,
        template: str | None = None,
        **shown: Any,
    ) -> list[int]:
        """Render a conversation, as `for_template` of its request returns it, and encode it.

        It is the model's template that renders, or the one given.

        With `add_special_tokens` the tokenizer adds its own, beside those that the template writes.

        Raises:
            InvalidRequest: no template, one that refuses these messages, or one that takes too long or too much.
        """
        if template is None:
            template = self.tokenizer.chat_templates.source(with_tools=bool(shown["tools"]))
        frame = _frame_of({"template": template, **self.template_settings()} | shown)
        try:
            answer = await self._renderers.ask(frame, self._config.template_timeout_s)
        except (HelperTooSlow, HelperDied) as error:
            _log.warning("template_failed", reason=str(error))
            answer = {"reason": str(error)}
        text = rendered_text(answer)
        return await self.encode(text, add_special_tokens=add_special_tokens, max_model_len=max_model_len)

    def template_settings(self) -> dict[str, Any]:
        """Return what `render` needs to know beside a template and a conversation."""
        templates = self.tokenizer.chat_templates
        return {
            "special_tokens": templates.special_tokens,
            "content_format": templates.content_format,
            "max_len": self._config.max_rendered_nbytes,
        }


def rendered_text(answer: dict[str, Any]) -> str:
    """Return the text that `render` gave.

    Raises:
        InvalidRequest: it gave none.
    """
    if "reason" in answer:
        raise InvalidRequest(
            f"messages cannot be rendered by this model's chat template: {answer['reason']}.", field="messages"
        )
    if "error" in answer:
        raise InvalidRequest(answer["error"], field=answer["field"])
    text: str = answer["text"]
    return text


def _encode(tokenizer: Tokenizer, text: str, add_special_tokens: bool, max_model_len: int | None) -> list[int]:
    if max_model_len is None:
        try:
            return tokenizer.encode(text, add_special_tokens=add_special_tokens, max_tokens=_MAX_TOKENS)
        except TooManyTokens as error:
            limit = f"it has {error.count} tokens, and at most {_MAX_TOKENS} are given at once"
            raise refuse("prompt", f"{len(text)} characters", limit, "Send it in parts.") from None
    head_len = _HEAD_LEN * max_model_len
    if len(text) > 2 * head_len:
        with_less = functools.partial(tokenizer.encode, text[:head_len], add_special_tokens=False)
        try:
            with_less(max_tokens=2 * max_model_len)
        except TooManyTokens:
            raise prompt_too_long(f"more than {2 * max_model_len}", max_model_len) from None
    try:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens, max_tokens=max_model_len)
    except TooManyTokens as error:
        raise prompt_too_long(str(error.count), max_model_len) from None


def _frame_of(request: dict[str, Any]) -> bytes:
    """Write a request to a renderer; the faster form takes no number beyond 64 bits, of which a tool's schema may have some."""
    try:
        try:
            return msgspec.msgpack.encode(request)
        except OverflowError:
            return json.dumps(request).encode()
    except (RecursionError, TypeError):
        raise InvalidRequest(
            "messages cannot be rendered: they (or tools, or chat_template_kwargs) hold objects that are nested too "
            "deep.",
            field="messages",
        ) from None
