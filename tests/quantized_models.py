"""Quantized checkpoints, packed by the descriptions of their formats and by nothing of Baton: each beside what it stands for.

A way of packing takes a weight [outputs, inputs] and returns the tensors of its module, and the weight that they stand for. It
works number by number, so that it is easily compared with a format's description, and only small models are packed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Packed = tuple[dict[str, Tensor], Tensor]
Pack = Callable[[Tensor], Packed]
GROUP = 32


def into_words(codes: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Put whole numbers [rows, n] into words of 32 bits, one stream of bits a row; `order`: which code a word's n-th place has."""
    rows = []
    for row in codes.tolist():
        if order:
            row = [row[start + at] for start in range(0, len(row), len(order)) for at in order]
        stream = sum(code << bits * at for at, code in enumerate(row))
        words = [stream >> 32 * at & 0xFFFFFFFF for at in range(len(row) * bits // 32)]
        rows.append([word - (1 << 32) if word >> 31 else word for word in words])
    return torch.tensor(rows, dtype=torch.int32)


def quantize(weight: Tensor, bits: int, group: int | None, *, symmetric: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return codes [outputs, inputs], scales and zeros [outputs, groups], and the weight that they stand for."""
    groups = weight.view(len(weight), -1, group or weight.shape[1])
    top = (1 << bits) - 1
    if symmetric:
        scales = (groups.abs().amax(-1) * 2 / top).half().float()
        zeros = torch.full_like(scales, 1 << bits - 1)
    else:
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scales = ((high - low) / top).half().float()
        zeros = (-low / scales).round().clamp(0, top)
    codes = (groups / scales[..., None] + zeros[..., None]).round().clamp(0, top)
    plain = (codes - zeros[..., None]) * scales[..., None]
    return codes.view(weight.shape).long(), scales, zeros.long(), plain.view(weight.shape)


def gptq(
    bits: int, *, symmetric: bool = True, v2: bool = False, desc_act: bool = False, group: int | None = GROUP
) -> Pack:
    """AutoGPTQ's: words along the inputs, zeros along the outputs, less one in version 1."""

    def pack(weight: Tensor) -> Packed:
        num_inputs = weight.shape[1]
        order = (
            torch.randperm(num_inputs, generator=torch.Generator().manual_seed(5))
            if desc_act
            else torch.arange(num_inputs)
        )
        codes, scales, zeros, plain = quantize(weight[:, order], bits, group, symmetric=symmetric)
        back = torch.argsort(order)
        stored = zeros if v2 else zeros - 1 & (1 << bits) - 1
        tensors = {
            "qweight": into_words(codes[:, back], bits).t().contiguous(),
            "qzeros": into_words(stored.t(), bits),
            "scales": scales.t().contiguous().half(),
            "g_idx": (back // (group or num_inputs)).int(),
        }
        return tensors, plain[:, back]

    return pack


def awq(weight: Tensor) -> Packed:
    """AutoAWQ's `gemm`: words along the outputs, whose places have the columns 0, 2, 4, 6, 1, 3, 5, 7."""
    codes, scales, zeros, plain = quantize(weight, 4, GROUP, symmetric=False)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    tensors = {
        "qweight": into_words(codes.t(), 4, order),
        "qzeros": into_words(zeros.t(), 4, order),
        "scales": scales.t().contiguous().half(),
    }
    return tensors, plain


def packed_ints(bits: int, *, symmetric: bool = True, group: int | None = GROUP, ordered: bool = False) -> Pack:
    """compressed-tensors' `pack-quantized`: words along the inputs, zeros along the outputs."""

    def pack(weight: Tensor) -> Packed:
        num_inputs = weight.shape[1]
        order = (
            torch.randperm(num_inputs, generator=torch.Generator().manual_seed(5))
            if ordered
            else torch.arange(num_inputs)
        )
        codes, scales, zeros, plain = quantize(weight[:, order], bits, group, symmetric=symmetric)
        back = torch.argsort(order)
        tensors = {
            "weight_packed": into_words(codes[:, back], bits),
            "weight_scale": scales.half(),
            "weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            tensors["weight_zero_point"] = into_words(zeros.t(), bits).t().contiguous()
        if ordered:
            tensors["weight_g_idx"] = (back // (group or num_inputs)).int()
        return tensors, plain[:, back]

    return pack


def int8(strategy: str = "channel", *, x_scale: float | None = None) -> Pack:
    """compressed-tensors' `int-quantized`."""

    def pack(weight: Tensor) -> Packed:
        largest = weight.abs().amax(1, keepdim=True) if strategy == "channel" else weight.abs().amax().view(1)
        scale = (largest / 127).half().float()
        values = (weight / scale).round().clamp(-127, 127)
        tensors = {"weight": values.to(torch.int8), "weight_scale": scale.half()}
        if x_scale is not None:
            tensors["input_scale"] = torch.tensor([x_scale])
        return tensors, values * scale

    return pack


def fp8(strategy: str, *, x_scale: float | None = None, suffix: str = "weight_scale", block: int = 128) -> Pack:
    """Floats of eight bits, a scale a tensor, an output ("channel") or a block."""

    def pack(weight: Tensor) -> Packed:
        if strategy == "block":
            blocks = [
                [part.abs().max() / 448 for part in torch.split(rows, block, 1)] for rows in torch.split(weight, block)
            ]
            scale = torch.tensor(blocks)
            whole = scale.repeat_interleave(block, 0).repeat_interleave(block, 1)[: len(weight), : weight.shape[1]]
        else:
            scale = weight.abs().amax(1, keepdim=True) / 448 if strategy == "channel" else weight.abs().max() / 448
            whole = scale
        values = (weight / whole).to(torch.float8_e4m3fn)
        tensors = {"weight": values, suffix: scale.clone()}
        if x_scale is not None:
            tensors["input_scale"] = torch.tensor(x_scale)
        return tensors, values.float() * whole

    return pack


NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def nf4(*, is_double: bool = False) -> Pack:
    """bitsandbytes' four bits: of every 64 weights, in one row, the nearest of 16 numbers times the largest weight.

    Doubly quantized, the scales less their mean are the nearest of 256 numbers times the largest of 256 of them.
    """

    def pack(weight: Tensor) -> Packed:
        table, rows = torch.tensor(NF4), weight.reshape(-1, 64)
        scales = rows.abs().amax(1)
        text: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32"}
        tensors = {"weight.absmax": scales}
        if is_double:
            other, mean = torch.linspace(-1, 1, 256), scales.mean().item()
            parts = torch.split(scales - mean, 256)
            tops = torch.stack([part.abs().max() for part in parts])
            nearest = [(part[:, None] / top - other).abs().argmin(1) for part, top in zip(parts, tops, strict=True)]
            bytes_ = torch.cat(nearest)
            text |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": mean}
            tensors = {
                "weight.absmax": bytes_.to(torch.uint8),
                "weight.nested_absmax": tops,
                "weight.nested_quant_map": other,
            }
            scales = other[bytes_] * tops.repeat_interleave(256)[: len(bytes_)] + mean
        codes = (rows[:, :, None] / scales[:, None, None] - table).abs().argmin(2)
        pairs = codes.reshape(-1, 2)
        tensors |= {
            "weight": (pairs[:, :1] * 16 + pairs[:, 1:]).to(torch.uint8),
            "weight.quant_map": table,
            "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(text).encode()), dtype=torch.uint8),
        }
        return tensors, (table[codes] * scales[:, None]).view(weight.shape)

    return pack


def bnb_int8(weight: Tensor) -> Packed:
    """bitsandbytes' eight bits: whole numbers, 127 of which are the largest weight of an output."""
    largest = weight.abs().amax(1)
    values = (weight * 127 / largest[:, None]).round()
    tensors = {"weight": values.to(torch.int8), "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return tensors, values * largest[:, None] / 127


def compressed(
    weights: Mapping[str, Any], kind: str, x: Mapping[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """The quantization_config of compressed-tensors with one group."""
    group = {"targets": ["Linear"], "weights": dict(weights), "input_activations": x, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
        **more,
    }


_INTS = {"type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
_FLOATS = {"type": "float", "num_bits": 8, "symmetric": True}
_TOKENS = {"strategy": "token", "dynamic": True, "symmetric": True, "num_bits": 8}
_STATIC = {"strategy": "tensor", "dynamic": False, "symmetric": True, "num_bits": 8}


def _gptq(bits: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "sym": True, "desc_act": False, **more}


FORMS: dict[str, tuple[dict[str, Any], Pack]] = {
    "gptq-2": (_gptq(2), gptq(2)),
    "gptq-3": (_gptq(3), gptq(3)),
    "gptq-4": (_gptq(4), gptq(4)),
    "gptq-8": (_gptq(8), gptq(8)),
    "gptq-4-zeros": (_gptq(4, sym=False), gptq(4, symmetric=False)),
    "gptq-8-zeros-v2": (_gptq(8, sym=False, checkpoint_format="gptq_v2"), gptq(8, symmetric=False, v2=True)),
    "gptq-4-v2": (_gptq(4, checkpoint_format="gptq_v2"), gptq(4, v2=True)),
    "gptq-4-desc-act": (_gptq(4, desc_act=True, sym=False), gptq(4, symmetric=False, desc_act=True)),
    "gptq-4-channel": (_gptq(4, group_size=-1), gptq(4, group=None)),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}, awq),
    "ct-int4": (compressed({**_INTS, "num_bits": 4}, "pack-quantized"), packed_ints(4)),
    "ct-int4-zeros": (
        compressed({**_INTS, "num_bits": 4, "symmetric": False}, "pack-quantized"),
        packed_ints(4, symmetric=False),
    ),
    "ct-int4-actorder": (
        compressed({**_INTS, "num_bits": 4, "actorder": "group"}, "pack-quantized"),
        packed_ints(4, ordered=True),
    ),
    "ct-int4-channel": (
        compressed({**_INTS, "num_bits": 4, "strategy": "channel", "group_size": None}, "pack-quantized"),
        packed_ints(4, group=None),
    ),
    "ct-int8-packed": (
        compressed({**_INTS, "num_bits": 8, "symmetric": False}, "pack-quantized"),
        packed_ints(8, symmetric=False),
    ),
    "ct-fp8-tensor": (
        compressed({**_FLOATS, "strategy": "tensor"}, "float-quantized", {**_STATIC, "type": "float"}),
        fp8("tensor", x_scale=0.02),
    ),
    "ct-fp8-channel": (
        compressed({**_FLOATS, "strategy": "channel"}, "float-quantized", {**_TOKENS, "type": "float"}),
        fp8("channel"),
    ),
    "ct-fp8-block": (
        compressed({**_FLOATS, "strategy": "block", "block_structure": [128, 128]}, "float-quantized"),
        fp8("block"),
    ),
    "ct-int8": (
        compressed({"type": "int", "num_bits": 8, "symmetric": True, "strategy": "channel"}, "int-quantized"),
        int8(),
    ),
    "ct-w8a8-dynamic": (
        compressed(
            {"type": "int", "num_bits": 8, "symmetric": True, "strategy": "channel"},
            "int-quantized",
            {**_TOKENS, "type": "int"},
        ),
        int8(),
    ),
    "ct-w8a8-static": (
        compressed(
            {"type": "int", "num_bits": 8, "symmetric": True, "strategy": "tensor"},
            "int-quantized",
            {**_STATIC, "type": "int"},
        ),
        int8("tensor", x_scale=0.05),
    ),
    "bnb-nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, nf4()),
    "bnb-nf4-double": (
        {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
        },
        nf4(is_double=True),
    ),
    "bnb-int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, bnb_int8),
    "fp8-tensor": (
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
        fp8("tensor", x_scale=0.02),
    ),
    "fp8-block": (
        {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [32, 32],
            "modules_to_not_convert": ["lm_head", "model.layers.0.mlp"],
        },
        fp8("block", suffix="weight_scale_inv", block=32),
    ),
}
"""By name: the quantization_config of config.json, and how each weight of a layer is packed."""

KEPT = {"fp8-block": "layers.0.mlp."}
"""Modules that a form's config leaves as they were."""


def quantized(plain: Path, folder: Path, name: str) -> tuple[Path, Path]:
    """Write a checkpoint in a form, and one of the weights that it stands for; returns both folders."""
    config, pack = FORMS[name]
    kept = KEPT.get(name)
    return repacked(plain, folder, config, lambda module, weight: None if kept and kept in module else pack(weight))


def repacked(
    plain: Path, folder: Path, config: Mapping[str, Any], pack: Callable[[str, Tensor], Packed | None]
) -> tuple[Path, Path]:
    """Write a checkpoint whose linear layers are packed by module, and one of the weights that it stands for."""
    torch.manual_seed(0)
    packed: dict[str, Tensor] = {}
    standing: dict[str, Tensor] = {}
    for key, tensor in load_file(plain / "model.safetensors").items():
        module = key.removesuffix(".weight")
        made = pack(module, tensor.float()) if key.endswith("proj.weight") else None
        if made is None:
            packed[key] = standing[key] = tensor
        else:
            packed |= {f"{module}.{suffix}": part for suffix, part in made[0].items()}
            standing[key] = made[1].contiguous()
    folders = folder / "quantized", folder / "plain"
    for target, tensors in zip(folders, (packed, standing), strict=True):
        shutil.copytree(plain, target)
        save_file(tensors, target / "model.safetensors")
    described = json.loads((plain / "config.json").read_text()) | {"quantization_config": dict(config)}
    (folders[0] / "config.json").write_text(json.dumps(described))
    return folders
