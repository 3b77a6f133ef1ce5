"""What each kind of stage does. Actions are imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from .jobs import Job

# action → module:function of this folder. A stage's key holds the action's name, not its code.
ACTIONS = {
    "rows": "preparing:prepare_rows",
    "pairs": "preparing:make_pairs",
    "sft": "commands_stages:supervised",
    "train": "commands_stages:preference",
    "reward": "reward_stage:train_reward",
    "evaluate": "policies:evaluate",
    "world_sft": "world_stages:world_sft",
    "world_pairs": "world_stages:world_pairs",
    "problems": "programs:prepare_problems",
    "mutants": "programs:mutant_pairs",
    "sampled": "programs:sampled_pairs",
}


def do(job: Job) -> dict[str, Any]:
    """Do a stage; returns what it found, JSON types, with ``summary`` in words."""
    module, function = ACTIONS[job.stage.action].split(":")
    found: dict[str, Any] = getattr(importlib.import_module(f"{__package__}.{module}"), function)(job)
    return found
