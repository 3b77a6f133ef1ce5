"""Accelerators by name: public numbers of their makers, with where they stand."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

GIB = 1 << 30
GB = 10**9


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Args:
        name: as people call it.
        memory: bytes of its memory.
        bf16_flops: dense bfloat16 operations a second with float32 sums (no sparsity).
        bandwidth: bytes a second of its memory.
        link: bytes a second to its neighbours in a machine, one direction.
        source: where the numbers stand.
    """

    name: str
    memory: float
    bf16_flops: float
    bandwidth: float
    link: float
    source: str


def _device(name: str, gb: float, tflops: float, gb_s: float, link_gb_s: float, source: str) -> Device:
    return Device(name, gb * GIB, tflops * 1e12, gb_s * GB, link_gb_s * GB, source)


_NVIDIA = "NVIDIA data sheet"
# Memory: GiB that a process sees may be 1-3 % less. Where a maker gives operations with sparsity, half of them stand here.
DEVICES = {
    device.name: device
    for device in (
        _device("A10", 24, 125, 600, 32, f"{_NVIDIA} A10"),
        _device("L4", 24, 121, 300, 32, f"{_NVIDIA} L4"),
        _device("L40S", 48, 362, 864, 32, f"{_NVIDIA} L40S"),
        _device("RTX3090", 24, 71, 936, 32, "NVIDIA Ampere GA102 whitepaper"),
        _device("RTX4090", 24, 165, 1008, 32, "NVIDIA Ada whitepaper"),
        _device("A100-40GB", 40, 312, 1555, 300, f"{_NVIDIA} A100"),
        _device("A100-80GB", 80, 312, 2039, 300, f"{_NVIDIA} A100"),
        _device("H100", 80, 989, 3350, 450, f"{_NVIDIA} H100 SXM"),
        _device("H100-PCIe", 80, 756, 2000, 64, f"{_NVIDIA} H100 PCIe"),
        _device("H200", 141, 989, 4800, 450, f"{_NVIDIA} H200 SXM"),
        _device("B200", 180, 2250, 8000, 900, f"{_NVIDIA} DGX B200"),
        _device("MI300X", 192, 1307, 5300, 448, "AMD data sheet Instinct MI300X"),
    )
}


def device_of(name: str) -> Device:
    """The device of a name, whatever its case.

    Raises:
        ValueError: none such; names the nearest and the way out.
    """
    known = {key.lower().replace("-", ""): value for key, value in DEVICES.items()}
    wanted = name.lower().replace("-", "").replace(" ", "")
    if wanted == "a100":
        wanted = "a10080gb"
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=1)
        hint = f"; did you mean {known[near[0]].name}?" if near else ""
        raise ValueError(
            f"gpu={name!r} is none of {', '.join(DEVICES)}{hint} Give its numbers by hand: --gpu_memory and --gpu_flops."
        )
    return known[wanted]
