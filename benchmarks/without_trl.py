"""The code of a training step where TRL is not installed.

``sparsepo.training.step`` needs PyTorch and transformers alone, but the files it stands beside import TRL. Where TRL is
there, nothing is done. Where it is not, the names that trl_bridge.py imports are empty stand-ins, and the package's
``__init__``, which brings the trainer, is left out: the step's own code is the repository's, unchanged.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

_NAMES = {
    "trl": ("DPOConfig", "DPOTrainer"),
    "trl.data_utils": ("common_prefix_length", "is_conversational"),
    "trl.trainer": (),
    "trl.trainer.callbacks": ("SyncRefModelCallback",),
    "trl.trainer.dpo_trainer": ("DataCollatorForPreference",),
    "trl.trainer.utils": ("use_adapter",),
}


def prepare() -> bool:
    """Make ``sparsepo.training.step`` importable. Returns whether TRL is installed."""
    if importlib.util.find_spec("trl") is not None:
        return True
    for name, members in _NAMES.items():
        module: Any = types.ModuleType(name)
        module.__path__ = []
        for member in members:
            setattr(module, member, type(member, (), {}))
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    # no process shards weights here: there is nothing to gather
    sys.modules["trl.trainer.utils"].maybe_gather_lm_head_ctx = lambda *_: contextlib.nullcontext()  # type: ignore[attr-defined]
    import sparsepo

    package: Any = types.ModuleType("sparsepo.training")
    package.__path__ = [str(Path(sparsepo.__file__).parent / "training")]
    sys.modules["sparsepo.training"] = package
    return False
