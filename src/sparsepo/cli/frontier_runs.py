"""The runs of ``sparsepo frontier``: from what was typed to checkpoints, references, and names of methods."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .base import CliError
from .models import checkpoints_hint, is_adapter
from .run_folder import SUMMARY, checkpoints_in
from .saved_runs import adapter_start, saved_settings

# of a mask's or objective's settings: what does not make another method
_NOT_THE_METHOD = ("beta", "seed", "init")


@dataclass(frozen=True)
class FrontierRun:
    """One training run.

    Args:
        method: what it is called.
        beta, seed: None where the folder does not say.
        folder: of the run or model.
        reference: folder or hub id of the model that it started from.
        checkpoints: (optimiser step, folder), in order.
        settings: objective and mask apart from β and seeds, which runs of one method must share.
        named: whether the method's name was typed.
    """

    method: str
    beta: float | None
    seed: int | None
    folder: str
    reference: str
    checkpoints: tuple[tuple[int, str], ...]
    settings: Any
    named: bool


def find_runs(texts: Sequence[str], ref_model: str | None, keep: str) -> list[FrontierRun]:
    """Runs of ``FOLDER``, ``NAME=FOLDER`` and ``NAME=FOLDER:REF``.

    Args:
        texts: as typed.
        ref_model: reference of runs that name none themselves.
        keep: ``all`` checkpoints, the ``last``, or at most so many, spread evenly.

    Raises:
        CliError: a folder that is missing or holds no model, no reference, or runs that cannot be told apart.
    """
    runs = [_chosen(_run_of(text, ref_model), keep) for text in texts]
    runs = _with_seeds(runs)
    _refuse_mixtures(runs)
    return runs


def _run_of(text: str, ref_model: str | None) -> FrontierRun:
    name, folder, reference = _parsed(text)
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise CliError(f"{text}: there is no folder {place}.")
    checkpoints = _checkpoints(place)
    if not checkpoints:
        raise CliError(
            f"{text}: {place} holds neither checkpoints nor a model.{checkpoints_hint(place)} Train with --save_strategy "
            "steps to have several points."
        )
    saved = saved_settings(checkpoints[-1][1])
    found = reference or ref_model or _reference(checkpoints[-1][1], saved)
    if found is None:
        raise CliError(
            f"{text} does not say what it was trained from: write NAME={folder}:REFERENCE, or give --ref_model."
        )
    _check_model(found, text)
    if not name and not saved:
        raise CliError(f"{text} was not trained by sparsepo train: name it, NAME={folder}:REFERENCE.")
    summary = _summary(place)
    seed = saved.get("seed", summary.get("settings", {}).get("seed"))
    objective = saved.get("objective", {})
    return FrontierRun(
        name or method_name(saved),
        objective.get("beta"),
        None if seed is None else int(seed),
        str(place),
        found,
        tuple(checkpoints),
        _settings(saved),
        bool(name),
    )


def _parsed(text: str) -> tuple[str, str, str | None]:
    """Name, folder and reference; a folder that exists may hold equals signs and colons."""
    if Path(text).expanduser().is_dir():
        return "", text, None
    name, equals, rest = text.partition("=")
    if not equals or not name:
        return "", text, None
    if Path(rest).expanduser().is_dir():
        return name, rest, None
    folder, colon, reference = rest.partition(":")
    return (name, folder, reference) if colon and reference else (name, rest, None)


def _checkpoints(place: Path) -> list[tuple[int, str]]:
    """(step, folder) of a run's checkpoints and of its end, in order; a plain model is one point at step 0."""
    found = {int(path.name.split("-")[1]): str(path) for path in checkpoints_in(place)}
    if not any((place / file).is_file() for file in ("config.json", "adapter_config.json")):
        return sorted(found.items())
    step = _summary(place).get("steps")
    if step is None:
        state = place / "trainer_state.json"
        step = json.loads(state.read_text(encoding="utf-8"))["global_step"] if state.is_file() else None
    loads_best = bool(_summary(place).get("settings", {}).get("load_best_model_at_end"))
    if not (loads_best and found):  # then the folder holds one of its checkpoints
        found.setdefault(step or 0, str(place))
    return sorted(found.items())


