"""Results of many runs as Markdown tables: one line a setting, mean and interval over its seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .intervals import over_seeds
from .store import Store
from .tasks import Run, Task

Result = dict[str, Any]
Column = Callable[[Result], float | None]
MISSING = "–"
LEAST_SHARE = 0.98  # of the ceiling, that a default must reach
TARGET_POINTS = 5.0  # within which a target sparsity must be held


def _ranked(result: Result, score: str) -> dict[str, Any]:
    """A score's ranking by selection of tokens: the run's, or one of its seed's controls; empty where there is none."""
    found: dict[str, Any] = result["ranking"].get(score) or result["controls"].get(score) or {}
    return found


def _auc(score: str, selection: str, measure: str = "auc") -> Column:
    def read(result: Result) -> float | None:
        found = _ranked(result, score).get(selection)
        return None if found is None else found[measure]

    return read


def _mask(measure: str, mask: str = "reward_mask") -> Column:
    return lambda result: result["masks"].get(mask, {}).get(measure)


def _policy(measure: str) -> Column:
    return lambda result: result["policy"][-1][measure]["mean"] if result["policy"] else None


def _head_auc(selection: str) -> Column:
    """AUC of what the reward mask's head says before the gate."""

    def read(result: Result) -> float | None:
        for head in ("head_shared", "head_reward"):
            if head in result["ranking"]:
                return _auc(head, selection)(result)
        return None

    return read


def _share(selection: str) -> Column:
    return lambda result: result["share_of_ceiling"].get(selection)


def _target_error(result: Result) -> float | None:
    target = result["task"]["settings"].get("mask_target_sparsity")
    measured = result["masks"].get("reward_mask", {}).get("sparsity")
    return None if target is None or measured is None else 100 * (measured - target)


def _collapsed(result: Result) -> float | None:
    return float(result["health"]["collapse"]) if result["masks"] else None


MASK_COLUMNS: dict[str, Column] = {
    "AUC": _auc("reward_mask", "all"),
    "of ceiling": _share("all"),
    "AUC content": _auc("reward_mask", "open_class"),
    "of ceiling (content)": _share("open_class"),
    "chosen": _auc("reward_mask", "chosen"),
    "rejected": _auc("reward_mask", "rejected"),
    "before the gate": _head_auc("all"),
    "before the gate (content)": _head_auc("open_class"),
    "ceiling at its zeros": _auc("ceiling_at_its_sparsity", "all"),
    "AP": _auc("reward_mask", "all", "average_precision"),
    "zeros": _mask("sparsity"),
    "mean mask": _mask("mean"),
    "collapsed": _collapsed,
}
KL_MASK_COLUMNS: dict[str, Column] = {
    "KL mask AUC": _auc("kl_mask", "all"),
    "KL mask zeros": _mask("sparsity", "kl_mask"),
    "KL mask mean": _mask("mean", "kl_mask"),
}
POLICY_COLUMNS: dict[str, Column] = {
    "reward": _policy("reward"),
    "sequence KL": _policy("kl"),
    "of optimum": lambda result: result["policy"][-1].get("share_of_optimum") if result["policy"] else None,
}
UNSEEN_COLUMNS: dict[str, Column] = {
    "held-out words": _auc("reward_mask", "held_out_words"),
    "seen words": _auc("reward_mask", "seen_words"),
    "held-out words, content": _auc("reward_mask", "held_out_words_open_class"),
}
TARGET_COLUMNS: dict[str, Column] = {
    "zeros, held-out pairs": _mask("sparsity"),
    "points off target": _target_error,
    "zeros, last training steps": lambda result: result["log"].get("mask/reward/sparsity"),
    **{name: MASK_COLUMNS[name] for name in ("AUC", "collapsed")},
}
COLUMNS: dict[str, dict[str, Column]] = {
    "gates": MASK_COLUMNS | POLICY_COLUMNS,
    "learning": MASK_COLUMNS | POLICY_COLUMNS,
    "published": MASK_COLUMNS | POLICY_COLUMNS,
    "sharing": MASK_COLUMNS | KL_MASK_COLUMNS | POLICY_COLUMNS,
    "sparsity": MASK_COLUMNS | POLICY_COLUMNS,
    "anchor": POLICY_COLUMNS | MASK_COLUMNS,
    "targets": TARGET_COLUMNS,
    "defaults": MASK_COLUMNS | UNSEEN_COLUMNS | POLICY_COLUMNS,
}
# Study → label of a setting → label of the one that it is held against, seed by seed
PAIRED: dict[str, Callable[[str], str]] = {
    "gates": lambda label: "relu",
    "published": lambda label: "library's defaults",
    "sharing": lambda label: f"common, {label.partition(', ')[2]}",
    "sparsity": lambda label: "dense (TDPO1's loss)",
    "anchor": lambda label: f"{label.rpartition(', anchor ')[0]}, anchor 0",
}
PAIRED_COLUMNS = {name: MASK_COLUMNS[name] for name in ("AUC", "AUC content")} | POLICY_COLUMNS
REAL_TEXT_COLUMNS: dict[str, Column] = {
    "AUC content": _auc("reward_mask", "content"),
    "chosen": _auc("reward_mask", "chosen_content"),
    "rejected": _auc("reward_mask", "rejected_content"),
    "AP content": _auc("reward_mask", "content", "average_precision"),
    "AUC all tokens": _auc("reward_mask", "all"),
    "before the gate (content)": _head_auc("content"),
    "zeros": _mask("sparsity"),
    "points off target": _target_error,
    "mean mask": _mask("mean"),
    "collapsed": _collapsed,
    "reward accuracy (training)": lambda result: result["log"].get("rewards/accuracies"),
}
CONTROLS = {
    "ceiling: the reference's probability of a preference word": "ceiling",
    "reference entropy": "entropy",
    "random": "random",
    "uniform": "uniform",
    "gradient × input of the reward model (it sees the whole text)": "gradient_times_input",
}


