"""Objectives, masks and scoring joined to TRL's trainer."""

from .collator import PreferenceCollator
from .config import SparsePOConfig
from .trainer import SparsePOTrainer

__all__ = ["PreferenceCollator", "SparsePOConfig", "SparsePOTrainer"]
