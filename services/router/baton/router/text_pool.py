"""TextPool: text work that would stall streams, kept off the event loop.

Short texts are encoded at once: handing them over would cost more. Long ones go to threads, in which the tokenizer
lets others run. Templates render in a process that is ended when it takes too long.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from baton.errors import InvalidRequest
from baton.logs import get_logger
from baton.router.config import RouterConfig
from baton.text import Tokenizer

_INLINE_LEN = 1500
"""Characters encoded on the loop: below a millisecond."""
_START_S = 10.0
_T = TypeVar("_T")
_log = get_logger("text_pool")


class TextPool:
    """Encoding and rendering for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, config: RouterConfig) -> None:
        self.tokenizer = tokenizer
        self._config = config
        self._threads = ThreadPoolExecutor(config.tokenizer_threads or 1, "tokenize")
        self._renderers: asyncio.Queue[_Renderer] = asyncio.Queue()
        self._all = [_Renderer() for _ in range(2)]
        for renderer in self._all:
            self._renderers.put_nowait(renderer)

    async def start(self) -> None:
        """Start the first renderer, so that the first request does not wait for it."""
        if self.tokenizer.chat_templates.sources:
            await self._all[0].ready()

    async def close(self) -> None:
        for renderer in self._all:
            await renderer.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[..., _T], *args: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        work = functools.partial(self.tokenizer.encode, text, add_special_tokens=add_special_tokens)
        return work() if len(text) <= _INLINE_LEN else await self.run(work)

    async def render_chat(self, *, add_special_tokens: bool = False, **shown: Any) -> list[int]:
        """Render a conversation, as `for_template` of its request returns it, by the model's template; and encode it.

        With `add_special_tokens` the tokenizer adds its own, beside those that the template writes.

        Raises:
            InvalidRequest: no template, one that refuses these messages, or one that takes too long or too much.
        """
        templates = self.tokenizer.chat_templates
        request = {
            "template": templates.source(with_tools=bool(shown["tools"])),
            "special_tokens": templates.special_tokens,
            "content_format": templates.content_format,
            "max_len": self._config.max_rendered_nbytes,
        }
        body = _frame_of(request | shown)
        renderer = await self._renderers.get()
        try:
            answer = await renderer.render(body, self._config.template_timeout_s)
        finally:
            self._renderers.put_nowait(renderer)
        if "reason" in answer:
            raise InvalidRequest(
                f"messages cannot be rendered by this model's chat template: {answer['reason']}.", field="messages"
            )
        if "error" in answer:
            raise InvalidRequest(answer["error"], field=answer["field"])
        return await self.encode(answer["text"], add_special_tokens=add_special_tokens)


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


class _Renderer:
    """One rendering process, started when needed and ended when it hangs."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def ready(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "baton.router.render"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the router, which ends it in order
            )
            # its first answer tells that Python and Jinja are loaded: that time is not the template's
            async with asyncio.timeout(_START_S):
                await self._exchange(self._process, msgspec.msgpack.encode(None))
        return self._process

    async def render(self, body: bytes, timeout_s: float) -> dict[str, Any]:
        try:
            process = await self.ready()
            async with asyncio.timeout(timeout_s):
                return await self._exchange(process, body)
        except TimeoutError:
            _log.warning("template_timeout", timeout_s=timeout_s)
            await self.stop()
            return {"reason": f"it took longer than {timeout_s:g} s"}
        except (OSError, EOFError, asyncio.IncompleteReadError):
            await self.stop()
            return {"reason": "it needs too much memory"}
        except asyncio.CancelledError:
            await self.stop()  # its answer would be taken for the next one's
            raise

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    async def _exchange(self, process: asyncio.subprocess.Process, body: bytes) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.writelines((len(body).to_bytes(4, "little"), body))
        await process.stdin.drain()
        nbytes = int.from_bytes(await process.stdout.readexactly(4), "little")
        answer: dict[str, Any] = msgspec.msgpack.decode(await process.stdout.readexactly(nbytes))
        return answer
