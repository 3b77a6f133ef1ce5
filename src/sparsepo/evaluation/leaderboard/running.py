"""Running tasks with lm-eval: built-in ones, or YAML files in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .results import TaskResult, from_lm_eval


def task_manager(names: Sequence[str], include_path: str | Path | None = None) -> Any:
    """lm-eval's index of tasks. Its own take seconds to read; they are left out if the folder has all that is asked for.

    Args:
        names: tasks and groups that are asked for.
        include_path: folder of YAML files; a task there comes before a built-in one of the same name.

    Raises:
        ValueError: a name that is no task and no group, or a file in the folder that cannot be read.
        ImportError: lm-eval is not installed.
    """
    manager_class = _manager_class()
    if include_path is not None:
        try:
            local = manager_class(include_path=str(include_path), include_defaults=False)
        except Exception as error:  # YAML files of any content, which lm-eval reads as they come
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise ValueError(f"include_path {include_path}: its tasks cannot be read: {reason}") from error
        if all(_is_complete(local, name) for name in names):
            return local
    manager = manager_class(include_path=None if include_path is None else str(include_path))
    unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        from difflib import get_close_matches

        near = get_close_matches(unknown[0], manager.all_tasks, n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        hint += "" if include_path is None else _unreadable(Path(include_path))
        raise ValueError(f"tasks: lm-eval has no task or group {unknown[0]!r}.{hint}")
    return manager


def _unreadable(folder: Path) -> str:
    """The YAML files of a folder that lm-eval passes over, in words; "" where there are none."""
    import yaml

    found = []
    for path in sorted(folder.rglob("*.yaml")):
        try:
            node = yaml.compose(path.read_text(encoding="utf-8"))  # tags such as !function need not be known
            problem = "" if isinstance(node, yaml.MappingNode) else "no settings, one `name: value` a line"
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            problem = " ".join(str(error).split())[:150]
        if problem:
            found.append(f" {path}: {problem}.")
    return f" Not read:{''.join(found)}" if found else ""


def _manager_class() -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(f"Reasoning tasks need lm-eval ({error}): pip install 'sparsepo[reasoning]'") from error
    return TaskManager


def _children(manager: Any, name: str) -> list[str] | None:
    """Names of a group's members; None for what is no group, or one whose members are written inside it."""
    entry = manager.task_index.get(name)
    members = (entry.cfg or {}).get("task") if entry is not None and entry.kind.name == "GROUP" else None
    return members if isinstance(members, list) and all(isinstance(one, str) for one in members) else None


def _is_complete(manager: Any, name: str) -> bool:
    children = _children(manager, name)
    return name in manager.task_index and all(_is_complete(manager, child) for child in children or [])


def expanded(names: Sequence[str], manager: Any) -> list[str]:
    """Groups → their tasks, so that each task is run, and kept, by itself; each once, in order."""
    found: list[str] = []
    for name in names:
        children = _children(manager, name)
        found += [name] if children is None else expanded(children, manager)
    return list(dict.fromkeys(found))


def task_state(job: str, manager: Any) -> list[Any]:
    """What a task's results depend on besides the model: its settings, and the files beside its YAML and of its data."""
    entry = manager.task_index[job]
    config = entry.cfg or {}
    paths: list[Path] = []
    if manager.include_path is not None and entry.yaml_path is not None:
        folder = Path(entry.yaml_path).parent
        if Path(manager.include_path).resolve() in (folder.resolve(), *folder.resolve().parents):
            paths += sorted(path for path in folder.iterdir() if path.is_file())
    named = (config.get("dataset_kwargs") or {}).get("data_files") or []
    for value in named.values() if isinstance(named, dict) else [named]:
        paths += [Path(one) for one in (value if isinstance(value, list) else [value]) if Path(str(one)).is_file()]
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return [{name: str(value) for name, value in config.items()}, files]


def check_loadable(jobs: Sequence[str], manager: Any) -> None:
    """Load every task's data once, before any model runs.

    Raises:
        ValueError: data that cannot be reached or packages that are missing; names each task and why.
    """
    problems = []
    for job in jobs:
        try:
            manager.load([job])
        except Exception as error:  # data sets, YAML and Python of a task may fail in any way
            problems.append(f"  {job}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(jobs)} tasks cannot be loaded:\n" + "\n".join(problems) + "\n"
            "Data come from the Hugging Face hub, unless a task of the same name in --include_path reads local files; "
            "IFEval and MATH need pip install 'lm-eval[ifeval,math]'."
        )


def run_job(
    job: str,
    model: Any,
    tokenizer: Any,
    manager: Any,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    chat_template: bool = False,
) -> list[TaskResult]:
    """Run one task (or a group that cannot be taken apart) and return its tasks' results.

    Args:
        job: its name.
        model, tokenizer: a Hugging Face causal LM.
        manager: of :func:`task_manager`.
        limit: only so many documents a task: a trial, no result.
        batch_size: requests together.
        chat_template: put prompts through the model's chat template, few-shot examples as turns, as the leaderboard does for
            chat models.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    output = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        tasks=[job],
        task_manager=manager,
        limit=limit,
        log_samples=True,
        bootstrap_iters=1000,  # for metrics that are no means; the others have closed forms
        apply_chat_template=chat_template,
        fewshot_as_multiturn=chat_template,
    )
    return [from_lm_eval(task, output) for task in output["samples"]]
