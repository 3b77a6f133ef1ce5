"""sparsepo: token-level preference alignment for any Hugging Face causal LM (SparsePO, arXiv 2410.05102)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Loaded on first use: `import sparsepo` and `sparsepo --help` must not wait for TRL.
_LAZY = {
    "SparsePOConfig": "sparsepo.training",
    "SparsePOTrainer": "sparsepo.training",
    "LearnedMask": "sparsepo.masks",
    "ActivationMask": "sparsepo.masks",
    "DenseMask": "sparsepo.masks",
    "RandomMask": "sparsepo.masks",
    "DataMask": "sparsepo.masks",
    "load_mask": "sparsepo.masks",
    "import_published_mask": "sparsepo.masks",
}

__all__ = [
    "ActivationMask",
    "DataMask",
    "DenseMask",
    "LearnedMask",
    "RandomMask",
    "SparsePOConfig",
    "SparsePOTrainer",
    "__version__",
    "import_published_mask",
    "load_mask",
]

if TYPE_CHECKING:
    from sparsepo.masks import (
        ActivationMask,
        DataMask,
        DenseMask,
        LearnedMask,
        RandomMask,
        import_published_mask,
        load_mask,
    )
    from sparsepo.training import SparsePOConfig, SparsePOTrainer


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'sparsepo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
