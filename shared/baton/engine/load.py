"""From settings to a running engine: check what fits, load the model, measure its largest step, capture steps."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path

import torch

from baton.config import AUTO_LEN, EngineConfig
from baton.engine.device import pick_device, prepare_kernels
from baton.engine.engine import Engine
from baton.engine.grammar_compiler import GrammarCompiler
from baton.engine.kv_cache import KVCacheSpec
from baton.engine.memory import GIB, MemoryPlan, largest_steps_tried, plan_memory, swap_space_nbytes, with_kv_of
from baton.engine.pinned_memory import anonymous_memory
from baton.engine.pooler import Pooler
from baton.engine.sampler import SAMPLING_NBYTES
from baton.engine.slot_copies import slot_copies
from baton.engine.swap_space import SwapSpace
from baton.errors import ConfigError
from baton.models.causal_lm import CausalLM
from baton.models.config import read_spec
from baton.models.hub import locate
from baton.models.identity import model_identity
from baton.models.loader import load_model, resolve_dtype, weights_nbytes
from baton.models.online import Online
from baton.models.spec import ModelSpec
from baton.models.transformers_model import Described
from baton.pooling import PoolingParams
from baton.pooling_files import PoolingSetup, read_pooling
from baton.progress import tell
from baton.prompt import Prompt
from baton.protocol import SamplingParams
from baton.text import Tokenizer
from baton.tokenizer_files import TOKENIZER


def load_engine(
    config: EngineConfig,
    *,
    folder: Path | None = None,
    tokenizer: Tokenizer | None = None,
    progress: bool = True,
    cache_key: bytes = b"",
) -> Engine:
    """Check what fits, print the plan, load the model, make the cache.

    `folder` has the model's files, if they have been located already; so with `tokenizer`, asked only for the ends of answers. `cache_key` is the deployment's secret
    for block hashes; workers and routers of one share it.

    Raises:
        ModelLoadError, OutOfMemory, ConfigError: before anything large is read wherever possible.
    """
    device = pick_device(config)
    if folder is None:
        folder = locate(
            str(config.model),
            config.revision,
            weights=config.load_format != "dummy",
            overrides=config.overrides,
            model_impl=config.model_impl,
        )
    pooling = read_pooling(folder, config.runner, config.convert, config.overrides)
    spec = read_spec(folder, pooling, config.quantization, config.overrides, config.model_impl)
    words = _words(config, folder, tokenizer)
    if words is not None:
        words.check_fits(spec.vocab_size)
    dtype = _dtype(config, device, spec)
    asked = config.max_model_len
    max_model_len = spec.max_model_len if asked in (None, AUTO_LEN) else asked
    if pooling is not None:
        max_model_len = min(max_model_len, pooling.max_len or max_model_len) if asked is None else max_model_len
        config = _for_pooling(config, pooling, max_model_len)
    kv_spec = KVCacheSpec.of(spec, config.block_size, dtype, max_model_len)
    memory = plan_memory(
        config,
        kv_spec,
        weights_nbytes=weights_nbytes(spec, dtype, max_model_len, device, deterministic=config.deterministic),
        max_model_len=max_model_len,
        device=device,
    )
    if progress:
        if isinstance(spec.own, Described):
            tell(
                f"{spec.own.name} runs by transformers' definition, on Baton's attention; a family of Baton's is faster"
            )
        name = f"{spec.family} on {device} in {str(dtype).removeprefix('torch.')}"
        tell(f"{name}: {memory.describe()}")
    references = {} if spec.is_encoder else prepare_kernels(config, spec, dtype, max_model_len, device)
    if references and progress:
        tell(f"in plain torch, and so without CUDA graphs: {', '.join(references)}")
    model = load_model(
        folder,
        dtype=dtype,
        device=device,
        load_format=config.load_format,
        seed=config.seed,
        progress=progress,
        max_model_len=max_model_len,
        deterministic=config.deterministic,
        pooling=pooling,
        quantization=config.quantization,
        overrides=config.overrides,
        model_impl=config.model_impl,
    )
    if words is not None:
        model.spec = dataclasses.replace(
            model.spec, eos_token_ids=_end_token_ids(words, spec), num_tokens=words.num_token_ids
        )
    identity = model_identity(
        folder,
        dummy_seed=config.seed if config.load_format == "dummy" else None,
        quantization=config.quantization if isinstance(spec.weight_form, Online) else None,
        overrides=config.overrides,
    )
    pooler = None
    if pooling is not None:
        pooler = Pooler.of(model, pooling, None if config.load_format == "dummy" else folder)
    with largest_steps_tried(config):
        if device.type == "cuda":
            memory = _measured(model, config, memory, kv_spec, pooler)
            if progress:
                tell(f"measured: {memory.describe()}")
        engine = Engine(model, config, memory, kv_spec, cache_key=cache_key, identity=identity)
        engine.runner.pooler = pooler
        if pooler is None and device.type == "cuda" and not config.enforce_eager and not references:
            _capture(engine, config, progress)
    engine.grammars = GrammarCompiler(
        lambda: words or tokenizer_of(config, folder),
        vocab_size=spec.vocab_size,
        eos_token_ids=model.spec.eos_token_ids,
    )
    if config.swap_space:
        line = give_swap_space(engine, config)
        if progress:
            tell(line)
    return engine


def _capture(engine: Engine, config: EngineConfig, progress: bool) -> None:
    """Capture the engine's steps; those of a model of transformers run one by one where they cannot be captured."""
    try:
        engine.runner.capture_graphs(max_num_tokens=config.max_num_batched_tokens, progress=progress)
    except RuntimeError as error:
        if not isinstance(engine.runner.model.spec.own, Described):
            raise
        torch.cuda.synchronize()
        if progress:
            tell(
                f"transformers' definition cannot be captured as CUDA graphs ({str(error).splitlines()[0]}): runs without"
            )


