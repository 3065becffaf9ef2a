"""What this machine reaches, measured briefly: memory, products, and KV over each transport with all its checks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import msgspec
import torch

from baton.doctor.figures import Figures
from baton.doctor.finding import Finding
from baton.kvtransfer.bench.measure import measure
from baton.kvtransfer.bench.plan import Device, plans

_COPY_NBYTES = 256 << 20
_SIDE = 1024


def measure_figures() -> Figures:
    """Measure the first GPU, or else this CPU."""
    if torch.cuda.is_available():
        return _measure_gpu()
    source = torch.ones(_COPY_NBYTES // 4)
    to = torch.empty_like(source)
    copy_s = _best(lambda: to.copy_(source))
    a, b = torch.rand(_SIDE, _SIDE), torch.rand(_SIDE, _SIDE)
    product_s = _best(lambda: torch.mm(a, b))
    import psutil

    return Figures(
        name=f"CPU, {torch.get_num_threads()} threads",
        memory_gib=psutil.virtual_memory().total / 2**30,
        memory_gbps=2 * source.nbytes / copy_s / 1e9,
        product_tflops=2 * _SIDE**3 / product_s / 1e12,
        source="measured here: a copy of 256 MiB, a product of 1024-cubed fp32 matrices",
        is_gpu=False,
    )


def _measure_gpu() -> Figures:
    from baton.bench.kernels.measure import measure_ceilings

    ceilings = measure_ceilings()
    torch.cuda.empty_cache()
    return Figures(
        name=torch.cuda.get_device_name(),
        memory_gib=torch.cuda.mem_get_info()[1] / 2**30,
        memory_gbps=ceilings.copy_gbps,
        product_tflops=ceilings.matmul_tflops,
        source="measured here: a copy of 4 GiB, a product of 8192-cubed bf16 matrices",
    )


def _best(call: Callable[[], object], repeats: int = 5) -> float:
    """Return the shortest of a few times: what the machine can do, not what else runs on it."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def measure_links() -> Iterator[tuple[Finding, str, float]]:
    """Move KV over each transport, between two processes; give a finding, the transport and its GB/s."""
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    first = {plan.scheme: plan for plan in reversed(plans(device))}
    for scheme in dict.fromkeys(plan.scheme for plan in plans(device)):
        try:
            found = measure(msgspec.structs.replace(first[scheme], num_transfers=2, repeats=1), rounds=2)
        except Exception as error:  # whatever a transport's library raises, the next one is tried
            reason = f"{scheme} does not work: {type(error).__name__}: {error}".splitlines()[0][:200]
            yield Finding("note", "link", f"{reason}.", WAYS_OUT.get(scheme, "")), scheme, 0.0
            continue
        text = f"{scheme} {found.ours.rate:.3g} GB/s, {found.exposed_ms:.1f} ms after a prompt's last chunk"
        yield Finding("ok", "link", text), scheme, found.ours.rate


WAYS_OUT = {
    "shm": "Workers of one host fall back to ipc. In containers share /dev/shm and the IPC and PID namespaces: --ipc host.",
    "shm_ring": "GPUs of one host that cannot read each other fall back to ipc. Containers share the PID namespace: --pid host.",
    "cuda_ipc": "KV then crosses the host's memory. GPUs of one host need peer access, and containers --ipc host --pid host.",
    "ipc": "Unix sockets need a folder that both workers can write.",
    "tcp": "Check that this host may open sockets on its loopback.",
}
