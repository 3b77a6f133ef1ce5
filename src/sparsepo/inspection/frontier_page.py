"""The report of a frontier: plots of reward against KL, fronts, reward at matched KL, and some of the samples."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsepo.evaluation.frontier_points import KLS

from .document import COLOURS, Document, figure_style, number, with_interval, write_whole
from .figures import errors_of

Content = Mapping[str, Any]  # what evaluation.frontier_summary.summarise gives, and what the command adds
DATA_KLS = {
    "forward_kl_chosen": "KL(π_ref ‖ π) on chosen responses of data (nats a response)",
    "forward_kl_rejected": "KL(π_ref ‖ π) on rejected responses of data (nats a response)",
}
# of the table of points
_COLUMNS = {
    "exact": "KL, exact",
    "monte_carlo": "KL, Monte Carlo",
    "masked": "masked KL",
    "forward_kl_chosen": "KL(ref ‖ π), chosen",
    "masked_forward_kl_chosen": "the same, masked",
    "forward_kl_rejected": "KL(ref ‖ π), rejected",
    "masked_forward_kl_rejected": "the same, masked",
}
_MARKERS = "osD^vPX*<>"
_EXPLANATION = (
    "Every point is a checkpoint: the mean reward of completions that it sampled on held-out prompts, and its sequence KL "
    "from the reference on those same completions. Means over seeds; bars are 95 % bootstrap intervals over seeds and "
    "prompts. Up and to the left is better. A thick line is a method's Pareto front: the points that no other of its points "
    "beats."
)
_OPTIMUM = (
    "Dashed: the best that any policy can do at that KL, from the reference's own samples (as far as they show it)."
)
_MATCHED = (
    "The largest reward that a method reaches with at most this KL, between checkpoints linear in √KL; with several β the "
    "best one counts. Differences, intervals and p-values come from a bootstrap that draws the same seeds and prompts for "
    "all methods; p is Holm-adjusted over the methods at one budget."
)
_MASKED = (
    "The masked KL weights each token's KL with the run's KL mask. It is no distance, since a mask of zeros makes it zero; "
    "the unmasked KL says how far the policy really is. On the data's responses the masked KL(π_ref ‖ π) is what the "
    "objective sees."
)


def write_frontier(content: Content, folder: Path, samples: Sequence[Sequence[str]], notice: str = "") -> list[str]:
    """Write ``frontier.html``, ``frontier.json``, ``frontier.csv`` and ``plots/``; returns the files' names.

    Args:
        content: of the summary, with ``reward`` (its specification), ``prompts`` (how many) and ``settings`` (flags, and
            ``runs``: method, beta, seed, folder, reference and steps of each).
        folder: is made where it does not exist.
        samples: rows for the page: method, β, seed, step, prompt, completion, reward.
        notice: on what the texts may hold; "" where nothing need be said.
    """
    document = Document(
        "Reward against KL", f"reward {content['reward']} · {content['prompts']} prompts", folder / "plots"
    )
    with figure_style() as pyplot:
        _frontier(document, pyplot, content)
        _matched(document, pyplot, content)
        _other_kls(document, pyplot, content)
    _tables(document, content)
    if samples:
        document.heading("Samples")
        if notice:
            document.text(notice)
        header = ("method", "β", "seed", "step", "prompt", "completion", "reward")
        document.table(header, samples, texts=(0, 4, 5), folded=f"{len(samples)} completions")
    write_whole(folder / "frontier.json", json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    write_whole(folder / "frontier.csv", csv_of(content["runs"]))
    document.write(folder / "frontier.html")
    return ["frontier.html", "frontier.json", "frontier.csv", "plots/"]


def csv_of(runs: Sequence[Mapping[str, Any]]) -> str:
    """A line a run and step; intervals become three columns."""
    rows = []
    for run in runs:
        row: dict[str, Any] = {}
        for name, value in run.items():
            if isinstance(value, Mapping):
                row |= {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
            else:
                row[name] = value
        rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _frontier(document: Document, pyplot: Any, content: Content) -> None:
    document.heading("The frontier")
    figure = reward_figure(pyplot, content, content["kl"], KLS[content["kl"]], fronts=True)
    document.figure(figure, "frontier", f"Reward against {KLS[content['kl']]}.")
    document.text(_EXPLANATION)
    if content["optimum"]:
        document.text(_OPTIMUM)
    for note in content["notes"]:
        document.text(note)


def reward_figure(pyplot: Any, content: Content, kl: str, label: str, fronts: bool = False) -> Any:
    """Reward against one of the KLs; a colour a method, a marker a β, thin lines along training."""
    points = [point for point in content["points"] if kl in point]
    betas = sorted({point["beta"] for point in points if point["beta"] is not None})
    figure, axes = pyplot.subplots(figsize=(7.2, 4.6))
    for place, (method, own) in enumerate(content["methods"].items()):
        colour = COLOURS[place % len(COLOURS)]
        for beta in dict.fromkeys(point["beta"] for point in points if point["method"] == method):
            run = [point for point in points if point["method"] == method and point["beta"] == beta]
            x, x_errors = errors_of([point[kl] for point in run])
            y, y_errors = errors_of([point["reward"] for point in run])
            marker = _MARKERS[betas.index(beta) % len(_MARKERS)] if beta is not None else "o"
            axes.errorbar(
                x, y, y_errors, x_errors, fmt=marker, ms=4, color=colour, alpha=0.75, lw=0, elinewidth=0.6, zorder=2
            )
            axes.plot(x, y, "-", color=colour, lw=0.7, alpha=0.45)
        line = _front_line(content, own["front"], kl) if fronts else ([], [])
        axes.plot(*line, "-", color=colour, lw=2.2, label=method, zorder=3)
    for reference in content["references"].values():
        axes.plot(0, reference["reward"]["value"], "*", color="#7f7f7f", ms=9, zorder=4)
    axes.plot([], [], "*", color="#7f7f7f", ms=9, lw=0, label="reference")
    for beta in betas if len(betas) > 1 else ():
        marker = _MARKERS[betas.index(beta) % len(_MARKERS)]
        axes.plot([], [], marker, color="#7f7f7f", ms=4, lw=0, label=f"β {beta:g}")
    if fronts and content["optimum"]:
        line = content["optimum"]
        axes.plot([own["kl"] for own in line], [own["reward"] for own in line], "--", color="#7f7f7f", label="optimum")
    axes.set_xscale("function", functions=(_signed_root, _signed_square))
    axes.set_xlabel(f"{label}, √ scale")
    axes.set_ylabel(f"mean reward: {_short(content['reward'])}")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _front_line(content: Content, front: Sequence[int], kl: str) -> tuple[list[float], list[float]]:
    """A method's front from the reference on, which is a policy without KL that every method has."""
    start = [own["reward"]["value"] for own in content["references"].values()]
    points = [content["points"][place] for place in front]
    better = [point for point in points if point["reward"]["value"] > sum(start) / len(start)]
    return (
        [0.0, *(point[kl]["value"] for point in better)],
        [sum(start) / len(start), *(point["reward"]["value"] for point in better)],
    )


