"""RouterState: a router's objects, from start to stop."""

from __future__ import annotations

import asyncio
import gc
import time
import uuid
from pathlib import Path
from typing import Any

from baton.errors import ModelLoadError
from baton.generation_defaults import FILE, generation_defaults
from baton.hub_snapshot import fetch_snapshot
from baton.logs import get_logger
from baton.metrics import RouterMetrics
from baton.registry import Registry
from baton.router.admission import Admission
from baton.router.config import RouterConfig
from baton.router.discovery import Discovery
from baton.router.dispatcher import Dispatcher
from baton.router.event_stream import OpenStreams
from baton.router.forms import Forms
from baton.router.history import History
from baton.router.index import PrefixIndex
from baton.router.load_line import LoadLine
from baton.router.long_bodies import LongBodies
from baton.router.loop_lag import LoopLag
from baton.router.openai.answer_forms import AnswerForms
from baton.router.pool import WorkerPool
from baton.router.responses.records import ResponseRecords
from baton.router.responses.store import ResponseStore
from baton.router.tenants import Tenants
from baton.router.text_pool import TextPool
from baton.text import Tokenizer

_log = get_logger("router")


class RouterState:
    """What routes are served with."""

    def __init__(self, config: RouterConfig, registry: Registry | None = None, *, logs_load: bool = True) -> None:
        """Load the tokenizer; connections begin with `start`.

        Raises:
            ConfigError: the tokenizer cannot be loaded, a parser is not known, or the URL of Redis is none.
        """
        self.config = config
        self.model_names = config.model_names
        self.metrics = RouterMetrics(self.model_names[0])
        self.tokenizer = Tokenizer(
            config.tokenizer or config.model,
            (config.tokenizer and config.tokenizer_revision) or config.revision,
            config.chat_template,
            config.chat_template_content_format,
        )
        self.answer_forms = AnswerForms(config, self.tokenizer)
        self.sampling_defaults = _sampling_defaults(config)
        """Of requests that leave these fields out."""
        if registry is None and config.redis_url is not None:
            registry = Registry(config.redis_url, self.model_names[0], config.redis_password)
        self.tenants = Tenants(config.api_key, config.cache_key, config.tenants)
        self._registry = registry
        self._logs_load = logs_load
        self.started_at = int(time.time())

    async def start(self) -> None:
        """Begin to talk to workers and Redis."""
        config = self.config
        self.index = PrefixIndex()
        self.pool = WorkerPool(config, uuid.uuid4().hex, self.metrics)
        self.dispatcher = Dispatcher(
            config, self.pool, self.index, self.metrics, Admission(config, self.metrics, self.tenants)
        )
        self.history = History(self.metrics, self.dispatcher.journal)
        self.streams = OpenStreams(config, self.metrics)
        self.turns = asyncio.Lock()
        """Held by the long answer that is being made: one at a time."""
        self.text = TextPool(self.tokenizer, config)
        self.long_bodies = LongBodies(config, self.text)
        self.forms = Forms()
        self.discovery = Discovery(self._registry, self.pool, self.index, self.metrics)
        records = None if self._registry is None or config.response_store != "auto" else ResponseRecords(self._registry)
        self.responses = ResponseStore(config, records, lambda: self.discovery.is_cut_off)
        await self.text.start()
        self.discovery.start()
        self.pool.start(self.dispatcher)
        self.streams.start()
        self.history.start()
        self._loop_lag = LoopLag(self.metrics)
        self._loop_lag.start()
        self._load_line = LoadLine(self.metrics, self.dispatcher)
        if self._logs_load:
            self._load_line.start()
        # What was loaded stays, so collections need not walk it. Rarer ones, of 50,000 objects, were measured too:
        # each stopped all streams for 30 to 70 ms.
        gc.collect()
        gc.freeze()

    async def stop(self) -> None:
        """Let go of everything; open requests are cancelled on their workers."""
        await self.responses.close()
        for flow in list(self.dispatcher.flows.values()):
            flow.cancel()
        await asyncio.sleep(0.05)  # let the cancels leave
        self._loop_lag.close()
        await self._load_line.close()
        await self.history.close()
        await self.discovery.close()
        await self.streams.close()
        await self.pool.close()
        await self.long_bodies.close()
        await self.forms.close()
        await self.text.close()


def _sampling_defaults(config: RouterConfig) -> dict[str, Any]:
    folder = Path(config.model)
    if config.generation_config == "auto" and not folder.is_dir():
        try:
            folder = fetch_snapshot(config.model, config.revision, (FILE,), field="model")
        except ModelLoadError as error:  # its tokenizer may lie elsewhere
            _log.warning("generation_config", reason=str(error))
    return generation_defaults(folder, config.generation_config, config.override_generation_config)
