"""What a run prints while it goes: one short line a log step instead of a dictionary of fifty numbers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from transformers import PrinterCallback, ProgressCallback

from .tables import shown

# metric → its short name in a line
_SHORT = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "kl/chosen": "KL chosen",
    "kl/rejected": "KL rejected",
    "mask/reward/mean": "mask",
    "mask/reward/sparsity": "zeros",
    "mask/effective_beta": "effective β",
    "mean_token_accuracy": "token accuracy",
}


def log_line(logs: Mapping[str, Any], step: int, of: int) -> str | None:
    """One line for a log entry, or None for entries that hold none of the main metrics."""
    is_evaluation = any(name.startswith("eval_") for name in logs)
    values = {name.removeprefix("eval_"): value for name, value in logs.items()}
    parts = [f"{short} {shown(values[name])}" for name, short in _SHORT.items() if _is_number(values.get(name))]
    if not parts:
        return None
    if is_evaluation:
        return f"step {step}/{of}  evaluation: {', '.join(parts)}"
    return f"step {step}/{of}  {', '.join(parts)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class ShortProgress(ProgressCallback):
    """Trainer's progress bar with short log lines."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        line = log_line(logs or {}, state.global_step, state.max_steps)
        if state.is_world_process_zero and line is not None:
            if self.training_bar is not None:
                self.training_bar.write(line)
            else:
                print(line, flush=True)


class ShortPrinter(PrinterCallback):
    """Short log lines without a bar, for files and pipes."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        line = log_line(logs or {}, state.global_step, state.max_steps)
        if state.is_world_process_zero and line is not None:
            print(line, flush=True)


def shorten_logs(trainer: Any) -> None:
    """Give a trainer the short lines. All metrics still reach its log history and its loggers."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ShortPrinter if trainer.args.disable_tqdm else ShortProgress)


def quiet_settings(config: Any, given: set[str]) -> None:
    """Settings that only spare noise, unless they were given: no bars into files, no pinned memory without a GPU."""
    import torch

    if "dataloader_pin_memory" not in given and not torch.cuda.is_available():
        config.dataloader_pin_memory = False
    if sys.stderr.isatty():
        return
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    if "disable_tqdm" not in given:
        config.disable_tqdm = True


def quiet_loading() -> None:
    """No bar for each model that is loaded: a command that loads many of them shows its own progress."""
    from transformers.utils import logging

    logging.disable_progress_bar()
