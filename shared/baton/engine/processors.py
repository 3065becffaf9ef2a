"""What logits processors do to a sequence: loaded once, made anew for each, called between the forward pass and the draw."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from baton.config import EngineConfig
from baton.errors import BatonError, ConfigError, InvalidRequest
from baton.logits_processors import find_processor
from baton.logs import get_logger
from baton.protocol import SamplingParams

Process = Callable[[Sequence[int], Sequence[int], Tensor], Tensor]
"""Takes the prompt's ids, the answer's, and the row's logits [vocab]; returns those to draw from."""
log = get_logger("engine")


class ProcessorFailed(BatonError):
    """A processor raised, in the middle of an answer."""


class Processors:
    """Those of one engine: some that look at every request, and those that requests name."""

    def __init__(self, config: EngineConfig, device: torch.device, given: Sequence[Any] = ()) -> None:
        """`given` are classes, or `module:Class`, that look at every request.

        Raises:
            ConfigError: one cannot be loaded, or is of no known kind.
        """
        self._made_with = (config, device, False)
        self._named: dict[str, Any] = {}
        self._given = [self._make(_load(each), str(each)) for each in given]

    def of(self, params: SamplingParams) -> list[Process]:
        """Make what a sequence needs; of most, nothing.

        Raises:
            InvalidRequest: one is not installed here, or does not take what the request gives.
        """
        if not self._given and not params.logits_processors:
            return []
        wanted = [(each, params) for each in self._given]
        for call in params.logits_processors:
            if call.name not in self._named:
                try:
                    self._named[call.name] = self._make(find_processor(call.name).load(), call.name)
                except (ImportError, AttributeError, ConfigError) as error:
                    raise _refused(call.name, error) from None
            given = {**(params.extra_args or {}), **call.args}
            wanted.append((self._named[call.name], params.replace(extra_args=given)))
        return [process for each, its in wanted if (process := _process(each, its)) is not None]

    def _make(self, kind: Any, name: str) -> Any:
        if not hasattr(kind, "new_req_logits_processor"):
            raise ConfigError(
                f"logits_processors={name!r} is not valid: it must be a class with new_req_logits_processor(params), as "
                "vLLM's AdapterLogitsProcessor has it; those that work on whole batches are not served."
            )
        return kind(*self._made_with)


def _load(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    module, _, name = given.replace(":", ".").rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"logits_processors={given!r} cannot be loaded: {error}. Write module:Class of an installed one."
        ) from None


def _process(processor: Any, params: SamplingParams) -> Process | None:
    """Have a processor say what it does to a request; what it raises is about what the request gave."""
    try:
        if hasattr(processor, "validate_params"):
            processor.validate_params(params)
        made = processor.new_req_logits_processor(params)
        if made is None:
            return None
        takes_prompt = len(inspect.signature(made).parameters) >= 3
    except Exception as error:
        raise _refused(type(processor).__name__, error) from None
    if takes_prompt:
        process: Process = made
        return process
    return lambda _prompt_ids, output_ids, logits: made(output_ids, logits)


def run_all(processes: Sequence[Process], prompt_ids: Sequence[int], output_ids: Sequence[int], logits: Tensor) -> None:
    """Change a row's logits in place.

    Raises:
        ProcessorFailed: one raised, or returned no logits of this shape.
    """
    changed = logits
    for process in processes:
        try:
            changed = process(list(prompt_ids), list(output_ids), changed)
            if not isinstance(changed, Tensor) or changed.shape != logits.shape:
                found = f"shape {tuple(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
                raise ValueError(f"it returned {found}, not logits of shape {tuple(logits.shape)}")
        except Exception as error:
            log.exception("logits_processor_failed")
            raise ProcessorFailed(f"logits_processors: after {len(output_ids)} tokens one failed: {error}") from None
    if changed is not logits:
        logits.copy_(changed)


def _refused(name: str, error: Exception) -> InvalidRequest:
    return InvalidRequest(f"logits_processors: {name} does not take this request: {error}", field="logits_processors")
