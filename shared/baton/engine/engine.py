"""The engine: requests in, tokens out, one step at a time.

A library: callers add requests and call `step` in a loop; it calls nobody, opens nothing and knows no text. On a CPU
each step is collected at once. On a GPU the host is one step behind:

    Engine.step()   |  step k                           |  step k + 1                       |
    host            |  plan k | forward k | sample k    |  plan k+1 | forward k+1 | sample.. |  collect k | commit k
    device          |     ... k - 1 ...   |  forward k, sample k  |  forward k+1, sample k+1  |
    known to host   |  tokens up to k - 2, k - 1 pending          |  up to k - 1, k pending   |  up to k

`forward` and `sample` only launch. A token that the host does not know yet stays on the device, at its sequence's row,
where the next step finds it. So nothing on the way down may need its value: what depends on it (stop tokens, hashes,
blocks that a window has passed) is done in `commit`, and blocks change hands only when no launched step may use them.
Between `forward` and `sample` the device has work, so that a mask made there costs no time. A mask needs the token before
it: a step with such a row collects the one before it first, while its own forward pass runs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from baton.block_hash import cache_root
from baton.config import EngineConfig
from baton.engine.block_pool import BlockPool
from baton.engine.constraint import ALL, AnswerConstraint, ConstraintFailed
from baton.engine.grammar_compiler import COMPILE_S, GrammarCompiler, Held
from baton.engine.host_blocks import HostBlocks
from baton.engine.kv_cache import KVCacheSpec
from baton.engine.kv_pages import give_back
from baton.engine.memory import MemoryPlan
from baton.engine.model_runner import LaunchedStep, ModelRunner, StepResult
from baton.engine.pooler import Pooled
from baton.engine.prefix_cache import PrefixCache
from baton.engine.processors import Process, Processors, run_all
from baton.engine.reload_cost import ReloadCost
from baton.engine.sampler import seed_of
from baton.engine.scheduler import Scheduler, SchedulerConfig
from baton.engine.sequence import Sequence
from baton.engine.step_clock import Mark, StepClock
from baton.engine.step_plan import StepPlan
from baton.engine.upload import upload
from baton.errors import BatonError, UnsupportedFeature, refuse
from baton.host_tier import HostTier
from baton.messages import TokenLogprobs
from baton.models.causal_lm import CausalLM
from baton.models.rope import rotation_kind
from baton.pooling import PoolingFacts, PoolingParams
from baton.prompt import Prompt
from baton.protocol import NOBODY, REPETITION_DETECTED, FinishReason, SamplingParams, Share

_POOLS = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)
"""Of a sequence that samples nothing."""


@dataclass(slots=True)
class TokenOutput:
    """One new token of one choice of one request."""

    request_id: str
    choice: int
    position: int
    """Index in the whole sequence: the first token of an answer stands at the prompt's length."""
    token_id: int
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    """The stop token id that ended it, or a word for why; None for the model's own end of text."""
    logprobs: TokenLogprobs | None
    prompt_logprobs: list[TokenLogprobs | None] | None
    """With a request's first token, if it asked: one entry a prompt token, None for the first."""
    num_cached_tokens: int
    """Of the prompt, found in the prefix cache or behind it."""
    num_restored_tokens: int
    """Those of them that came back from the host's memory."""
    pooled: Pooled | None = None
    """What was asked for in place of a token, which then means nothing."""


@dataclass(slots=True)
class _Request:
    """What the engine keeps of a request until its last choice ends."""

    choices: dict[int, Sequence]
    later: dict[int, Sequence]  # choices that wait for the prompt's KV to arrive
    holds_prompt: bool
    prompt_logprobs: list[TokenLogprobs | None] | None
    num_listed: int = 0  # blocks of tokens that `Engine.computed` has been through


@dataclass(slots=True)
class _InFlight:
    """A launched step, and the marks between which it runs."""

    step: LaunchedStep
    began: Mark
    ended: Mark
    result: StepResult | None = None
    """What it gave, if it was collected before it is taken in."""