def study_table(tasks: Sequence[Run], store: Store, columns: Mapping[str, Column]) -> str:
    """Markdown: one line a label, in the order of the tasks; settings without a result are left out and counted."""
    groups = _by_label(tasks, store)
    missing = len(tasks) - sum(map(len, groups.values()))
    lines = [f"| setting | seeds | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for label, results in groups.items():
        cells = [_cell(results, read) for read in columns.values()]
        lines.append(f"| {label} | {len(results)} | {' | '.join(cells)} |")
    if missing:
        lines += ["", f"{missing} of {len(tasks)} runs are not done."]
    failed = [task for task in tasks if store.result(task) is None and store.failure(task) is not None]
    lines += [
        f"- failed: {task.label}, seed {task.seed}: {(store.failure(task) or '').strip().splitlines()[-1]}"
        for task in failed
    ]
    return "\n".join(lines) + "\n"


def paired_table(tasks: Sequence[Task], store: Store, other: Callable[[str], str]) -> str:
    """Markdown: each setting less another of the same seed, which takes out what a seed does to both.

    Args:
        tasks, store: of the study.
        other: label → label of the setting that it is held against.

    Returns:
        A line for each setting that shares a seed with its other; empty if none does.
    """
    found: dict[str, dict[int, Result]] = {}
    for task in tasks:
        if (result := store.result(task)) is not None:
            found.setdefault(task.label, {})[task.seed] = result
    lines = []
    for label, own in found.items():
        less = other(label)
        base = found.get(less, {})
        pairs = [(own[seed], base[seed]) for seed in own if seed in base]
        if pairs and less != label:
            cells = [_difference(pairs, read) for read in PAIRED_COLUMNS.values()]
            lines.append(f"| {label} | {less} | {len(pairs)} | {' | '.join(cells)} |")
    header = f"| setting | less | seeds | {' | '.join(PAIRED_COLUMNS)} |\n" + "|---" * (len(PAIRED_COLUMNS) + 3) + "|\n"
    return header + "\n".join(lines) + "\n" if lines else ""


def _difference(pairs: Sequence[tuple[Result, Result]], read: Column) -> str:
    values = [(read(own), read(base)) for own, base in pairs]
    known = [a - b for a, b in values if a is not None and b is not None]
    return over_seeds(known).text() if known else MISSING


def _cell(results: Sequence[Result], read: Column) -> str:
    values = [value for value in map(read, results) if value is not None]
    return over_seeds(values).text() if values else MISSING


def verdict_table(tasks: Sequence[Task], store: Store) -> str:
    """Markdown: which settings meet what is asked of defaults, as means over their seeds.

    The AUC, over ½, reaches 98 % of the ceiling's, over all tokens and over content words; a target sparsity is held
    within five points on every seed; no mask is collapsed at the end of any run. "–": nothing to judge.
    """
    lines = [
        "| setting | seeds | of ceiling ≥ 98 % | content ≥ 98 % | target ± 5 points | no collapse |",
        "|---" * 6 + "|",
    ]
    for label, results in _by_label(tasks, store).items():
        shares = [[value for r in results if (value := _share(name)(r)) is not None] for name in ("all", "open_class")]
        errors = [value for r in results if (value := _target_error(r)) is not None]
        masked = [r for r in results if r["masks"]]
        cells = [_yes(over_seeds(own).mean >= LEAST_SHARE) if own else MISSING for own in shares]
        cells.append(_yes(max(map(abs, errors)) <= TARGET_POINTS) if errors else MISSING)
        cells.append(_yes(not any(r["health"]["collapse"] for r in masked)) if masked else MISSING)
        lines.append(f"| {label} | {len(results)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _yes(holds: bool) -> str:
    return "yes" if holds else "**no**"


def _by_label(tasks: Sequence[Run], store: Store) -> dict[str, list[Result]]:
    """The results that are there, in the order of the tasks."""
    groups: dict[str, list[Result]] = {}
    for task in tasks:
        result = store.result(task)
        if result is not None:
            groups.setdefault(task.label, []).append(result)
    return groups


def controls_table(tasks: Sequence[Task], store: Store) -> str:
    """Markdown: what finds the tokens of the playground without a mask, over the tasks' seeds; empty without results."""
    results = [(task.materials.key, result) for task in tasks if (result := store.result(task)) is not None]
    return _controls(results, "open_class")


def real_text_controls(tasks: Sequence[Run], store: Store) -> str:
    """The same on real text, where the controls of a seed differ by nothing but the untrained heads' position."""
    results = [(str(task.seed), result) for task in tasks if (result := store.result(task)) is not None]
    return _controls(results, "content")


def _controls(results: Sequence[tuple[str, Result]], content: str) -> str:
    if not results:
        return ""
    by_material: dict[str, Result] = {}
    for key, result in results:
        by_material.setdefault(key, result)
    own = list(by_material.values())
    lines = ["| control | seeds | AUC | AUC content | AP |", "|---" * 5 + "|"]
    for title, score in CONTROLS.items():
        if any(_ranked(result, score) for result in own):
            lines.append(_control_line(title, score, own, content))
    dpo = [result for _, result in results if result["task"]["settings"].get("objective") == "dpo"]
    if dpo:
        lines.append(_control_line("DPO's absolute log-ratio (it sees the token)", "log_ratio", dpo, content))
    for which in ("mean", "max"):
        untrained = [result["controls"]["untrained"] for result in own]
        cells = [over_seeds([entry[selection][which] for entry in untrained]).text() for selection in ("all", content)]
        count = len(untrained[0]["all"]["auc"])
        lines.append(f"| {count} untrained heads, {which} | {len(own)} | {' | '.join(cells)} | {MISSING} |")
    return "\n".join(lines) + "\n"


def _control_line(title: str, score: str, results: Sequence[Result], content: str) -> str:
    readers = (_auc(score, "all"), _auc(score, content), _auc(score, "all", "average_precision"))
    return f"| {title} | {len(results)} | {' | '.join(_cell(results, read) for read in readers)} |"
