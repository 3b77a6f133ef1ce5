"""Objectives, masks and scoring joined to TRL's trainer."""

from sparsepo.compatibility import check_versions

check_versions()  # before anything that another version of TRL or transformers would break

from .collator import PreferenceCollator  # noqa: E402
from .config import SparsePOConfig  # noqa: E402
from .trainer import SparsePOTrainer  # noqa: E402

__all__ = ["PreferenceCollator", "SparsePOConfig", "SparsePOTrainer"]
