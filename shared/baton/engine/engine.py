"""The engine: requests in, tokens out, one step at a time.

A library: callers add requests and call `step` in a loop; it calls nobody, opens nothing and knows no text. On a
GPU the host runs one step behind: while the device computes step k + 1, the host collects the tokens of step k,
checks what ended and hands them out. On a CPU each step is collected at once.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from baton.config import EngineConfig
from baton.engine.block_pool import BlockPool
from baton.engine.kv_cache import KVLayout
from baton.engine.memory import MemoryPlan, plan_memory
from baton.engine.model_runner import LaunchedStep, ModelRunner
from baton.engine.prefix_cache import PrefixCache, cache_root
from baton.engine.sampler import TokenLogprobs, needs_known_tokens, seed_of
from baton.engine.scheduler import Scheduler, SchedulerConfig
from baton.engine.sequence import Sequence
from baton.errors import ConfigError, refuse
from baton.models.causal_lm import CausalLM
from baton.models.config import read_spec
from baton.models.hub import locate
from baton.models.loader import load_model, resolve_dtype, weights_nbytes
from baton.models.spec import ModelSpec
from baton.protocol import FinishReason, SamplingParams


@dataclass(slots=True)
class TokenOutput:
    """One new token of one choice of one request."""

    request_id: str
    choice: int
    token_id: int
    finish_reason: FinishReason | None
    stop_reason: int | None
    """The stop token id that ended it; None for the model's own end of text."""
    logprobs: TokenLogprobs | None
    prompt_logprobs: list[TokenLogprobs | None] | None
    """With a request's first token, if it asked: one entry a prompt token, None for the first."""
    num_cached_tokens: int


@dataclass(slots=True)
class _Request:
    """What the engine keeps of a request until its last choice ends."""

    params: SamplingParams
    choices: list[Sequence]
    num_left: int
    prompt_logprobs: list[TokenLogprobs | None] | None


