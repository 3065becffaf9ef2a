"""What a device can do in numbers: measured here, or for a plan taken from a table.

The table has what vendors state (bytes a second of memory, dense 16-bit operations a second with fp32 sums, bytes a second
to a neighbour), each with its source, and the part of it that a large copy and a large product reach, where that was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from baton.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Figures:
    """One device."""

    name: str
    memory_gib: float
    memory_gbps: float
    """GB/s that a large copy reads and writes."""
    product_tflops: float
    """TFLOP/s of a large product, in the model's type."""
    source: str
    neighbour_gbps: float = 0.0
    """GB/s that one device reads of another's memory, in the same host; 0: not at all."""
    is_gpu: bool = True

    def as_json(self) -> dict[str, object]:
        """Return what a program reads."""
        return {
            "name": self.name,
            "memory_gib": self.memory_gib,
            "memory_gb_per_s": self.memory_gbps,
            "product_tflop_per_s": self.product_tflops,
            "neighbour_gb_per_s": self.neighbour_gbps,
            "source": self.source,
        }


_COPY, _PRODUCT = 0.9, 0.73
"""Parts of the vendor's figures that are reached, as on the H100 and H200 where both were measured."""
_NEIGHBOUR = 0.3
"""Of the vendor's NVLink bytes that KV with all its checks reaches, as measured between two H100: 136 of 450 GB/s."""


def _stated(name: str, memory_gib: float, gbps: float, tflops: float, neighbour_gbps: float, sheet: str) -> Figures:
    """Make the entry of a device that was not measured."""
    source = f"{sheet}: {gbps:g} GB/s, {tflops:g} TFLOP/s; of these {_COPY:.0%} and {_PRODUCT:.0%} are taken"
    return Figures(name, memory_gib, _COPY * gbps, _PRODUCT * tflops, source, _NEIGHBOUR * neighbour_gbps)


DEVICES = {
    "h100": Figures("H100 SXM 80 GB", 79, 3019, 724, "measured, one NVIDIA H100 80GB HBM3 (stated 3350, 989)", 136),
    "h200": Figures("H200 SXM 141 GB", 140, 4300, 790, "measured, one NVIDIA H200 (stated 4800, 989)", 136),
    "h100-pcie": _stated("H100 PCIe 80 GB", 79, 2000, 756, 0, "NVIDIA H100 datasheet"),
    "b200": _stated("B200 180 GB", 178, 8000, 2250, 900, "NVIDIA DGX B200 datasheet"),
    "a100": _stated("A100 SXM 80 GB", 79, 2039, 312, 300, "NVIDIA A100 datasheet"),
    "a100-40gb": _stated("A100 SXM 40 GB", 39, 1555, 312, 300, "NVIDIA A100 datasheet"),
    "a100-pcie": _stated("A100 PCIe 80 GB", 79, 1935, 312, 0, "NVIDIA A100 datasheet"),
    "l40s": _stated("L40S 48 GB", 44, 864, 362, 0, "NVIDIA L40S datasheet"),
    "l4": _stated("L4 24 GB", 22, 300, 121, 0, "NVIDIA L4 datasheet"),
    "a10": _stated("A10 24 GB", 22, 600, 125, 0, "NVIDIA A10 datasheet"),
    "a10g": _stated("A10G 24 GB", 22, 600, 70, 0, "AWS, EC2 G5 instances"),
    "rtx-4090": _stated("RTX 4090 24 GB", 23, 1008, 165, 0, "NVIDIA Ada GPU architecture whitepaper"),
}
"""By the name that --plan takes. Those without NVLink have no neighbour: their KV crosses the host's memory."""


def planned(name: str, field: str = "plan") -> Figures:
    """Find a device of the table; `field` is what named it.

    Raises:
        ConfigError: it has none such.
    """
    key = name.lower().replace("_", "-").replace(" ", "-").removeprefix("nvidia-")
    for known in (key, f"rtx-{key}"):
        if known in DEVICES:
            return DEVICES[known]
    raise ConfigError(f"{field}={name!r} is not in the table. It has {', '.join(DEVICES)}.")
