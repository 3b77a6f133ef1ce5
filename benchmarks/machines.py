"""What a benchmark ran on, where not everything is installed."""

from __future__ import annotations

import importlib.util

import torch
from common import machine, processor

from sparsepo.scoring.triton_rows import triton_is_available


def trl_is_available() -> bool:
    """Whether TRL's trainers and heads can be measured beside ours."""
    return importlib.util.find_spec("trl") is not None


def machine_with_what_is_there(device: str) -> str:
    """As :func:`common.machine`, without TRL's and transformers' versions where they are absent, and with triton's."""
    if trl_is_available():
        where = machine(device)
    else:
        name = torch.cuda.get_device_name(0) if device.startswith("cuda") else processor()
        where = f"{name}, {torch.get_num_threads()} thread(s), torch {torch.__version__.split('+')[0]}"
    if triton_is_available():
        import triton

        where += f", triton {triton.__version__}"
    return where
