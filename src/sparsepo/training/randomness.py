"""The run's random numbers, kept from those who only look."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """Random numbers (Python's, NumPy's, torch's on the CPU and the current GPU) go on afterwards as if none was drawn."""
    plain, of_numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(of_numpy)
