"""Runs → means with intervals over seeds: Markdown tables, and what the plots show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsepo.experiments.intervals import Estimate, over_seeds

from .result_frontier import matched_rows
from .reward_kinds import REWARD_KINDS

Runs = Sequence[Mapping[str, Any]]
MISSING = "–"
MATCHED = (
    "The largest reward that a method reaches with at most this KL, linear in √KL between its points, the best of its β "
    "counting. Intervals and p-values: a bootstrap that draws the same seeds and prompts for all methods; Holm's adjustment."
)
# metric → its column
PREFERENCE = {
    "reward_accuracy": "reward accuracy",
    "reward_margin": "margin",
    "loss": "loss",
    "kl_chosen": "KL chosen",
    "kl_rejected": "KL rejected",
    "masked_kl_chosen": "masked KL chosen",
    "masked_kl_rejected": "masked KL rejected",
}
SAMPLES = {
    "reward": "sampled reward",
    "sequence_kl": "sequence KL(π‖ref)",
    "masked_sequence_kl": "masked sequence KL",
    "monte_carlo_kl": "the KL by Monte Carlo",
    "length": "length",
    "finished": "finished",
}
MASKS = {
    "reward_mask_mean": "mean m_u",
    "reward_mask_zeros": "zeros in m_u",
    "kl_mask_zeros": "zeros in m_d",
    "mask_auc": "AUC m_u",
    "mask_auc_content": "AUC m_u, content words",
    "kl_mask_auc": "AUC m_d",
    "log_ratio_auc": "AUC of the log-ratio",
    "entropy_auc": "AUC of the start's entropy",
}
_KNOWN = {*PREFERENCE, *SAMPLES, *MASKS}
_LEFT_OUT = {
    *("kl_mask_mean", "effective_beta", "yardstick_share"),
    *("kl_mask_auc_content", "log_ratio_auc_content", "entropy_auc_content"),
}
YARDSTICKS = {
    "words": "first tokens of sentiment words of the lists",
    "changes": "the first token of what differs between a program and its mutant",
    "playground": "the preference words of the world",
}


@dataclass(frozen=True)
class Group:
    """The runs of a method at one β.

    Args:
        method, beta: which.
        runs: one a seed.
    """

    method: str
    beta: float | None
    runs: tuple[Mapping[str, Any], ...]

    def estimate(self, metric: str) -> Estimate | None:
        """Mean and interval over seeds; None where no run has the metric."""
        values = [run["metrics"][metric] for run in self.runs if run["metrics"].get(metric) is not None]
        return over_seeds(values) if values else None


def groups_of(runs: Runs) -> list[Group]:
    """Methods in the order of the runs, their β ascending."""
    found: dict[tuple[str, float | None], list[Mapping[str, Any]]] = {}
    for run in runs:
        found.setdefault((run["method"], run["beta"]), []).append(run)
    order = list(dict.fromkeys(run["method"] for run in runs))
    keys = sorted(found, key=lambda key: (order.index(key[0]), -1.0 if key[1] is None else key[1]))
    return [Group(method, beta, tuple(found[method, beta])) for method, beta in keys]


def table_rows(groups: Sequence[Group], columns: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table of those columns that any run has."""
    shown = {metric: title for metric, title in columns.items() if any(g.estimate(metric) for g in groups)}
    header = ["method", "β", "seeds", *shown.values()]
    rows = []
    for group in groups:
        found = [group.estimate(metric) for metric in shown]
        if any(found) or len(shown) == 0:
            cells = [MISSING if own is None else own.text() for own in found]
            rows.append(
                [group.method, MISSING if group.beta is None else f"{group.beta:g}", str(len(group.runs)), *cells]
            )
    return header, rows


def further_columns(runs: Runs) -> dict[str, str]:
    """What a task reports beside the metrics that all tasks have."""
    names = dict.fromkeys(name for run in runs for name in run["metrics"])
    return {n: n.replace("_", " ") for n in names if n not in _KNOWN | _LEFT_OUT and not n.endswith("_se")}


@dataclass(frozen=True)
class Part:
    """One table: title, what to know (paragraphs), header, rows."""

    title: str
    notes: list[str]
    header: list[str]
    rows: list[list[str]]


def parts(results: Mapping[str, Any]) -> list[Part]:
    """The tables of all results, those without rows left out."""
    runs, recipe = results["runs"], results["recipe"]
    groups = groups_of(runs)
    found = [Part("What the policies write", samples_notes(results), *table_rows(groups, SAMPLES))]
    if further := further_columns(runs):
        found.append(Part("What the task measures on the samples", [], *table_rows(groups, further)))
    frontier = results["frontier"]
    if frontier is not None and frontier["comparison"] is not None:
        notes = [MATCHED, *frontier["notes"]]
        found.append(Part("Reward at matched KL", notes, *matched_rows(frontier)))
    note = (
        "Rewards are those of the loss, which differ between methods: accuracy compares, margins and losses do not. KL is "
        "KL(ref‖π), summed over a response; masked KL weighs each token by m_d. The start has none of these: its log-ratios "
        "are zero."
    )
    found.append(Part("On held-out pairs", [note], *table_rows(groups, PREFERENCE)))
    yardstick = YARDSTICKS.get(recipe["evaluate"].get("yardstick") or "")
    notes = [] if yardstick is None else [f"AUC: do the larger values stand at {yardstick}? 0.5 is chance."]
    found.append(Part("Masks", notes, *table_rows(groups, MASKS)))
    return [part for part in found if part.rows]


def samples_notes(results: Mapping[str, Any]) -> list[str]:
    """What the sampled reward is, and how far it can be trusted."""
    reward, stages, own = results["reward"], results["stages"], results["recipe"]["evaluate"]
    note = f"Reward: {REWARD_KINDS[reward['kind']]}"
    note += f" ({reward['model']})" if reward.get("model") else ""
    judged = next((stage["metrics"] for name, stage in stages.items() if name.startswith("reward")), None)
    if judged is not None:
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in judged.items())
        note += f", in standard deviations of its training labels; on texts that it has not seen: {shown}"
    notes = [
        f"{note}.",
        "KL: nats a response, exact over the vocabulary at every token of the policy's own samples; beside it the same by "
        "Monte Carlo, and masked, each token weighed by m_d.",
    ]
    if drawn := drawn_at(own):
        notes.append(f"Samples are drawn at {drawn}: the KL on them is not that of the policy's own distribution.")
    return notes


def drawn_at(evaluate: Mapping[str, Any]) -> str:
    """How samples are drawn, where that is not from the policy's own distribution; else ""."""
    own = {"temperature": evaluate["temperature"], "top_p": evaluate["top_p"]}
    return ", ".join(f"{name} {value:g}" for name, value in own.items() if value != 1)


def tables(results: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    lines = [f"# {results['task']}, size {results['size']}\n", f"{results['about']}\n"]
    if results["missing"]:
        lines.append(
            f"**Not complete:** {len(results['missing'])} runs are missing: {', '.join(results['missing'])}.\n"
        )
    lines.append("Mean ± half of the 95 % interval over seeds (Student's t); one seed has no interval.\n")
    for part in parts(results):
        lines += [f"## {part.title}\n", *(f"{note}\n" for note in part.notes)]
        lines += ["| " + " | ".join(part.header) + " |", "|---" * len(part.header) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in part.rows]
        lines.append("")
    return "\n".join(lines)
