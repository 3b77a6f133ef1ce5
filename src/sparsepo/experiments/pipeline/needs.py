"""What an experiment would do and need, without doing anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .recipe import ROLES, SFT, Recipe
from .stages import GROUPS, Plan


@dataclass(frozen=True)
class Needs:
    """An experiment before it starts.

    Args:
        stages: how many, by group.
        grid: in words, a line a method.
        data: (role, where, size in words).
        models: (used for, name).
        disk_gb: an estimate of what the runs' models take together.
    """

    stages: dict[str, int]
    grid: tuple[str, ...]
    data: tuple[tuple[str, str, str], ...]
    models: tuple[tuple[str, str], ...]
    disk_gb: float


def needs_of(recipe: Recipe, plan: Plan, sources: Mapping[str, list[str]]) -> Needs:
    """Read off recipe and plan."""
    counts = Counter(stage.group for stage in plan.stages.values())
    grid = []
    for method in recipe.methods:
        betas = [f"{beta:g}" for beta in recipe.betas_of(method) if beta is not None]
        seeds = ", ".join(map(str, recipe.seeds))
        grid.append(f"{method}: " + (f"β {', '.join(betas)}; " if betas else "") + f"seeds {seeds}")
    data = [(role, item, _size(item)) for role, items in sources.items() for item in items]
    kept = counts["train"] if recipe.keep_models else 1
    trained = kept + (counts["sft"] if recipe.start is None else 0)
    return Needs(
        {group: counts[group] for group in GROUPS if counts[group]},
        tuple(grid),
        tuple(data),
        tuple(_models(recipe)),
        round(recipe.disk_gb * trained, 2),
    )


def _models(recipe: Recipe) -> list[tuple[str, str]]:
    found = []
    if recipe.task == "playground":
        found.append((SFT, "a small one, made here"))
    elif recipe.start is not None:
        found.append(("start of all runs", recipe.start))
    else:
        name: Any = recipe.sft.get("model_name_or_path") or f"{recipe.sft.get('init_from_config')} with random weights"
        found.append((SFT, name))
    if recipe.reward["kind"] == "trained":
        found.append(("reward", "a small one, trained here from the SFT model"))
    elif recipe.reward.get("model"):
        found.append(("reward", recipe.reward["model"]))
    return found


def _size(source: str) -> str:
    path = Path(source).expanduser()
    if not path.exists():
        return "from the hub"
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    return f"{size / 2**20:.1f} MB" if size >= 2**18 else f"{size / 2**10:.0f} KB"


def role_help(task: str) -> str:
    """The data of a task, a line a role."""
    return "\n".join(f"  {role}: {about.replace('* ', '')}" for role, about in ROLES[task].items())