def _summary(place: Path) -> dict[str, Any]:
    path = place / SUMMARY
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _reference(folder: str, saved: dict[str, Any]) -> str | None:
    """Where training started: KL is counted from there, also where the reference moved later (sync_ref_model)."""
    started_from = adapter_start(folder)
    if started_from is not None:
        return started_from
    if is_adapter(folder):
        from peft import PeftConfig

        return PeftConfig.from_pretrained(folder).base_model_name_or_path
    base = saved.get("base_model")
    return None if base is None else str(base)


def _check_model(name: str, text: str) -> None:
    place = Path(name).expanduser()
    if place.is_dir():
        if not any((place / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise CliError(f"{text}: its reference {name} holds no model (no config.json).")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CliError(
            f"{text}: its reference {name} is not there; give it, NAME=FOLDER:REFERENCE or --ref_model REFERENCE."
        )


def method_name(saved: dict[str, Any]) -> str:
    """An objective's display name, with what its masks are."""
    from sparsepo.objectives import get_objective_class

    objective = get_objective_class(saved["objective"]["name"])
    mask = saved.get("mask")
    if mask is None or not objective.reads_masks:
        return objective.display_name
    parts = [] if mask["kind"] in ("learned", "activation") else [mask["kind"]]
    if mask.get("mask_on", "both") != "both":
        parts.append(f"{mask['mask_on']} only")
    elif "sharing" in mask:
        parts.append(mask["sharing"])
    return f"{objective.display_name} ({', '.join(parts)})" if parts else objective.display_name


def _settings(saved: dict[str, Any]) -> dict[str, Any]:
    return {
        part: {name: value for name, value in (saved.get(part) or {}).items() if name not in _NOT_THE_METHOD}
        for part in ("objective", "mask")
    }


def _chosen(run: FrontierRun, keep: str) -> FrontierRun:
    if keep == "all":
        return run
    count = 1 if keep == "last" else int(keep)
    total = len(run.checkpoints)
    places = sorted({round((place + 1) * total / min(count, total)) - 1 for place in range(min(count, total))})
    return replace(run, checkpoints=tuple(run.checkpoints[place] for place in places))


def _with_seeds(runs: Sequence[FrontierRun]) -> list[FrontierRun]:
    """Runs that name no seed get the numbers 0, 1, … by method and β, in the order in which they were given."""
    counted: dict[tuple[str, float | None], int] = {}
    found = []
    for run in runs:
        if run.seed is None:
            key = run.method, run.beta
            counted[key] = counted.get(key, -1) + 1
            run = replace(run, seed=counted[key])
        found.append(run)
    return found


def _refuse_mixtures(runs: Sequence[FrontierRun]) -> None:
    seen: dict[tuple[str, float | None, int | None], FrontierRun] = {}
    first: dict[str, FrontierRun] = {}
    for run in runs:
        key = run.method, run.beta, run.seed
        if key in seen:
            raise CliError(
                f"{seen[key].folder} and {run.folder} are both {run.method}, β {run.beta}, seed {run.seed}: name one "
                "otherwise, NAME=FOLDER."
            )
        seen[key] = run
        other = first.setdefault(run.method, run)
        if run.settings != other.settings and not (run.named and other.named):
            differing = [
                name
                for part in run.settings
                for name in {**run.settings[part], **other.settings[part]}
                if run.settings[part].get(name) != other.settings[part].get(name)
            ]
            raise CliError(
                f"{other.folder} and {run.folder} are both called {run.method} and differ in {', '.join(differing)}: name "
                "them, NAME=FOLDER, to show them apart or as one."
            )
