"""The numbers at the end of a run, as a table in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

# metric → what it is; shown in this order, where present
MAIN_METRICS = {
    "loss": "loss",
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "reward margin",
    "rewards/chosen": "reward of chosen",
    "rewards/rejected": "reward of rejected",
    "kl/chosen": "KL of chosen, per response",
    "kl/rejected": "KL of rejected, per response",
    "kl/chosen_per_token": "KL of chosen, per token",
    "kl/rejected_per_token": "KL of rejected, per token",
    "mask/reward/mean": "reward mask, mean",
    "mask/reward/sparsity": "reward mask, share of zeros",
    "mask/kl/mean": "KL mask, mean",
    "mask/kl/sparsity": "KL mask, share of zeros",
    "mask/effective_beta": "effective β",
    "mean_token_accuracy": "token accuracy",
    "entropy": "entropy",
}


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are finite numbers."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def last_logged(history: list[dict[str, Any]]) -> dict[str, float]:
    """The latest value of every training metric of a trainer's log history."""
    latest: dict[str, float] = {}
    for entry in history:
        latest.update(finite({k: v for k, v in entry.items() if not k.startswith(("eval_", "train_"))}))
    return latest


def final_evaluation(trainer: Any) -> dict[str, float]:
    """Evaluation of the model as training left it; not repeated where training ended with one."""
    state = trainer.state
    last = next((entry for entry in reversed(state.log_history) if "eval_loss" in entry), None)
    if last is None or last["step"] != state.global_step or trainer.args.load_best_model_at_end:
        last = trainer.evaluate()
    return finite(without_prefix(last))


def metrics_table(title: str, columns: Mapping[str, Mapping[str, Any]], everything: bool = False) -> Any:
    """A rich table of metrics.

    Args:
        title: above the table.
        columns: name of a column → its metrics, names without ``eval_``.
        everything: also the metrics that are not among the main ones.
    """
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    names = [name for name in MAIN_METRICS if any(name in values for values in columns.values())]
    if everything:
        names += sorted({name for values in columns.values() for name in values} - set(names))
    for name in names:
        label = name if everything else MAIN_METRICS[name]
        table.add_row(label, *(shown(values.get(name)) for values in columns.values()))
    return table


def text_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    """A rich table of texts that are shown as they are; every column but the first is right-aligned."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for place, name in enumerate(header):
        table.add_column(Text(name), justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def say(console: Any, text: str) -> None:
    """Print a line as it is, unwrapped; nothing on processes without a console."""
    if console is not None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def shown(value: Any) -> str:
    """A number with four significant digits."""
    if value is None:
        return "–"
    value = float(value)
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.2e}"


def without_prefix(metrics: Mapping[str, Any], prefix: str = "eval_") -> dict[str, Any]:
    """Metrics of one evaluation, their names without its prefix."""
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
