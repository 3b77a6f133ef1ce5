"""TRL's supervised fine-tuning, guarded as our own training is."""

from __future__ import annotations

from trl import SFTTrainer

from .run_guard import RunGuard


class GuardedSFTTrainer(RunGuard, SFTTrainer):
    """TRL's ``SFTTrainer`` with sealed checkpoints, a folder of its own, an end at SIGTERM and Ctrl-C after a checkpoint.

    Takes what ``SFTTrainer`` takes; ``train`` raises as :meth:`RunGuard.train` says.
    """
