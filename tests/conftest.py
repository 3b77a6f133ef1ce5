"""Fixtures for the whole suite: one thread, offline, and the folder of golden values where it exists."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
import torch

# Triton kernels run on the CPU where there is no GPU; triton reads this when it is imported, which others may do first
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import HealthCheck, settings

SHARED = Path(__file__).resolve().parents[2] / "shared"

settings.register_profile(
    "sparsepo", deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("sparsepo")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """Values computed with the official code."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("golden values of the official code are not beside this checkout (../shared/golden)")
    return folder


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real preference data."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("real data are not beside this checkout (../shared/data)")
    return folder