def _signed_root(values: Any) -> Any:
    return np.sign(values) * np.sqrt(np.abs(values))


def _signed_square(values: Any) -> Any:
    return np.sign(values) * np.square(values)


def _short(reward: str) -> str:
    """A reward's specification for an axis: of paths the last part."""
    kind, colon, argument = reward.partition(":")
    return kind + colon + argument.rstrip("/").rsplit("/", 1)[-1]


def _matched(document: Document, pyplot: Any, content: Content) -> None:
    comparison = content["comparison"]
    if comparison is None:
        return
    document.heading("Reward at matched KL")
    document.text(_MATCHED)
    columns = [(f"within {own['budget']:g} nats", own["methods"]) for own in comparison["within"]]
    if comparison["area"] is not None:
        columns.append((f"mean up to {content['max_kl']:.3g} nats", comparison["area"]))
    baseline = comparison["baseline"]
    for title, methods in columns:
        document.subheading(title)
        has_share = any(own["share"] is not None for own in methods.values())
        header = [
            "method",
            "reward",
            f"minus {baseline}",
            "p",
            "p (Holm)",
            *(["share of the optimum"] if has_share else []),
        ]
        rows = [
            [
                name,
                with_interval(own["reward"]),
                with_interval(own["difference"]) if own["p_value"] is not None else "–",
                number(own["p_value"]),
                number(own["p_adjusted"]),
                *([with_interval(own["share"], share=True)] if has_share else []),
            ]
            for name, own in methods.items()
        ]
        document.table(header, rows)
    figure, axes = pyplot.subplots(figsize=(1.6 + 1.5 * len(columns), 3.6))
    names = list(content["methods"])
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        values, errors = errors_of([methods[name]["reward"] for _, methods in columns])
        places = [index - 0.4 + width * (place + 0.5) for index in range(len(columns))]
        axes.errorbar(places, values, errors, fmt="o", ms=5, color=COLOURS[place % len(COLOURS)], label=name)
    axes.set_xticks(range(len(columns)), [title for title, _ in columns])
    axes.set_ylabel("reward")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    document.figure(figure, "matched", "Reward at matched KL with 95 % intervals.")


def _other_kls(document: Document, pyplot: Any, content: Content) -> None:
    """The same points against the other KLs, each named on its axis."""
    present = {name for point in content["points"] for name in point}
    labels = {name: label for name, label in {**KLS, **DATA_KLS}.items() if name in present and name != content["kl"]}
    if not labels:
        return
    document.heading("Other divergences")
    for name, label in labels.items():
        document.figure(reward_figure(pyplot, content, name, label), name, f"Reward against {label}.")
    if "masked" in labels:
        document.text(_MASKED)


def _tables(document: Document, content: Content) -> None:
    points = content["points"]
    document.heading("All points")
    kls = [name for name in _COLUMNS if any(name in point for point in points)]
    header = ["method", "β", "step", "seeds", "reward", *(_COLUMNS[name] for name in kls), "tokens", "ended", "front"]
    on_front = {place for own in content["methods"].values() for place in own["front"]}
    rows = [
        [
            point["method"],
            shown_beta(point["beta"]),
            str(point["step"]),
            str(len(point["seeds"])),
            with_interval(point["reward"]),
            *(with_interval(point.get(name)) for name in kls),
            number(point["length"], 1),
            f"{100 * point['finished']:.0f} %",
            "yes" if place in on_front else "",
        ]
        for place, point in enumerate(points)
    ]
    document.table(header, rows, folded="" if len(rows) <= 40 else f"{len(rows)} points")
    document.text(
        "tokens: mean length; ended: share of completions that ended by themselves before the longest length."
    )
    document.heading("Runs and settings")
    runs = content["settings"]["runs"]
    rows = [
        [
            run["method"],
            shown_beta(run["beta"]),
            str(run["seed"]),
            run["folder"],
            run["reference"],
            str(run["steps"])[1:-1],
        ]
        for run in runs
    ]
    document.table(("method", "β", "seed", "folder", "reference", "steps"), rows, texts=(0, 3, 4, 5))
    own = {name: value for name, value in content["settings"].items() if name != "runs" and value is not None}
    document.pre("\n".join(f"--{name} {value}" for name, value in own.items()))


def shown_beta(beta: float | None) -> str:
    """β for a table."""
    return "–" if beta is None else f"{beta:g}"
