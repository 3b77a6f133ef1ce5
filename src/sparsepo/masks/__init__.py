"""Masks: which tokens carry reward and which carry KL."""

from .activation import ActivationMask
from .base import MASK_ON, POSITIONS, Masker, MaskInputs, NoiseKey, TokenMasks
from .gates import GATES, Gate
from .initialise import FitResult, fit_to_targets
from .kinds import MASKS, build_mask
from .learned import LearnedMask
from .published import import_published_mask
from .saving import load_mask, read_mask_info, save_mask
from .simple import DataMask, DenseMask, RandomMask
from .statistics import mask_statistics

__all__ = [
    "GATES",
    "MASKS",
    "MASK_ON",
    "POSITIONS",
    "ActivationMask",
    "DataMask",
    "DenseMask",
    "FitResult",
    "Gate",
    "LearnedMask",
    "MaskInputs",
    "Masker",
    "NoiseKey",
    "RandomMask",
    "TokenMasks",
    "build_mask",
    "fit_to_targets",
    "import_published_mask",
    "load_mask",
    "mask_statistics",
    "read_mask_info",
    "save_mask",
]