class Engine:
    """Continuous batching over one model on one device."""

    def __init__(self, model: CausalLM, config: EngineConfig, memory: MemoryPlan, layout: KVLayout) -> None:
        self.model = model
        self.config = config
        self.memory = memory
        self.max_model_len = memory.max_model_len
        self.pool = BlockPool(memory.num_blocks)
        self.cache = PrefixCache(self.pool)
        self.scheduler = Scheduler(_scheduler_config(config, memory), self.pool, self.cache)
        self.runner = ModelRunner(
            model,
            layout,
            memory.num_blocks,
            max_num_seqs=config.max_num_seqs,
            max_model_len=memory.max_model_len,
        )
        self._cache_parts = (str(config.model), config.revision or "", layout.describe())
        self._runs_behind = self.runner.device.type == "cuda"
        self._in_flight: LaunchedStep | None = None
        self._requests: dict[str, _Request] = {}
        self._owner: dict[Sequence, tuple[str, int]] = {}
        self._num_reading_tokens = 0  # sequences whose sampling reads the tokens before it

    @classmethod
    def load(cls, config: EngineConfig, *, progress: bool = True) -> Engine:
        """Check what fits, print the plan, load the model, make the cache.

        Raises:
            ModelLoadError, OutOfMemory, ConfigError: before anything large is read wherever possible.
        """
        device = _device(config)
        folder = locate(str(config.model), config.revision, weights=config.load_format != "dummy")
        spec = read_spec(folder)
        dtype = _dtype(config, device, spec)
        max_model_len = config.max_model_len or spec.max_model_len
        layout = KVLayout.of(spec, config.block_size, dtype)
        memory = plan_memory(
            config,
            layout,
            weights_nbytes=weights_nbytes(spec, dtype, max_model_len),
            max_model_len=max_model_len,
            device=device,
        )
        if progress:
            name = f"{spec.family} on {device} in {str(dtype).removeprefix('torch.')}"
            print(f"{name}: {memory.describe()}", file=sys.stderr)
        model = load_model(
            folder,
            dtype=dtype,
            device=device,
            load_format=config.load_format,
            seed=config.seed,
            progress=progress and sys.stderr.isatty(),
            max_model_len=max_model_len,
        )
        return cls(model, config, memory, layout)

    # -- requests -----------------------------------------------------------------------------------------

    def add(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        salt: bytes = b"",
    ) -> None:
        """Queue a request; its choices share the prompt's blocks through the prefix cache.

        The prompt and the parameters were checked by `check_prompt` and `check_vocab`.

        Raises:
            QueueFull: too many wait. ContextTooLong: it could never run here.
        """
        if request_id in self._requests:
            raise refuse("request_id", request_id, "a request of this id is running", "Give each its own.")
        room = self.max_model_len - len(prompt_token_ids)
        max_len = len(prompt_token_ids) + (
            room if params.max_tokens is None else min(room, params.max_tokens)
        )
        wants_prompt = params.prompt_logprobs is not None
        request = _Request(params, [], params.n, [None] * len(prompt_token_ids) if wants_prompt else None)
        self._requests[request_id] = request
        root = cache_root(b"", *self._cache_parts, salt)
        try:
            for choice in range(params.n):
                sequence = Sequence(
                    f"{request_id}/{choice}",
                    prompt_token_ids,
                    # only one choice scores the prompt
                    params if choice == 0 or not wants_prompt else params.replace(prompt_logprobs=None),
                    max_len=max_len,
                    priority=priority,
                    root=root,
                    reuse_prefix=not (wants_prompt and choice == 0),
                )
                self.scheduler.add(sequence)
                request.choices.append(sequence)
                self._owner[sequence] = (request_id, choice)
                self._num_reading_tokens += needs_known_tokens(params)
                self.runner.sampler.add(
                    sequence, default_seed=seed_of(request_id, self.config.seed), choice=choice
                )
        except Exception:
            self.abort(request_id)
            raise

    def abort(self, request_id: str) -> None:
        """End a request wherever it stands; its blocks come back. Unknown or ended ones are ignored."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            for sequence in request.choices:
                self._end(sequence)

    def finish(self, request_id: str, choice: int) -> None:
        """End one choice, as when its text has reached a stop string; again is harmless."""
        request = self._requests.get(request_id)
        if request is None or request.choices[choice] not in self._owner:
            return
        self._end(request.choices[choice])
        request.num_left -= 1
        if not request.num_left:
            del self._requests[request_id]

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return self._in_flight is not None or self.scheduler.has_work

    # -- steps --------------------------------------------------------------------------------------------

    def step(self) -> list[TokenOutput]:
        """Launch the next step and give the tokens of the last one that ended.

        A failure of the device or a kernel is raised; the requests stay as they were.
        """
        if not self._runs_behind or self._num_reading_tokens:
            outputs = self._collect()
            return outputs or self._collect_after(self._launch())
        launched = self._launch()
        outputs = self._collect()
        self._in_flight = launched
        return outputs

    def _launch(self) -> LaunchedStep | None:
        plan = self.scheduler.plan()
        return None if plan is None else self.runner.launch(plan)

    def _collect_after(self, launched: LaunchedStep | None) -> list[TokenOutput]:
        self._in_flight = launched
        return self._collect()

    def _collect(self) -> list[TokenOutput]:
        """Take in the step in flight, if there is one."""
        step, self._in_flight = self._in_flight, None
        if step is None:
            return []
        result = self.runner.collect(step)
        live = [sequence in self._owner for sequence in result.sequences]
        self.scheduler.commit(step.plan, result.token_ids)
        for sequence, position, row in result.prompt_logprobs:
            owner = self._owner.get(sequence)
            if owner is not None:
                scores = self._requests[owner[0]].prompt_logprobs
                assert scores is not None
                scores[position] = row
        return [
            self._take(sequence, token_id, row)
            for sequence, token_id, row, is_live in zip(
                result.sequences, result.token_ids, result.logprobs, live, strict=True
            )
            if is_live
        ]

    def _take(self, sequence: Sequence, token_id: int, logprobs: TokenLogprobs | None) -> TokenOutput:
        """Hand out a token that was appended to its sequence, and end the sequence if it is the last."""
        request_id, choice = self._owner[sequence]
        request = self._requests[request_id]
        reason, stop_reason = self._end_of(sequence, token_id)
        output = TokenOutput(
            request_id,
            choice,
            token_id,
            reason,
            stop_reason,
            logprobs,
            request.prompt_logprobs if choice == 0 and sequence.num_output_tokens == 1 else None,
            sequence.num_cached,
        )
        if reason is not None:
            self.finish(request_id, choice)
        return output

    def _end_of(self, sequence: Sequence, token_id: int) -> tuple[FinishReason | None, int | None]:
        params = sequence.params
        if sequence.num_output_tokens >= params.min_tokens:
            if not params.ignore_eos and token_id in self.model.spec.eos_token_ids:
                return FinishReason.STOP, None
            if token_id in params.stop_token_ids:
                return FinishReason.STOP, token_id
        return (FinishReason.LENGTH, None) if sequence.is_full else (None, None)

    def _end(self, sequence: Sequence) -> None:
        if self._owner.pop(sequence, None) is not None:
            self._num_reading_tokens -= needs_known_tokens(sequence.params)
        self.scheduler.finish(sequence)
        self.runner.release(sequence)


def _device(config: EngineConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda' is not valid: torch sees no GPU here. Use --device cpu or auto.")
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def _dtype(config: EngineConfig, device: torch.device, spec: ModelSpec) -> torch.dtype:
    """On a CPU float32 is both exact and fastest; on a GPU the checkpoint's 16 bits."""
    if config.dtype != "auto":
        return resolve_dtype(config.dtype, spec)
    if device.type == "cpu":
        return torch.float32
    stored = resolve_dtype(None, spec)
    return torch.bfloat16 if stored == torch.float32 else stored


def _scheduler_config(config: EngineConfig, memory: MemoryPlan) -> SchedulerConfig:
    return SchedulerConfig(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=memory.max_model_len,
        block_size=config.block_size,
        max_num_waiting=config.max_num_waiting,
        enable_chunked_prefill=config.enable_chunked_prefill,
        enable_prefix_caching=config.enable_prefix_caching,
    )
