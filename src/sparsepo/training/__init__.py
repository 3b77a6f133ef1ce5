"""Objectives, masks and scoring joined to TRL's trainer."""

from sparsepo.compatibility import check_versions

check_versions()  # before anything that another version of TRL or transformers would break

from .collator import PreferenceCollator  # noqa: E402
from .config import SparsePOConfig  # noqa: E402
from .interruption import TrainingInterrupted  # noqa: E402
from .non_finite import NonFiniteError  # noqa: E402
from .sealing import CheckpointError  # noqa: E402
from .trainer import SparsePOTrainer  # noqa: E402

__all__ = [
    "CheckpointError",
    "NonFiniteError",
    "PreferenceCollator",
    "SparsePOConfig",
    "SparsePOTrainer",
    "TrainingInterrupted",
]
