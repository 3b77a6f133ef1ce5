"""Objectives, masks and scoring joined to TRL's trainer."""

from .collator import PreferenceCollator
from .config import SparsePOConfig
from .interruption import TrainingInterrupted
from .non_finite import NonFiniteError
from .sealing import CheckpointError
from .trainer import SparsePOTrainer

__all__ = [
    "CheckpointError",
    "NonFiniteError",
    "PreferenceCollator",
    "SparsePOConfig",
    "SparsePOTrainer",
    "TrainingInterrupted",
]
