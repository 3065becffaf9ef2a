"""Python, packages and devices as torch sees them. Without torch it says so: router and clients need none."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterator
from pathlib import Path

from baton.doctor.finding import Finding

OLDEST_TORCH, OLDEST_TRITON = (2, 11), (3, 6)


def has_torch() -> bool:
    """Whether a worker could run here."""
    return importlib.util.find_spec("torch") is not None


def check_software() -> Iterator[Finding]:
    """Look at versions."""
    yield Finding("ok", "baton", f"{version('batonllm')}, Python {platform.python_version()}, {platform.platform()}")
    if not has_torch():
        way_out = "Router and clients run without it. For workers: pip install 'batonllm[worker]'."
        yield Finding("note", "torch", "is not installed.", way_out)
        return
    yield check_version("torch", version("torch"), OLDEST_TORCH)
    yield check_version("triton", version("triton"), OLDEST_TRITON)


def check_version(package: str, found: str | None, oldest: tuple[int, int]) -> Finding:
    """Compare a version with the oldest that Baton takes."""
    needed = ".".join(map(str, oldest))
    if found is None:
        return Finding("note", package, "is not installed.", f"On a GPU it is needed: pip install 'triton>={needed}'.")
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdigit())
    if numbers < oldest:
        return Finding("broken", package, f"{found} is too old.", f"pip install '{package}>={needed}'.")
    return Finding("ok", package, found)


def version(package: str) -> str | None:
    """Return an installed version."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_gpus() -> Iterator[Finding]:
    """Look at the GPUs that torch sees, and at those that it does not."""
    import torch

    there = sorted(Path("/dev").glob("nvidia[0-9]*"))
    if not torch.cuda.is_available():
        if there:
            built = torch.version.cuda
            reason = f"{there[0]} is there, but torch sees no GPU (built for CUDA {built or 'none'})."
            way_out = (
                "Install a torch for CUDA, a driver that is new enough, and nvidia-container-toolkit in containers."
            )
            yield Finding("broken", "gpu", reason, way_out)
        else:
            yield Finding("ok", "gpu", "none: models run on the CPU")
        return
    yield Finding("ok", "cuda", f"{torch.version.cuda}, {torch.cuda.device_count()} devices")
    for index in range(torch.cuda.device_count()):
        yield _check_gpu(index)
    yield from _check_peers()


def _check_gpu(index: int) -> Finding:
    import torch

    from baton.kernels.limits import OLDEST_CAPABILITY

    free, total = torch.cuda.mem_get_info(index)
    major, minor = torch.cuda.get_device_capability(index)
    name = f"{index}: {torch.cuda.get_device_name(index)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if (major, minor) < OLDEST_CAPABILITY:
        way_out = "The kernels need 8.0 (Ampere) or newer. Use --device cpu."
        return Finding("broken", "gpu", f"{name}, compute capability {major}.{minor}.", way_out)
    if free < 0.8 * total:
        return Finding(
            "note", "gpu", f"{name}.", "Something else holds memory there: stop it, or lower --gpu-memory-utilization."
        )
    return Finding("ok", "gpu", name)


def _check_peers() -> Iterator[Finding]:
    """Ask which pairs of GPUs can read each other's memory."""
    import torch

    count = torch.cuda.device_count()
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    apart = [(a, b) for a, b in pairs if not torch.cuda.can_device_access_peer(a, b)]
    if apart:
        shown = ", ".join(f"{a} of {b}" for a, b in apart[:4])
        way_out = "KV crosses the host's memory there, which is slower: `nvidia-smi topo -p2p r` says why."
        yield Finding("note", "peers", f"{len(apart)} of {len(pairs)} pairs cannot read each other ({shown}).", way_out)
    elif pairs:
        yield Finding("ok", "peers", f"all {len(pairs)} pairs of GPUs read each other's memory")
