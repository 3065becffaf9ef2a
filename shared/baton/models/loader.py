"""From a folder or a hub id to a model that is ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from baton.errors import ModelLoadError, OutOfMemory
from baton.kernels.launch import INTERPRET
from baton.load_formats import check_load_format
from baton.models.causal_lm import CausalLM
from baton.models.checkpoint import read_entries
from baton.models.config import read_spec
from baton.models.families import BY_NAME
from baton.models.fields import DTYPES
from baton.models.hub import locate
from baton.models.one_by_one import OneByOne
from baton.models.ops import FASTEST, INVARIANT, Ops
from baton.models.parameters import Parameters
from baton.models.spec import ModelSpec
from baton.models.weights import fill_dummy, load_weights, match
from baton.pooling_files import PoolingSetup


def load_model(
    path_or_id: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    load_format: str = "auto",
    revision: str | None = None,
    seed: int = 0,
    progress: bool = True,
    max_model_len: int | None = None,
    deterministic: bool = False,
    pooling: PoolingSetup | None = None,
    quantization: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    model_impl: str = "auto",
) -> CausalLM:
    """Build a model on its device and fill in its weights.

    Args:
        path_or_id: a folder with config.json and safetensors, or the id of a Hugging Face model.
        dtype: of parameters and activations; None: the checkpoint's.
        load_format: "dummy" takes random weights, normal with the deviation that config.json says, by `seed`; only
            config.json need be there. The others read safetensors.
        progress: draw a progress bar on stderr.
        max_model_len: the longest context served; None: the longest that the model is made for. With LongRoPE
            one beyond the original context selects the long factors.
        deterministic: every token has the same bits whatever else is in its steps; slower.
        overrides: values over those of config.json.
        model_impl: as of `read_spec`.
        pooling: build the model that pools so, in place of one that generates.
        quantization: the method that the checkpoint must have, or one by which weights are quantized while they are read.

    Raises:
        ModelLoadError: the checkpoint is missing, damaged, or not one that Baton loads; the message says the way out.
        OutOfMemory: the parameters do not fit the device.
    """
    check_load_format(load_format)
    folder = locate(path_or_id, revision, weights=load_format != "dummy", overrides=overrides, model_impl=model_impl)
    spec = read_spec(folder, pooling, quantization, overrides, model_impl)
    dtype = resolve_dtype(dtype, spec)
    spec = spec.within(max_model_len)
    device = torch.device(device)
    has_kernels = device.type != "cpu" or INTERPRET
    ops = _ops_of(device, deterministic=deterministic)
    if load_format == "dummy":
        model = build(spec, dtype, device, ops)
        fill_dummy(model.parameters, spec.initializer_range, seed)
    else:
        # All that the headers can tell is checked before memory is taken.
        found = match(outline(spec, dtype).parameters, read_entries(folder), str(folder))
        model = build(spec, dtype, device, ops)
        load_weights(model.parameters, found, progress)
    model.parameters.settle()
    return OneByOne(model) if deterministic and not has_kernels else model


def weights_nbytes(
    spec: ModelSpec,
    dtype: torch.dtype | str | None = None,
    max_model_len: int | None = None,
    device: torch.device | str = "cpu",
    *,
    deterministic: bool = False,
) -> int:
    """Count the bytes that a model's parameters and its tables of rotations will take on the device."""
    device = torch.device(device)
    ops = _ops_of(device, deterministic=deterministic)
    planned = outline(spec.within(max_model_len), resolve_dtype(dtype, spec), ops)
    return planned.parameters.settled_nbytes(device)


def _ops_of(device: torch.device, *, deterministic: bool) -> Ops:
    """On a CPU without kernels the same bits come of computing tokens one by one, with the fastest operations."""
    return INVARIANT if deterministic and (device.type != "cpu" or INTERPRET) else FASTEST


def resolve_dtype(dtype: torch.dtype | str | None, spec: ModelSpec) -> torch.dtype:
    """Find the dtype by object or name; None or "auto" is the checkpoint's."""
    if isinstance(dtype, torch.dtype):
        return dtype
    name = spec.dtype if dtype in (None, "auto") else str(dtype)
    if name not in DTYPES:
        raise ModelLoadError(f"dtype={name!r} is none of auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def outline(spec: ModelSpec, dtype: torch.dtype, ops: Ops = FASTEST) -> CausalLM:
    """Build a model without memory, to know its tensors."""
    return build(spec, dtype, torch.device("meta"), ops)


def build(spec: ModelSpec, dtype: torch.dtype, device: torch.device, ops: Ops) -> CausalLM:
    """Build a model on its device; what its parameters hold is undefined.

    Raises:
        OutOfMemory: they do not fit.
    """
    try:
        return BY_NAME[spec.family].build(spec, Parameters(dtype, device, ops, spec.weight_form))
    except torch.OutOfMemoryError:
        free, total = torch.cuda.mem_get_info(device)
        needed = outline(spec, dtype).nbytes
    raise OutOfMemory(
        f"the weights take {needed / 2**30:.1f} GiB as {dtype}, and {device} has {free / 2**30:.1f} of "
        f"{total / 2**30:.1f} GiB free. Stop what else runs there, or take a smaller model or dtype."
    )
