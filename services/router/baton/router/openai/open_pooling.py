"""OpenPooling: one HTTP request's items on their way to the workers, a bounded number at once, and their answers in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from starlette.requests import Request

from baton.errors import BatonError, QueueFull
from baton.messages import ModelFacts, Pooled
from baton.pooling import PoolingParams
from baton.prompt import Prompt
from baton.protocol import SamplingParams
from baton.requests.pooling import PoolingRequest
from baton.router.auth import salt_of
from baton.router.dispatcher import Running
from baton.router.flow import EndState
from baton.router.generation import Generation, hash_prompt
from baton.router.http_request import Caller
from baton.router.journal import Inputs, RequestRecord
from baton.router.openai.open_request import unless_left
from baton.router.pooling_flow import PoolingFlow, PoolingSink
from baton.router.router_state import RouterState
from baton.router.sink import Usage

_AT_ONCE = 256
"""Items of one request that workers have at once: a full step, and the next. Others' requests come between."""
_BETWEEN_TURNS = 8
"""Items that are begun before the loop may do something else: about a millisecond."""
_ONE = SamplingParams(max_tokens=1)
"""What admission and placement take an item for: a prompt with next to no answer."""


class OpenPooling:
    """What is pooled of several prompts; all of it, or one error."""

    def __init__(
        self,
        router: RouterState,
        request: PoolingRequest,
        caller: Caller,
        prompts: Sequence[Prompt],
        params: Sequence[PoolingParams],
    ) -> None:
        """Take prompts that were checked.

        Raises:
            InvalidRequest: its key may not give this priority.
        """
        limit_s = router.config.request_timeout_s
        self._priority = caller.priority(request.priority)
        router.tenants.check_priority(caller.tenant, self._priority)
        self._deadline = time.monotonic() + min(caller.timeout_s or limit_s, limit_s)
        self._salt = salt_of(caller.tenant, request.cache_salt)
        self._router = router
        self._caller = caller
        self._prompts = prompts
        self._params = params
        self._answers: list[Pooled | None] = [None] * len(prompts)
        self._record = RequestRecord(
            *(caller.public_id, Usage(sum(map(len, prompts))), router.pool.clock(), caller.tenant),
            inputs=Inputs(len(prompts)),
        )
        self._is_recorded = False
        self._open: dict[int, Running] = {}
        self._error: BatonError | None = None
        self._changed = asyncio.Event()
        self.num_cached = 0

    @property
    def usage(self) -> dict[str, object]:
        """OpenAI's usage object."""
        num_prompt = sum(map(len, self._prompts))
        details = {"cached_tokens": self.num_cached}
        return {"prompt_tokens": num_prompt, "total_tokens": num_prompt, "completion_tokens": 0} | {
            "prompt_tokens_details": details
        }

    async def run(self, http: Request, facts: ModelFacts) -> list[Pooled]:
        """Send all items, and wait for their answers; the client may leave meanwhile, and needs none.

        Raises:
            BatonError: what one of them failed with.
        """
        try:
            await unless_left(http, asyncio.ensure_future(self._send_all(facts)), self._router.metrics)
        except BaseException as error:
            for running in list(self._open.values()):
                running.cancel()
            self._end_record(error)
            raise
        self._end_record(None)
        return [answer for answer in self._answers if answer is not None]

    async def _send_all(self, facts: ModelFacts) -> None:
        for index in range(len(self._prompts)):
            await self._until(_AT_ONCE)
            while True:
                try:
                    self._start(index, facts)
                    break
                except QueueFull:
                    if not self._open:
                        raise
                    await self._until(len(self._open))  # what is begun is finished, and then there is room
            if index % _BETWEEN_TURNS == 0:
                await asyncio.sleep(0)
        await self._until(1)

    async def _until(self, below: int) -> None:
        """Wait until fewer items than that are open."""
        while self._error is None and len(self._open) >= below:
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise self._error

    def _start(self, index: int, facts: ModelFacts) -> None:
        caller, router = self._caller, self._router
        generation = Generation(
            self._prompts[index],
            _ONE,
            self._salt,
            self._priority,
            self._deadline,
            caller.public_id,
            0,
            caller.pin,
            caller.tenant,
            router.tenants.of(caller.tenant).share,
        )
        for parts in router.pool.cache_parts():
            known = facts.pooling is not None and facts.pooling.caches_prefixes
            args = generation, parts, router.config.cache_key, facts.block_size
            generation.hashes[parts] = hash_prompt(*args) if known else []
        sink = PoolingSink(lambda sink: self._end(index, sink))
        flow = PoolingFlow(generation, self._params[index], sink)
        running = router.dispatcher.start(flow, input_of=self._record)
        if not running.is_over:
            self._open[index] = running
        if index == 0:
            caller.running.append(running)
            router.dispatcher.journal.add(self._record)
            self._is_recorded = True

    def _end(self, index: int, sink: PoolingSink) -> None:
        self._open.pop(index, None)
        self._answers[index] = sink.pooled
        self._error = self._error or sink.error
        self.num_cached += sink.usage.num_cached
        self._changed.set()

    def _end_record(self, error: BaseException | None) -> None:
        """Say in the journal how all of it ended, unless its first item was refused."""
        known = error if isinstance(error, BatonError) else None
        state: EndState = "finished" if error is None else "failed" if known else "cancelled"
        self._record.end(state, known, self._router.pool.clock())
        if known is not None:
            known.is_recorded = known.is_recorded or self._is_recorded
