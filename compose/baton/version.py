"""Which Baton this is, and on what it runs."""

from __future__ import annotations

import importlib.metadata
import os
import platform


def version_lines(*, verbose: bool = False) -> list[str]:
    """Return the version, and with `verbose` what a report of a problem needs."""
    version = importlib.metadata.version("batonllm")
    if not verbose:
        return [version]
    packages = ("torch", "triton", "transformers", "tokenizers", "pyzmq", "safetensors", "typer")
    return [
        f"batonllm {version}",
        f"python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} CPUs",
        *(f"{name} {_version(name)}" for name in packages),
        *_devices(),
    ]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"


def _devices() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return [f"no GPU that torch sees (built for CUDA {torch.version.cuda or 'none'})"]
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [f"CUDA {torch.version.cuda}: {', '.join(names)}"]
