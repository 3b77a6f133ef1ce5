"""A recipe → the stages of its experiment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsepo.data.reading import data_suffix

from .recipe import ROLES, SFT, Recipe
from .stages import Plan, Stage

# files that a stage reads, by its group
_PREPARED = ("rows",)
_LISTS = ("vader", "opinion")


def resolve_sources(recipe: Recipe, data_dir: str | None = None) -> dict[str, list[str]]:
    """Where the data lie: names of the recipe are looked for in ``data_dir``; what looks like no file is the hub's.

    Raises:
        ValueError: files that are not there, all of them by name.
    """
    found: dict[str, list[str]] = {}
    missing = []
    for role, names in recipe.data.items():
        for name in names:
            path = Path(name).expanduser()
            inside = path if data_dir is None or path.is_absolute() else Path(data_dir).expanduser() / path
            if inside.exists() or path.exists():
                found.setdefault(role, []).append(str(inside if inside.exists() else path))
            elif _is_file_name(name):
                missing.append(f"{role}: {inside}")
            else:
                found.setdefault(role, []).append(name)
    if missing:
        roles = "\n".join(f"  {role:<10}{about}" for role, about in ROLES[recipe.task].items())
        raise ValueError(
            f"{len(missing)} data file{'s are' if len(missing) > 1 else ' is'} missing:\n  "
            + "\n  ".join(missing)
            + f"\nGive their folder with --data_dir, or others with --data ROLE=FILE. Roles of {recipe.task}:\n{roles}"
        )
    for role in _needed(recipe):
        if role not in found:
            raise ValueError(f"{recipe.task} needs {role} ({ROLES[recipe.task][role]}): give --data {role}=FILE.")
    return found


def _is_file_name(name: str) -> bool:
    path = Path(name)
    return data_suffix(path) is not None or path.suffix in (".zip", ".gz", ".txt") or name.startswith((".", "/", "~"))


def _needed(recipe: Recipe) -> Iterator[str]:
    if recipe.task != "playground":
        yield "rows"
    if recipe.reward.get("trained_on") == "labelled":
        yield "labelled"
    if recipe.reward["kind"] == "lexicon" or recipe.evaluate["yardstick"] == "words":
        yield from _LISTS


def plan_of(recipe: Recipe, sources: dict[str, list[str]]) -> Plan:
    """The stages: data → SFT → pairs → reward model, then for each seed, β and method training and its evaluation.

    Seeds come first, so that an experiment that is cut short compares all methods on the first ones.
    """
    return Plan.of(recipe.task, recipe.size, _stages(recipe, sources))


def _stages(recipe: Recipe, sources: dict[str, list[str]]) -> Iterator[Stage]:
    shared: dict[str, str] = {}
    if recipe.task != "playground":
        action = "problems" if recipe.task == "code" else "rows"
        yield Stage("data", "data", action, recipe.prepare, _of(sources, _PREPARED))
        shared["data"] = "data"
    for place, seed in enumerate(recipe.seeds):
        if place == 0 or recipe.sft_per_seed or recipe.task == "playground":
            made = list(_materials(recipe, sources, shared, seed))
            yield from made
            own = {**shared, **{stage.group: stage.name for stage in made}}
        yield from _runs(recipe, sources, own, seed)


def _materials(recipe: Recipe, sources: dict[str, list[str]], shared: dict[str, str], seed: int) -> Iterator[Stage]:
    """SFT, pairs and reward model, which all runs (or those of a seed) share."""
    per_seed = recipe.sft_per_seed or recipe.task == "playground"
    tail = f" seed {seed}" if per_seed else ""
    own_seed = seed if per_seed else 0
    sft = f"sft{tail}"
    if recipe.task == "playground":
        yield Stage(sft, "sft", "world_sft", {**recipe.prepare, "seed": own_seed})
        yield Stage(f"pairs{tail}", "pairs", "world_pairs", {**recipe.prepare, "seed": own_seed}, needs={"sft": sft})
        return
    needs = {"data": "data"}
    start: dict[str, list[str]] = {}
    if recipe.start is None:
        uses = recipe.prepare["sft_texts"] != "none"
        settings = {"flags": recipe.sft, "seed": own_seed}
        yield Stage(sft, "sft", "sft", settings, _of(sources, ("texts",)), needs if uses else {})
        model = {"sft": sft}
    else:
        start, model = {"sft": [recipe.start]}, {}
    if recipe.task == "code":
        action = recipe.pairs["source"]
        needed = {**needs, **model} if action == "sampled" else needs
        given = start if action == "sampled" else {}
        yield Stage(
            f"pairs{tail}", "pairs", action, {**recipe.pairs, "seed": recipe.pairs["seed"] + own_seed}, given, needed
        )
    elif not tail or seed == recipe.seeds[0]:
        yield Stage("pairs", "pairs", "pairs", recipe.pairs, needs=needs)
    if recipe.reward["kind"] == "trained":
        on = recipe.reward["trained_on"]
        needed = {**model, **({"data": "data"} if on == "scored" else {"pairs": "pairs"} if on == "pairs" else {})}
        files = {**start, **(_of(sources, ("labelled",)) if on == "labelled" else {})}
        yield Stage(f"reward{tail}", "reward", "reward", recipe.reward, files, needed)


def _runs(recipe: Recipe, sources: dict[str, list[str]], own: dict[str, str], seed: int) -> Iterator[Stage]:
    needs: dict[str, str] = {role: own[role] for role in ("data", "sft", "pairs", "reward") if role in own}
    needs.setdefault("pairs", "pairs")
    start = {} if recipe.start is None else {"sft": [recipe.start]}
    lists = (
        _of(sources, _LISTS) if "words" in (recipe.evaluate["yardstick"],) or recipe.reward["kind"] == "lexicon" else {}
    )
    wanted = [(method, beta) for beta in _betas(recipe) for method in recipe.methods if beta in recipe.betas_of(method)]
    for method, beta in wanted:
        row = {"method": method, "beta": beta, "seed": seed}
        name = run_name(method, beta, seed)
        judged = dict(needs)
        if method != SFT:
            flags = recipe.flags_of(method, beta or 0.0)
            given: dict[str, str] = {role: needs[role] for role in ("sft", "pairs") if role in needs}
            yield Stage(f"train {name}", "train", "train", {"flags": flags, "seed": seed}, start, given, row)
            judged["train"] = f"train {name}"
        yield Stage(
            f"evaluate {name}", "evaluate", "evaluate", _evaluation(recipe, seed), {**start, **lists}, judged, row
        )


def _betas(recipe: Recipe) -> list[float | None]:
    values = [beta for method in recipe.methods for beta in recipe.betas_of(method)]
    return list(dict.fromkeys(values))


def _evaluation(recipe: Recipe, seed: int) -> dict[str, Any]:
    lengths = {name: recipe.train[name] for name in ("max_length", "max_prompt_length") if name in recipe.train}
    reward = {name: recipe.reward[name] for name in ("kind", "model", "label")}
    if recipe.reward["kind"] == "rouge":
        reward["scale"] = 100  # it was 1 once: runs judged so are judged again, and not mixed with others
    world = {"world": True} if recipe.task == "playground" else {}
    return {**recipe.evaluate, "seed": seed, "reward": reward, "lengths": lengths, "task": recipe.task, **world}


def _of(sources: dict[str, list[str]], roles: tuple[str, ...]) -> dict[str, list[str]]:
    return {role: sources[role] for role in roles if role in sources}


def run_name(method: str, beta: float | None, seed: int) -> str:
    """What a run is called."""
    return f"{method}{'' if beta is None else f' β {beta:g}'} seed {seed}"