class Engine:
    """Continuous batching over one model on one device.

    Large because it is the library's face: one method for each thing that a caller may ask of a request.
    """

    def __init__(
        self,
        model: CausalLM,
        config: EngineConfig,
        memory: MemoryPlan,
        kv_spec: KVCacheSpec,
        *,
        cache_key: bytes = b"",
        identity: str = "",
    ) -> None:
        self.model = model
        self.config = config
        self.memory = memory
        self.max_model_len = memory.max_model_len
        self.pool = BlockPool(memory.num_blocks)
        self.cache = PrefixCache(self.pool)
        pools = model.spec.pooling is not None
        self.scheduler = Scheduler(_scheduler_config(config, memory, pools=pools), self.pool, self.cache)
        self.runner = ModelRunner(
            model, kv_spec, memory.num_blocks, max_num_seqs=config.max_num_seqs, max_model_len=memory.max_model_len
        )
        self.cache_parts = (
            identity or f"{config.model}@{config.revision}",
            kv_spec.describe(),
            rotation_kind(model.spec),
            *(("deterministic",) if config.deterministic else ()),
        )
        """What changes the KV of a token beside the tokens before it and the tenant's salt."""
        self._cache_key = cache_key
        self.processors = Processors(config, self.runner.device)
        """Code of others that changes logits."""
        self._processes: dict[Sequence, list[Process]] = {}
        self.grammars: GrammarCompiler | None = None
        """Who makes the grammars that answers are held to; None: no request brings one."""
        self.on_grammar: Callable[[], None] = lambda: None
        """Called, from another thread, when a grammar is made that a request waits for."""
        self._compiling: dict[str, tuple[Future[Held], float]] = {}
        self._failed: dict[Sequence, BatonError] = {}  # of the step that was launched last
        self._num_constrained = 0
        self._refused: list[tuple[str, BatonError]] = []
        self._runs_behind = self.runner.device.type == "cuda"
        self._clock = StepClock(self.runner.device)
        self._in_flight: _InFlight | None = None
        self._requests: dict[str, _Request] = {}
        self._owner: dict[Sequence, tuple[str, int]] = {}
        self.admitted: list[str] = []
        """Requests that left the queue in the last `step`."""
        self.num_steps = 0
        """Steps launched since the start."""
        self.num_chunk_tokens = 0
        """Tokens of them that were prompts' chunks, not single next tokens."""
        self.num_chunk_pairs = 0
        """The same tokens, each times those up to the end of its chunk."""
        self.num_collected = 0
        """Steps whose result was taken in."""
        self.collected: StepPlan | None = None
        """The last of them."""
        self.collected_s = 0.0
        """The time that it took on the device: from the end of the step before it, where that had been launched."""

    @property
    def pooling(self) -> PoolingFacts | None:
        """What the model pools; None: it generates."""
        spec = self.model.spec
        return None if spec.pooling is None else spec.pooling.facts(spec.hidden_size)

    # -- what is cached -----------------------------------------------------------------------------------

    def forget_prefixes(self, *, external: bool = False) -> None:
        """Forget what the prefix cache knows, and with `external` the tier behind it; sequences keep what they have."""
        self.cache.clear()
        host = self.scheduler.host
        if host is not None:
            host.flush()
            if external:
                host.clear()

    @property
    def can_give_back_kv(self) -> bool:
        """Whether `give_back_kv` is served: CUDA graphs, and peers, know a GPU's KV by its addresses."""
        return self.runner.device.type == "cpu"

    def give_back_kv(self) -> None:
        """Give the memory of KV back to the system until it is written again; only while no sequence is there."""
        assert not self._requests
        self.forget_prefixes()
        give_back(self.runner.kv)

    def use_tier(self, tier: HostTier) -> None:
        """Have blocks that the device has no room for wait in this tier from now on; before any request."""
        cost = ReloadCost(block_nbytes=self.memory.block_nbytes, block_size=self.config.block_size)
        self.scheduler.host = HostBlocks(tier, self.pool, self.cache, cost, self.memory.reach)

    # -- requests -----------------------------------------------------------------------------------------

    def add(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        *,
        choices: Mapping[int, list[int]] | None = None,
        seed: int | None = None,
        priority: int = 0,
        salt: bytes = b"",
        share: Share = NOBODY,
        holds_prompt: bool = False,
        pooling: PoolingParams | None = None,
    ) -> None:
        """Queue a request; its choices share the prompt's blocks through the prefix cache.

        The prompt and the parameters were checked by `check_prompt` and `check_vocab`.

        Args:
            choices: index -> tokens that the answer has already, for those to run; None: all, from the start.
            seed: what to draw with if the parameters bring none; None: derived from the request's id.
            salt: the tenant's; requests of different salts share no KV.
            share: whose it is, and how much of the engine is theirs.
            holds_prompt: stop after the first token and keep the prompt's blocks until `abort`, for export.
            pooling: as `pool_prompt` says.

        Raises:
            QueueFull: too many wait. ContextTooLong: it could never run here.
        """
        request = self._enter(request_id, prompt, params, choices, seed, priority, salt, share, holds_prompt, pooling)
        try:
            for sequence in request.choices.values():
                self.scheduler.add(sequence)
        except Exception:
            self.abort(request_id)
            raise

    def pool_prompt(
        self,
        request_id: str,
        prompt: Prompt,
        pooling: PoolingParams,
        *,
        priority: int = 0,
        salt: bytes = b"",
        share: Share = NOBODY,
    ) -> None:
        """Queue a prompt whose hidden states are wanted: one output comes of it, with `pooled`.

        It was checked by `check_pooled_prompt`, and what is wanted by the model's `PoolingFacts`.

        Raises:
            QueueFull: too many wait. ContextTooLong: it could never run here.
        """
        self.add(request_id, prompt, _POOLS, priority=priority, salt=salt, share=share, pooling=pooling)

    def receive(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        *,
        choices: Mapping[int, list[int]] | None = None,
        seed: int | None = None,
        priority: int = 0,
        salt: bytes = b"",
        share: Share = NOBODY,
    ) -> tuple[int, list[bytes]]:
        """Take in a request whose prompt's KV comes from elsewhere; it runs after `admit`.

        Returns the names of the blocks that the prefix cache lacks, in the order of their places from `reserve`, and how
        many of the list of all come before them; a source lists the same for the same tokens. The last, one a KV group,
        may name blocks that are partly filled, by `hash_tail`: no prefix cache has them. Other choices than the first
        follow on `admit` and find the prompt's full blocks in the prefix cache.

        Raises:
            ContextTooLong: it could never run here.
        """
        request = self._enter(request_id, prompt, params, choices, seed, priority, salt, share, False)
        (lead, first), *later = request.choices.items()
        request.choices, request.later = {lead: first}, dict(later)
        try:
            return self.scheduler.receive(first)
        except Exception:
            self.abort(request_id)
            raise

    def reserve(self, request_id: str, num_blocks: int) -> list[int]:
        """Grant a receiving request up to `num_blocks` more blocks; none if they are short now, or it has ended."""
        request = self._requests.get(request_id)
        if request is None:
            return []
        block_ids = self.scheduler.reserve(_lead(request), num_blocks)
        if self.scheduler.host is not None:
            self.scheduler.host.flush()
        return block_ids

    def admit(self, request_id: str, num_blocks: int, token_ids: Iterable[int] = ()) -> int:
        """Start a receiving request with the KV of the first `num_blocks` that `receive` named, good in their places.

        `token_ids` were sampled elsewhere for its first choice and are not given out again. Returns how many tokens need
        not be computed thanks to those blocks.
        """
        request = self._requests.get(request_id)
        if request is None:
            return 0
        num_fetched = self.scheduler.admit(_lead(request), num_blocks, token_ids)
        for choice in list(request.later):
            sequence = request.choices[choice] = request.later.pop(choice)
            self.scheduler.follow(sequence)
        return num_fetched

    def computed(self, request_id: str) -> tuple[list[int], list[bytes]]:
        """List blocks of a request that `holds_prompt` that were computed since the last call, and their names.

        All calls together list what `receive` does for the same tokens where nothing is cached.
        """
        request = self._requests.get(request_id)
        if request is None:
            return [], []
        blocks, sequence, first = self.scheduler.blocks, _lead(request), request.num_listed
        num_tokens = sequence.max_len - 1
        request.num_listed = max(first, blocks.num_complete(sequence, num_tokens))
        return blocks.complete(sequence, first, num_tokens)

    def abort(self, request_id: str) -> None:
        """End a request wherever it stands; its blocks come back. Unknown or ended ones are ignored."""
        request = self._requests.pop(request_id, None)
        self._compiling.pop(request_id, None)
        if request is not None:
            for sequence in (*request.choices.values(), *request.later.values()):
                self._end(sequence)

    def finish(self, request_id: str, choice: int) -> None:
        """End one choice, as when its text has reached a stop string; again is harmless."""
        request = self._requests.get(request_id)
        if request is None:
            return
        sequence = request.choices.pop(choice, None) or request.later.pop(choice, None)
        if sequence is not None:
            self._end(sequence)
        if not request.choices and not request.later:
            del self._requests[request_id]

    def queue(self) -> Iterator[tuple[str, int]]:
        """List the requests that run or wait, in the order of service, each with the tokens that are computed up to its last."""
        num_ahead = 0
        for sequence in (*self.scheduler.running, *self.scheduler.waiting):
            num_ahead += max(0, sequence.num_tokens - sequence.num_computed)
            yield self._owner[sequence][0], num_ahead

    @property
    def num_free_seats(self) -> int:
        """Sequences that the waiting queue has room for."""
        return self.config.max_num_waiting - len(self.scheduler.waiting)

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return self._in_flight is not None or self.scheduler.has_work or bool(self._compiling)

    def take_refused(self) -> list[tuple[str, BatonError]]:
        """Take the requests that ended because no answer can be held to what they ask for, each with the reason."""
        refused, self._refused = self._refused, []
        return refused

    def wait_for_grammar(self, timeout_s: float) -> None:
        """Wait until one more grammar is made, for who has nothing else to do."""
        wait([future for future, _ in self._compiling.values()], timeout_s, FIRST_COMPLETED)

    # -- steps --------------------------------------------------------------------------------------------

    def step(self) -> list[TokenOutput]:
        """Launch the next step and return the tokens of the last one that ended.

        A failure of the device or a kernel is raised; the requests stay as they were.
        """
        self.admitted = []
        if self._compiling:
            self._look_at_grammars()
        if self.scheduler.host is not None:
            self.scheduler.take_restored()
        outputs = self._turn()
        if self.scheduler.host is not None and not self.has_work:  # no launch will save what the last step made
            self.scheduler.host.flush()
        return outputs

    def _turn(self) -> list[TokenOutput]:
        if not self._runs_behind:
            outputs = self._collect()
            if not outputs:
                self._in_flight = self._launch()
                outputs = self._collect()
            return outputs
        launched = self._launch()
        outputs = self._collect()
        self._in_flight = launched
        return outputs

    def discard(self) -> list[str]:
        """Forget the steps in flight, after one that failed; return the ids of the requests that had a part in them."""
        self._in_flight = None
        with contextlib.suppress(Exception):  # a broken device says so again at the next step
            self.runner.wait()  # what was launched before the failure writes in blocks that are given back here
        touched = self.scheduler.discard()
        for sequence in touched:
            if sequence.constraint is not None:  # it may have taken a token that is lost now
                sequence.constraint.restart()
        return list(dict.fromkeys(self._owner[s][0] for s in touched if s in self._owner))

    def _launch(self) -> _InFlight | None:
        plan = self.scheduler.plan()
        if self.scheduler.host is not None:
            self.scheduler.host.flush()
        if plan is None:
            return None
        self.num_steps += 1
        self.num_chunk_tokens += plan.num_tokens - plan.num_decodes
        self.num_chunk_pairs += plan.num_chunk_pairs
        self.admitted = [self._owner[sequence][0] for sequence in plan.admitted]
        began = self._clock.mark() if self._in_flight is None else self._in_flight.ended
        forwarded = self.runner.forward(plan)
        sampled = forwarded.batch.sampled
        masks = self._masks(sampled) if self._num_constrained else None
        step = self.runner.sample(forwarded, masks, self._edits(sampled) if self._processes else {})
        return _InFlight(step, began, self._clock.mark())

    def _collect(self) -> list[TokenOutput]:
        """Take in the step in flight, if there is one."""
        launched, self._in_flight = self._in_flight, None
        if launched is None:
            return []
        step = launched.step
        self.num_collected += 1
        self.collected = step.plan
        result = launched.result or self.runner.collect(step)
        self.collected_s = self._clock.seconds(launched.began, launched.ended)
        if self.scheduler.host is not None:
            self.scheduler.host.cost.computed(step.plan.num_tokens - step.plan.num_decodes, self.collected_s)
        self.scheduler.commit(step.plan, result.token_lists)
        for sequence, position, row in result.prompt_logprobs:
            owner = self._owner.get(sequence)
            if owner is not None:
                scores = self._requests[owner[0]].prompt_logprobs
                assert scores is not None
                scores[position] = row
        outputs: list[TokenOutput] = []
        if result.pooled is not None:
            return self._take_pooled(result.sequences, result.pooled)
        for sequence, token_ids, rows in zip(result.sequences, result.token_lists, result.logprobs, strict=True):
            position = len(sequence.token_ids) - len(token_ids)
            for token_id, logprobs in zip(token_ids, rows, strict=True):
                if sequence not in self._owner:  # it has ended, here or since the step was launched
                    break
                if sequence.constraint is not None or self._failed:
                    error = self._failed.get(sequence)
                    if error is None and sequence.constraint is not None:
                        error = self._follow(sequence)
                    if error is not None:
                        self._refuse(self._owner[sequence][0], error)
                        break
                outputs.append(self._take(sequence, position, token_id, logprobs))
                position += 1
        return outputs

    # -- what answers are held to ---------------------------------------------------------------------------

    def _constrain(self, request_id: str, sequence: Sequence) -> None:
        """Have what a sequence is held to made; it waits in the queue for it."""
        params = sequence.params
        assert self.grammars is not None
        future = self.grammars.compile(params, self.on_grammar)
        self._compiling[request_id] = (future, time.monotonic() + COMPILE_S)
        sequence.constraint = AnswerConstraint(future, params, self.model.spec.eos_token_ids)
        self._num_constrained += 1

    def _look_at_grammars(self) -> None:
        """Let go of the grammars that are made, and of the requests whose cannot be, or not in time."""
        now = time.monotonic()
        for request_id, (future, until) in list(self._compiling.items()):
            if future.done():
                del self._compiling[request_id]
                error = future.exception()
                if error is not None:
                    self._refuse(request_id, error if isinstance(error, BatonError) else ConstraintFailed(str(error)))
            elif now > until:
                limit = f"its grammar takes more than {COMPILE_S:g} s to make"
                self._refuse(request_id, refuse("structured_outputs", "given", limit, "Simplify it."))

    def _masks(self, sampled: list[Sequence]) -> Tensor | None:
        """Say which tokens each sample may be, [num_samples, ceil(vocab_size / 32)] int32 on the device; None: any."""
        held = [(i, sequence) for i, sequence in enumerate(sampled) if _is_held_now(sequence)]
        if not held:
            return None
        before = self._in_flight
        if before is not None and any(sequence.num_pending > 1 for _, sequence in held):
            before.result = self.runner.collect(before.step)
            for sequence, token_ids in zip(before.result.sequences, before.result.token_lists, strict=True):
                if sequence.constraint is not None and sequence in self._owner and sequence not in self._failed:
                    error = self._follow(sequence, token_ids)
                    if error is not None:
                        self._failed[sequence] = error
        masks = np.full((len(sampled), -(-self.model.spec.vocab_size // 32)), ALL, dtype=np.int32)
        for i, sequence in held:
            self._mask(masks[i], sequence)
        return upload(masks, self.runner.device)

    def _edits(self, sampled: list[Sequence]) -> dict[int, Callable[[Tensor], None]]:
        """Say what is to be done to samples' logits, [vocab] each, before anything else: by their places."""
        processed = [(i, sequence) for i, sequence in enumerate(sampled) if sequence in self._processes]
        before, pending = self._in_flight, dict[Sequence, list[int]]()
        if before is not None and any(sequence.num_pending > 1 for _, sequence in processed):
            before.result = before.result or self.runner.collect(before.step)
            pending = dict(zip(before.result.sequences, before.result.token_lists, strict=True))
        return {i: partial(self._process, sequence, pending.get(sequence, [])) for i, sequence in processed}

    def _process(self, sequence: Sequence, pending: list[int], logits: Tensor) -> None:
        """Have a sequence's processors change its logits; what fails is that sequence."""
        at = sequence.num_prompt_tokens
        try:
            run_all(self._processes[sequence], sequence.token_ids[:at], (*sequence.token_ids[at:], *pending), logits)
        except BatonError as error:
            self._failed[sequence] = error

    def _mask(self, row: np.ndarray, sequence: Sequence) -> None:
        constraint = sequence.constraint
        assert constraint is not None
        if sequence not in self._owner or sequence in self._failed:
            return
        error = self._follow(sequence)
        if error is None and not constraint.is_over:
            try:
                constraint.mask(row)
            except BatonError as failure:
                row[:] = ALL
                error = failure
        if error is not None:
            self._failed[sequence] = error

    def _follow(self, sequence: Sequence, pending: Iterable[int] = ()) -> BatonError | None:
        """Have a sequence's constraint take what came and what is pending; return why the answer cannot go on, if so."""
        constraint = sequence.constraint
        assert constraint is not None
        at = sequence.num_prompt_tokens + constraint.num_taken
        try:
            constraint.take((*sequence.token_ids[at:], *pending))
        except BatonError as error:
            return error
        return None

    def _refuse(self, request_id: str, error: BatonError) -> None:
        self.abort(request_id)
        self._refused.append((request_id, error))

    def _take(self, sequence: Sequence, position: int, token_id: int, logprobs: TokenLogprobs | None) -> TokenOutput:
        """Hand out a token that was appended to its sequence, and end the sequence if it is the last."""
        request_id, choice = self._owner[sequence]
        request = self._requests[request_id]
        num_output = position + 1 - sequence.num_prompt_tokens
        reason, stop_reason = self._end_of(sequence, position, token_id)
        output = TokenOutput(
            request_id=request_id,
            choice=choice,
            position=position,
            token_id=token_id,
            finish_reason=reason,
            stop_reason=stop_reason,
            logprobs=logprobs,
            prompt_logprobs=request.prompt_logprobs if choice == 0 and num_output == 1 else None,
            num_cached_tokens=sequence.num_cached,
            num_restored_tokens=sequence.num_restored,
        )
        if request.holds_prompt:
            self.scheduler.hold(sequence)
            self.runner.release(sequence)
        elif reason is not None:
            self.finish(request_id, choice)
        return output

    def _take_pooled(self, sequences: list[Sequence], pooled: list[Pooled]) -> list[TokenOutput]:
        """Hand out what was made of whole prompts, and end them."""
        outputs = []
        for sequence, made in zip(sequences, pooled, strict=True):
            if sequence not in self._owner:  # it has ended since the step was launched
                continue
            request_id, choice = self._owner[sequence]
            num_cached, num_restored = sequence.num_cached, sequence.num_restored
            last = sequence.num_prompt_tokens, 0, FinishReason.STOP, None, None, None
            outputs.append(TokenOutput(request_id, choice, *last, num_cached, num_restored, made))
            self.finish(request_id, choice)
        return outputs

    def _end_of(self, sequence: Sequence, position: int, token_id: int) -> tuple[FinishReason | None, int | str | None]:
        params, num_output = sequence.params, position + 1 - sequence.num_prompt_tokens
        if sequence.constraint is not None and sequence.constraint.is_over:
            return FinishReason.STOP, None
        if num_output >= params.min_tokens:
            if not params.ignore_eos and token_id in self.model.spec.eos_token_ids:
                return FinishReason.STOP, None
            if token_id in params.stop_token_ids:
                return FinishReason.STOP, token_id
        max_len = self._max_len(sequence.num_prompt_tokens, params)
        if position + 1 >= max_len:
            return FinishReason.LENGTH, None
        repetition = params.repetition_detection
        if repetition is None or num_output < params.min_tokens:
            return None, None
        ends = repetition.ends(sequence.token_ids, sequence.num_prompt_tokens, position + 1)
        return (FinishReason.REPETITION, REPETITION_DETECTED) if ends else (None, None)

    def _max_len(self, prompt_len: int, params: SamplingParams) -> int:
        """Where a request's own limits, or the context, end its sequence."""
        wanted = self.max_model_len if params.max_tokens is None else prompt_len + params.max_tokens
        return min(self.max_model_len, wanted)

    def _enter(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        choices: Mapping[int, list[int]] | None,
        seed: int | None,
        priority: int,
        salt: bytes,
        share: Share,
        holds_prompt: bool,
        pooling: PoolingParams | None = None,
    ) -> _Request:
        """Make a request's sequences and take in their sampling; nothing is queued yet."""
        if request_id in self._requests:
            raise refuse("request_id", request_id, "a request of this id is running", "Give each its own.")
        if params.is_held and self.grammars is None:
            field = "thinking_token_budget" if params.structured_outputs is None else "structured_outputs"
            raise UnsupportedFeature(f"{field} is not served by this engine.", field=field)
        wanted = choices or {i: [] for i in range(params.n)}
        processes = [self.processors.of(params) for _ in wanted]
        max_len = self._max_len(len(prompt), params)
        if pooling is not None:  # a prompt may fill the context: no token follows it
            max_len = len(prompt) + 1
        if holds_prompt:
            max_len = len(prompt) + max(map(len, (choices or {}).values()), default=0) + 1
        scores_prompt = params.prompt_logprobs is not None
        request = _Request({}, {}, holds_prompt, [None] * len(prompt) if scores_prompt else None)
        self._requests[request_id] = request
        root = cache_root(self._cache_key, *self.cache_parts, salt)
        default_seed = seed_of(request_id, self.config.seed) if seed is None else seed
        for (choice, emitted), processed in zip(wanted.items(), processes, strict=True):
            scores = scores_prompt and choice == 0 and not emitted
            sequence = Sequence(
                f"{request_id}/{choice}",
                prompt,
                params if scores or not scores_prompt else params.replace(prompt_logprobs=None),
                max_len=max_len,
                priority=priority,
                root=root,
                reuse_prefix=not scores,
                share=share,
                pooling=pooling,
            )
            sequence.token_ids.extend(emitted)
            request.choices[choice] = sequence
            if params.is_held:
                self._constrain(request_id, sequence)
            if processed:
                self._processes[sequence] = processed
            self._owner[sequence] = (request_id, choice)
            self.runner.sampler.add(sequence, default_seed=default_seed, choice=choice)
        return request

    def _end(self, sequence: Sequence) -> None:
        if self._owner.pop(sequence, None) is not None and sequence.constraint is not None:
            self._num_constrained -= 1
        self._failed.pop(sequence, None)
        self._processes.pop(sequence, None)
        self.scheduler.finish(sequence)
        self.runner.release(sequence)


def _is_held_now(sequence: Sequence) -> bool:
    """Whether the token that is sampled now may not be any, or that is not known yet."""
    constraint = sequence.constraint
    return constraint is not None and not constraint.is_free(sequence.num_output_tokens + sequence.num_pending)


def _lead(request: _Request) -> Sequence:
    """The sequence whose prompt's KV moves: of a request that receives it, or holds it for others."""
    return next(iter(request.choices.values()))


def _scheduler_config(config: EngineConfig, memory: MemoryPlan, *, pools: bool) -> SchedulerConfig:
    """Bound steps and queue; a prompt that is pooled may fill the context, and counts with the token that never follows."""
    return SchedulerConfig(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=memory.max_model_len + pools,
        block_size=config.block_size,
        windows=memory.reach.windows,
        max_num_waiting=config.max_num_waiting,
        enable_chunked_prefill=config.enable_chunked_prefill,
        enable_prefix_caching=config.enable_prefix_caching,
    )
