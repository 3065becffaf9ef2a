"""Every setting, as frozen dataclasses: one default, one help text each; flags are made from them.

What is learned at start (blocks that fit, the context of the checkpoint) becomes a new value, never written
back here. The environment is not read here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from baton.errors import ConfigError
from baton.load_formats import check_load_format


def setting(default: Any, help_text: str) -> Any:
    """Declare a field with the help text that its command-line flag shows."""
    return field(default=default, metadata={"help": help_text})


def demo_model_path() -> Path:
    """The folder of the bundled demo model, which `transformers` loads as it is."""
    return Path(__file__).parent / "demo" / "model"


AUTO_LEN = -1
"""As max_model_len: the model's context, or what of it the memory holds."""
ModelImpl = Literal["auto", "baton", "transformers", "vllm"]
_SHORT_DTYPES = {"half": "float16", "float": "float32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine: a model, its KV cache and how steps are planned. Names are vLLM's where vLLM has them."""

    model: str | None = setting(None, "hub id or folder of the model; none: the bundled demo model")
    tokenizer: str | None = setting(None, "hub id or folder of the tokenizer; none: the model's own")
    revision: str | None = setting(None, "branch, tag or commit of a hub model")
    tokenizer_revision: str | None = setting(
        None, "branch, tag or commit of a tokenizer from a repository of its own; none: --revision"
    )
    hf_overrides: str | None = setting(
        None, "JSON object put over config.json, such as its rope_scaling; all workers of a model need the same"
    )
    load_format: str = setting(
        "auto", "auto and safetensors read the checkpoint; dummy makes random weights from config.json alone"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "half", "float"] = setting(
        "auto",
        "type of weights and KV; auto: float32 on a CPU, the checkpoint's own 16-bit type on a GPU; half is "
        "float16, float is float32",
    )
    quantization: str | None = setting(
        None,
        "fp8, int8 or int4 quantize a checkpoint of 16 bits while it is read; another name must be the method that the "
        "checkpoint has; none: as the checkpoint is",
    )
    model_impl: ModelImpl = setting(  # noqa: RUF009
        "auto",
        "whose definition of the model runs: baton's (vllm is taken as it), transformers' on Baton's attention and cache, "
        "or auto: the second where there is no first",
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where the model runs; auto: cuda if there is one")
    max_model_len: int | None = setting(
        None,
        "longest prompt plus answer, in tokens; none: the model's context; auto: what of it memory holds, rounded down",
    )
    max_num_seqs: int = setting(256, "most sequences in one step")
    max_num_batched_tokens: int = setting(8192, "most tokens in one step, prompts' chunks included")
    max_num_waiting: int = setting(65_536, "most requests that wait before new ones are refused")
    block_size: int = setting(16, "tokens of one KV block")
    gpu_memory_utilization: float = setting(0.9, "share of the device's memory for weights, activations and KV")
    kv_cache_memory_bytes: int | None = setting(
        None, "bytes for KV blocks; none: from gpu_memory_utilization on a GPU, 1 GiB on a CPU"
    )
    num_gpu_blocks_override: int | None = setting(None, "number of KV blocks, whatever the memory")
    swap_space: float = setting(
        0.0,
        "GiB of host memory for KV blocks that the device has no more room for; they come back where that is faster than "
        "computing them again; 0: none",
    )
    enable_prefix_caching: bool = setting(True, "share the KV of equal prompt beginnings")
    enable_chunked_prefill: bool = setting(True, "compute long prompts in chunks, beside decodes")
    enforce_eager: bool = setting(False, "run without CUDA graphs")
    deterministic: bool = setting(
        False,
        "give a request the same bits alone and in a crowd, however its prompt is cut or cached; slower, on a CPU one "
        "token at a time",
    )
    allow_reference_kernels: bool = setting(
        False, "run an operation in plain torch, slower, where its Triton kernel does not compile"
    )
    seed: int = setting(0, "seed of dummy weights, and of requests that bring none")
    runner: Literal["auto", "generate", "pooling"] = setting(
        "auto", "what the model is for: answers, or vectors, classes and scores; auto: what its files say"
    )
    convert: Literal["auto", "none", "embed", "classify"] = setting(
        "auto", "embed: have a model that generates give vectors of its last token's hidden state"
    )

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_num_waiting", "block_size"):
            _at_least(name, getattr(self, name), 1)
        # a prompt of one token and an answer of one
        if self.max_model_len != AUTO_LEN and self.max_model_len is not None:
            _at_least("max_model_len", self.max_model_len, 2)
        for name, low in (("kv_cache_memory_bytes", 1), ("num_gpu_blocks_override", 1)):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), low)
        _at_least("seed", self.seed, 0)
        if self.model_impl == "vllm":
            object.__setattr__(self, "model_impl", "baton")
        object.__setattr__(self, "dtype", _SHORT_DTYPES.get(self.dtype, self.dtype))  # one name for one thing
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is not valid: it must be at least "
                f"max_num_seqs={self.max_num_seqs}, so that every running sequence gets its token in each step. "
                f"Lower --max-num-seqs to {self.max_num_batched_tokens}, or raise --max-num-batched-tokens."
            )
        if self.block_size & (self.block_size - 1):
            raise ConfigError(f"block_size={self.block_size} is not valid: it must be a power of two, such as 16.")
        share = self.gpu_memory_utilization
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0.0 < share <= 1.0:
            raise ConfigError(f"gpu_memory_utilization={share!r} is not valid: it is a share, above 0 and at most 1.")
        space = self.swap_space
        if isinstance(space, bool) or not isinstance(space, (int, float)) or not 0.0 <= space < 2**20:
            raise ConfigError(f"swap_space={space!r} is not valid: it is a number of GiB, 0 or more.")
        if self.deterministic and self.allow_reference_kernels:
            raise ConfigError(
                "allow_reference_kernels=True is not valid with deterministic=True: plain torch picks the order of its "
                "sums by the batch. Leave out one of --allow-reference-kernels and --deterministic."
            )
        check_load_format(self.load_format)
        _ = self.overrides
        _check_choices(self)

    @property
    def overrides(self) -> dict[str, Any]:
        """What is put over config.json."""
        return {} if self.hf_overrides is None else _read_object("hf_overrides", self.hf_overrides)


def _read_object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{name}={text[:80]!r} is not valid: {error}. Give a JSON object.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{name}={text[:80]!r} is not valid: it must be a JSON object, as config.json is.")
    return value


def _at_least(name: str, value: Any, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"{name}={value!r} is not valid: it must be a whole number, at least {low}.")


def _check_choices(config: EngineConfig) -> None:
    """Refuse a value outside its field's `Literal`, and what is neither on nor off."""
    for name, hint in get_type_hints(EngineConfig).items():
        if hint is bool and not isinstance(getattr(config, name), bool):
            raise ConfigError(f"{name}={getattr(config, name)!r} is not valid: it must be True or False.")
        if get_origin(hint) is Literal and getattr(config, name) not in get_args(hint):
            choices = ", ".join(get_args(hint))
            raise ConfigError(f"{name}={getattr(config, name)!r} is not valid: it must be one of {choices}.")
