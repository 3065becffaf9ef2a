"""The device an engine runs on: found, checked against what the model and the kernels need, kernels compiled.

All of it at start and before weights are read, each failure as one message with the way out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from baton.config import EngineConfig
from baton.engine.compile_check import KernelShapes, compile_kernels
from baton.errors import ConfigError
from baton.kernels.launch import INTERPRET, ON_TRITON, triton_version
from baton.kernels.limits import DTYPES, LARGEST_HEAD_DIM, OLDEST_CAPABILITY
from baton.logs import get_logger
from baton.models.spec import MLPSpec, ModelSpec, MoESpec

log = get_logger("engine")


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What the checks look at; of a CPU its name alone."""

    name: str
    is_gpu: bool = False
    capability: tuple[int, int] = (0, 0)
    triton: str | None = None


def pick_device(config: EngineConfig) -> torch.device:
    """Choose the device that the settings ask for."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda' is not valid: torch sees no GPU here. Use --device cpu or auto.")
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def facts_of(device: torch.device) -> DeviceFacts:
    """Ask a device."""
    if device.type != "cuda":
        return DeviceFacts("CPU", triton=triton_version())
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    return DeviceFacts(name, True, capability, triton_version())


def check_device(facts: DeviceFacts, spec: ModelSpec, dtype: torch.dtype) -> None:
    """Refuse what the kernels do not take; a CPU computes everything without them.

    Raises:
        ConfigError: says what is needed, why, and what would run.
    """
    if not facts.is_gpu:
        return
    if facts.capability < OLDEST_CAPABILITY:
        raise ConfigError(
            f"{facts.name} has compute capability {_version(facts.capability)}, and the kernels need "
            f"{_version(OLDEST_CAPABILITY)} or newer (Ampere, 2020): bfloat16 matrix products and asynchronous copies "
            f"start there, and Triton compiles for nothing older, so no other --dtype helps. "
            f"Use a newer GPU, or --device cpu."
        )
    if facts.triton is None:
        raise ConfigError(
            f"{facts.name} needs the package triton for its kernels, and it is not installed here. Install it, or use "
            f"--device cpu."
        )
    if dtype not in DTYPES:
        known = ", ".join(str(each).removeprefix("torch.") for each in DTYPES)
        raise ConfigError(f"dtype={dtype} is not valid: the kernels take {known}. Give one with --dtype.")
    if spec.head_dim > LARGEST_HEAD_DIM and not spec.latent:
        raise ConfigError(
            f"the model's heads have {spec.head_dim} dimensions (head_dim in config.json), and the attention kernels take "
            f"at most {LARGEST_HEAD_DIM}: wider tiles do not fit a GPU's shared memory. Use --device cpu."
        )


def prepare_kernels(
    config: EngineConfig, spec: ModelSpec, dtype: torch.dtype, max_model_len: int, device: torch.device
) -> dict[str, str]:
    """Check the device and compile what the model runs there; return what runs as plain torch instead, and why.

    Raises:
        ConfigError: the device cannot run the model. KernelError: a kernel does not compile.
    """
    facts = facts_of(device)
    check_device(facts, spec, dtype)
    if config.deterministic and facts.is_gpu and spec.latent:
        raise ConfigError(
            f"deterministic=True is not valid for {spec.family} on a GPU: its latent attention has no form yet whose bits do "
            "not depend on the batch. Leave out --deterministic, or use --device cpu."
        )
    if not ON_TRITON or (device.type == "cpu" and not INTERPRET):
        return {}
    name = f"{facts.name} (compute capability {_version(facts.capability)})" if facts.is_gpu else facts.name
    shapes = _kernel_shapes(config, spec, dtype, max_model_len)
    failed = compile_kernels(shapes, device, name, allow_reference=config.allow_reference_kernels)
    if spec.latent:
        failed["latent_attention"] = "it has no kernel yet"
    for op, reason in failed.items():
        log.warning("reference_kernel", op=op, device=name, triton=facts.triton, reason=reason)
    return failed


def _kernel_shapes(config: EngineConfig, spec: ModelSpec, dtype: torch.dtype, max_model_len: int) -> KernelShapes:
    layer = spec.layers[0]
    dense = next((each.mlp for each in spec.layers if isinstance(each.mlp, MLPSpec)), None)
    sparse = tuple(dict.fromkeys(each.mlp for each in spec.layers if isinstance(each.mlp, MoESpec)))
    if dense is None and sparse:
        dense = sparse[0].shared
    return KernelShapes(
        dtype=dtype,
        block_size=config.block_size,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.hidden_size if dense is None else dense.size,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        rotations=tuple({(rope.dim, rope.interleaved) for rope in spec.ropes}),
        writes_unrotated=any(each.attention.rope is None for each in spec.layers),
        has_rms_norm=spec.norm == "rms",
        has_head_norms=layer.attention.qk_norm == "head",
        gate=None
        if dense is None or not dense.gated
        else "silu"
        if dense.activation in ("silu", "swish")
        else "gelu_tanh",
        windows=tuple(set(spec.windows_within(max_model_len))),
        soft_cap=layer.attention.soft_cap,
        has_sinks=layer.attention.has_sinks,
        experts=sparse,
        has_slopes=bool(layer.attention.slopes),
        latent=spec.latent,
        deterministic=config.deterministic,
    )


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