def _for_pooling(config: EngineConfig, pooling: PoolingSetup, max_model_len: int) -> EngineConfig:
    """Return the settings of steps for a model that pools: one that needs a prompt whole computes it in one step.

    Raises:
        ConfigError: a setting is of no use to it, or such a step would be too large.
    """
    if not pooling.needs_whole:
        return config
    if config.deterministic:
        raise ConfigError("deterministic=True is not served for a model that needs whole prompts. Leave it out.")
    longest = max(config.max_num_batched_tokens, max_model_len)
    return dataclasses.replace(
        config,
        enable_chunked_prefill=False,
        enable_prefix_caching=False,
        max_num_batched_tokens=longest,
        swap_space=0.0,
    )


def give_swap_space(engine: Engine, config: EngineConfig) -> str:
    """Put `config.swap_space` GiB of host memory behind the engine's blocks; return the line that says so, or why not.

    Raises:
        OutOfMemory: the host has not so much.
    """
    if not config.enable_prefix_caching:
        return "swap space: none without prefix caching, by which blocks are found again"
    nbytes = swap_space_nbytes(config, engine.memory)
    copies = slot_copies(lambda: engine.runner.kv, anonymous_memory(nbytes))
    engine.use_tier(SwapSpace(copies, engine.memory.block_nbytes))
    num_blocks = nbytes // engine.memory.block_nbytes
    return f"swap space {nbytes / GIB:.2f} GiB of host memory: {num_blocks} blocks, {num_blocks * config.block_size} tokens"


def tokenizer_of(config: EngineConfig, folder: Path, chat_template: str | None = None) -> Tokenizer:
    """Load the model's own tokenizer, or the one that the settings name.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    if config.tokenizer is None:
        return Tokenizer(folder, chat_template=chat_template)
    return Tokenizer(config.tokenizer, config.tokenizer_revision or config.revision, chat_template)


def _words(config: EngineConfig, folder: Path, tokenizer: Tokenizer | None) -> Tokenizer | None:
    """Return the tokenizer, if it is there without `transformers`; who needs the text says what is wrong with it."""
    if tokenizer is not None or (config.tokenizer is None and not (folder / TOKENIZER).is_file()):
        return tokenizer
    try:
        return tokenizer_of(config, folder)
    except ConfigError:
        return None


def _end_token_ids(words: Tokenizer, spec: ModelSpec) -> tuple[int, ...]:
    """Return what ends an answer: what the model's configs name, and, as in vLLM, what its tokenizer calls the end."""
    return tuple(token_id for token_id in words.end_token_ids(spec.eos_token_ids) if token_id < spec.vocab_size)


def _measured(
    model: CausalLM, config: EngineConfig, memory: MemoryPlan, kv_spec: KVCacheSpec, pooler: Pooler | None
) -> MemoryPlan:
    """Run the largest step that a plan can hold, and leave the KV cache the rest.

    Kernels are compiled on the way, so that the first request does not wait for them.
    """
    device = model.device
    num_tokens = config.max_num_batched_tokens
    prompt_len = min(num_tokens, memory.max_model_len - 1)
    num_prompts = -(-num_tokens // prompt_len)
    blocks = num_prompts * memory.reach.num_held(prompt_len + 2 * config.block_size) + 1
    small = dataclasses.replace(memory, num_blocks=min(blocks, memory.num_blocks))
    probe = Engine(model, dataclasses.replace(config, max_num_waiting=num_prompts), small, kv_spec)
    probe.runner.pooler = pooler
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    params = SamplingParams(max_tokens=2, temperature=1.0, ignore_eos=True, detokenize=False)
    for i in range(num_prompts):
        prompt = Prompt([i % model.spec.vocab_size] * prompt_len)
        if pooler is None:
            probe.add(str(i), prompt, params)
        else:
            probe.pool_prompt(str(i), prompt, PoolingParams())
    while probe.has_work:
        probe.step()
    torch.cuda.synchronize(device)
    step_nbytes = torch.cuda.max_memory_allocated(device) - before
    del probe
    gc.collect()
    torch.cuda.empty_cache()
    sampling_nbytes = config.max_num_seqs * model.spec.vocab_size * SAMPLING_NBYTES
    return with_kv_of(config, memory, model.nbytes, step_nbytes + sampling_nbytes, device)


def _dtype(config: EngineConfig, device: torch.device, spec: ModelSpec) -> torch.dtype:
    """On a CPU float32 is both exact and fastest; on a GPU the checkpoint's 16 bits."""
    if config.dtype != "auto":
        return resolve_dtype(config.dtype, spec)
    if device.type == "cpu":
        return torch.float32
    stored = resolve_dtype(None, spec)
    return torch.bfloat16 if stored == torch.float32 else stored
