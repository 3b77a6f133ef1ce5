"""Recipes of experiments: which task at which size, checked before anything starts."""

from __future__ import annotations

import difflib
import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .sections import EVALUATE, PAIRS, PREPARE, REWARD, check_section

TASKS = ("sentiment", "dialogue", "summarisation", "code", "playground")
SIZES = ("smoke", "small", "paper")
SFT = "SFT"
# method → settings of `sparsepo train`; SFT is the model that all of them start from
METHODS: dict[str, dict[str, Any]] = {
    SFT: {},
    "DPO": {"objective": "dpo"},
    "TDPO1": {"objective": "tdpo1"},
    "TDPO2": {"objective": "tdpo2"},
    "SimPO": {"objective": "simpo"},
    "DPOP": {"objective": "dpop"},
    "MaPO": {"objective": "mapo"},
    "SparsePO common": {"objective": "sparsepo", "mask_sharing": "common"},
    "SparsePO independent": {"objective": "sparsepo", "mask_sharing": "independent"},
}
# role of a data file → what it holds; those marked * may be several files
ROLES: dict[str, dict[str, str]] = {
    "sentiment": {
        "rows": "scored completions (prompt, text, reward) or preference pairs",
        "texts": "* further texts for SFT",
        "labelled": "* zip files of texts in pos and neg, for a reward model",
        "vader": "zip file of VADER's word list",
        "opinion": "zip file of the opinion lexicon",
    },
    "dialogue": {
        "rows": "dialogues that differ in the last answer, or other pairs",
        "texts": "* further texts for SFT",
    },
    "summarisation": {"rows": "scored summaries of posts, or preference pairs", "texts": "* further texts for SFT"},
    "code": {"rows": "problems with solutions and tests, as MBPP has them", "texts": "* further texts for SFT"},
    "playground": {},
}
_SET_BY_THE_EXPERIMENT = {
    "train": (
        "model_name_or_path", "dataset_name", "eval_dataset", "eval_fraction", "output_dir", "seed", "objective", "beta",
        "overwrite_output_dir", "resume_from_checkpoint",
    ),
    "sft": ("output_dir", "seed", "text_files", "overwrite_output_dir", "resume_from_checkpoint"),
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """An experiment's settings.

    Args:
        task, size: what it is.
        about: what it shows and what it needs, for people.
        data: files or hub ids by role.
        prepare, pairs, reward, evaluate: of the stages of these names; see ``sections.py``.
        start: a model to start from, in the place of an SFT stage.
        sft, train: settings of ``sparsepo sft`` and ``sparsepo train``.
        methods: what is compared, names of ``METHODS``.
        method_settings: settings of ``sparsepo train`` by method, over ``train``.
        betas, seeds: the grid.
        method_betas: other values of β for single methods.
        sft_per_seed: every seed has its own SFT model and pairs; otherwise seeds are those of training and sampling.
        disk_gb: of one run's model, for an estimate.
        keep_models: whether runs keep their weights once they are evaluated; masks, settings and samples always stay.
        hardware: what it needs, for people.
    """

    task: str
    size: str
    about: str = ""
    hardware: str = ""
    data: dict[str, list[str]] = field(default_factory=dict)
    prepare: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    sft: dict[str, Any] = field(default_factory=dict)
    pairs: dict[str, Any] = field(default_factory=dict)
    reward: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    methods: list[str] = field(default_factory=lambda: [SFT])
    method_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    betas: list[float] = field(default_factory=list)
    method_betas: dict[str, list[float]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    sft_per_seed: bool = False
    evaluate: dict[str, Any] = field(default_factory=dict)
    disk_gb: float = 0.0
    keep_models: bool = True

    def betas_of(self, method: str) -> list[float | None]:
        """The values of β that a method is run with; the start has none."""
        return [None] if method == SFT else list(self.method_betas.get(method, self.betas))

    def flags_of(self, method: str, beta: float) -> dict[str, Any]:
        """Settings of ``sparsepo train`` of a run. What is set to null is left to the command's default."""
        own = {**self.train, **METHODS[method], **self.method_settings.get(method, {}), "beta": beta}
        return {name: value for name, value in own.items() if value is not None}


def available() -> list[tuple[str, str]]:
    """The tasks and sizes that there are recipes for."""
    names = {path.name.removesuffix(".yaml") for path in _recipes().iterdir() if path.name.endswith(".yaml")}
    return [(task, size) for task in TASKS for size in SIZES if f"{task}_{size}" in names]


def read_recipe(task: str, size: str, changes: Sequence[str] = (), data: Sequence[str] = ()) -> Recipe:
    """A recipe of the package, or a YAML file's.

    Args:
        task: one of ``TASKS``.
        size: one of ``SIZES``, or the path of a YAML file.
        changes: ``key=value``, the key with points for what stands inside a section: ``train.max_steps=20``,
            ``betas=[0.1,0.5]``. Values are YAML.
        data: ``role=FILE``, or the path of a file whose name is one that the recipe names; several of a role are all used.

    Raises:
        ValueError: unknown names, or values that cannot be; each says what is known.
    """
    import yaml

    if task not in TASKS:
        raise ValueError(f"There is no task {task!r}{_near(task, TASKS)}; tasks are {', '.join(TASKS)}.")
    if size.endswith((".yaml", ".yml")):
        path: Any = Path(size).expanduser()
        if not path.is_file():
            raise ValueError(f"--size {size}: no such file.")
    else:
        own = [s for t, s in available() if t == task]
        if size not in own:
            raise ValueError(
                f"Task {task} has no size {size!r}{_near(size, own)}; it has {', '.join(own)}, or a YAML file."
            )
        path = _recipes() / f"{task}_{size}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for change in changes:
            _change(content, change, yaml.safe_load)
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must hold settings, one `name: value` a line.")
    if content.get("task") != task:
        raise ValueError(f"{path.name} is a recipe of task {content.get('task')!r}, not of {task!r}.")
    return _checked(_with_data(content, task, data), path.name)


def _recipes() -> Any:
    return importlib.resources.files("sparsepo.experiments.pipeline").joinpath("recipes")


def _change(content: dict[str, Any], change: str, load: Any) -> None:
    name, sign, text = change.partition("=")
    if not (sign and name):
        raise ValueError(f"--set {change!r} must be KEY=VALUE, such as train.max_steps=20.")
    *sections, last = name.split(".")
    at = content
    for section in sections:
        at = at.setdefault(section, {})
        if not isinstance(at, dict):
            raise ValueError(f"--set {change}: {section} is no section; it holds {at!r}.")
    at[last] = load(text)


def _with_data(content: dict[str, Any], task: str, data: Sequence[str]) -> dict[str, Any]:
    """The recipe's data as lists, those given on the command line in their place."""
    roles = ROLES[task]
    own = {role: value if isinstance(value, list) else [value] for role, value in (content.get("data") or {}).items()}
    given: dict[str, list[str]] = {}
    for item in data:
        role, sign, path = item.partition("=")
        if not sign or role not in roles:
            path = item
            role = next(
                (name for name, files in own.items() for file in files if Path(file).name == Path(item).name), ""
            )
            if not role:
                raise ValueError(
                    f"--data {item}: write ROLE=FILE; roles of {task} are {', '.join(roles) or '(none)'}, and "
                    "no file of the recipe has this name."
                )
        given.setdefault(role, []).append(path)
    for role, paths in given.items():
        kept = [] if any("=" in item and item.split("=", 1)[0] == role for item in data) else own.get(role, [])
        named = {Path(path).name: path for path in paths}
        replaced = [named.pop(Path(file).name, file) for file in kept]
        own[role] = replaced + list(named.values())
    return {**content, "data": own}


def _checked(content: dict[str, Any], source: str) -> Recipe:
    _refuse_unknown(content, [f.name for f in fields(Recipe)], source)
    for section in (
        "data",
        "prepare",
        "sft",
        "pairs",
        "reward",
        "train",
        "method_settings",
        "method_betas",
        "evaluate",
    ):
        value = content.setdefault(section, {})
        if value is None:
            content[section] = {}
        elif not isinstance(value, dict):
            raise ValueError(f"{source}: {section} must be a section of names and values, not {value!r}.")
    task = content["task"]
    _refuse_unknown(content["data"], ROLES[task], f"{source}, data")
    content["prepare"] = check_section(PREPARE[task], content["prepare"], f"{source}, prepare")
    content["pairs"] = check_section(PAIRS[task], content["pairs"], f"{source}, pairs")
    content["reward"] = check_section(REWARD, content["reward"], f"{source}, reward")
    content["evaluate"] = check_section(EVALUATE, content["evaluate"], f"{source}, evaluate")
    _check_grid(content, source)
    for section, names in _SET_BY_THE_EXPERIMENT.items():
        own = [content[section], *(content["method_settings"].values() if section == "train" else [])]
        if taken := [name for part in own for name in part if name in names]:
            raise ValueError(
                f"{source}: {section}.{taken[0]} is set by the experiment (models and data by its stages, β by betas, seeds "
                "by seeds, objectives by methods); leave it out."
            )
    recipe = Recipe(**content)
    if not recipe.start and not recipe.sft and task != "playground":
        raise ValueError(f"{source}: give start (a model) or an sft section.")
    return recipe


def _check_grid(content: dict[str, Any], source: str) -> None:
    methods = content.setdefault("methods", [SFT])
    if not isinstance(methods, list) or not methods or len(set(methods)) != len(methods):
        raise ValueError(f"{source}: methods must be a list of different names, not {methods!r}.")
    for place, names in (
        ("methods", methods),
        ("method_settings", content["method_settings"]),
        ("method_betas", content["method_betas"]),
    ):
        _refuse_unknown(names, METHODS, f"{source}, {place}")
    if SFT not in methods:
        content["methods"] = [SFT, *methods]  # the point that every other one started from
    for place, betas in (("betas", content.setdefault("betas", [])), *content["method_betas"].items()):
        is_list = isinstance(betas, list) and all(_is_number(beta) and beta > 0 for beta in betas)
        if not is_list or len(set(betas)) != len(betas):
            raise ValueError(f"{source}: {place} must be a list of different numbers above 0, not {betas!r}.")
    for method in methods:
        if method != SFT and not content["method_betas"].get(method, content["betas"]):
            raise ValueError(f"{source}: betas is empty, and {method} needs one; write betas: [0.1, 0.5].")
    seeds = content.setdefault("seeds", [0])
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise ValueError(f"{source}: seeds must be a list of whole numbers of at least 0, not {seeds!r}.")
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"{source}: seeds holds a seed twice: {seeds!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refuse_unknown(names: Iterable[str], known: Iterable[str], where: str) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            raise ValueError(
                f"{where}: unknown name {name!r}{_near(str(name), known)}; known are {', '.join(known) or 'none'}."
            )


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def as_text(recipe: Recipe | Mapping[str, Any]) -> str:
    """Settings for a page, as JSON."""
    content = recipe if isinstance(recipe, Mapping) else {f.name: getattr(recipe, f.name) for f in fields(recipe)}
    return json.dumps(content, indent=2, ensure_ascii=False)
