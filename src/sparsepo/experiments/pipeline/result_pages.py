"""The page and the plots of an experiment's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsepo.inspection.document import COLOURS, Document, figure_style

from .recipe import SFT, as_text
from .result_tables import Group, drawn_at, groups_of, parts

MARKERS = "osD^vP*X"
WIDE = 20.0  # KLs that lie farther apart than this are drawn on a logarithmic axis


def write_report(results: Mapping[str, Any], folder: Path) -> Path:
    """Write ``report.html`` and ``plots/*.png, *.svg``; returns the page's path."""
    done, missing = len(results["runs"]), len(results["missing"])
    title = f"{results['task']}, size {results['size']}"
    document = Document(title, f"{done} of {done + missing} runs", plots=folder / "plots")
    document.text(results["about"])
    if missing:
        document.text(f"Not complete; missing are {', '.join(results['missing'])}.")
    groups = groups_of(results["runs"])
    if groups:
        document.heading("Reward against KL")
        document.text(
            "A point is a method at one β, joined in the order of β: means over seeds with 95 % intervals (Student's t), "
            "dots the single runs; where an interval reaches beyond all runs it is cut. Higher at the same KL is better."
        )
        _figures(document, groups, drawn_at(results["recipe"]["evaluate"]))
    for part in parts(results):
        document.heading(part.title)
        for note in part.notes:
            document.text(note)
        document.table(part.header, part.rows, texts=(0, 1) if part.title == "Reward at matched KL" else (0,))
    document.heading("Stages")
    document.table(
        ["stage", "what came of it", "seconds"],
        [[name, own.get("summary", ""), f"{own['seconds']:.0f}"] for name, own in results["stages"].items()],
        texts=(0, 1),
    )
    document.heading("Settings")
    document.pre(as_text(results["recipe"]))
    return document.write(folder / "report.html")


def _figures(document: Document, groups: Sequence[Group], drawn: str) -> None:
    with figure_style() as pyplot:
        figure, axes = pyplot.subplots(figsize=(6.4, 4.2))
        draw_frontier(axes, groups, drawn)
        document.figure(figure, "frontier", "Sampled reward against sequence KL of the policy from its reference.")
        for metric, label, caption in (
            ("reward_accuracy", "held-out reward accuracy", "Reward accuracy on held-out pairs by β."),
            ("mask_auc", "AUC of the reward mask", "How well the reward mask finds the yardstick's tokens, by β."),
        ):
            figure, axes = pyplot.subplots(figsize=(5.2, 3.6))
            if draw_by_beta(axes, groups, metric, label):
                document.figure(figure, metric, caption)
        figure, axes = pyplot.subplots(figsize=(5.2, 3.6))
        if draw_masked_kl(axes, groups):
            document.figure(figure, "masked_kl", "KL(ref‖π) on chosen responses: all tokens, and weighed by m_d.")


def draw_frontier(axes: Any, groups: Sequence[Group], drawn: str = "") -> None:
    """Reward over KL: a line a method through its β, intervals over seeds in both directions, the start as a level.

    ``drawn`` says how samples were drawn (:func:`drawn_at`): both axes are of such samples.
    """
    start = next((group.estimate("reward") for group in groups if group.method == SFT), None)
    if start is not None:
        axes.axhline(start.mean, color="#7f7f7f", linewidth=1, linestyle="--", label=SFT)
        if start.half_width is not None:
            axes.axhspan(start.mean - start.half_width, start.mean + start.half_width, color="#7f7f7f", alpha=0.12)
    for place, (method, own) in enumerate(_methods(groups)):
        colour, marker = _look(place)
        points = [(g, g.estimate("sequence_kl"), g.estimate("reward")) for g in own]
        known = [(g, kl, reward) for g, kl, reward in points if kl is not None and reward is not None]
        axes.errorbar(
            [kl.mean for _, kl, _ in known],
            [reward.mean for _, _, reward in known],
            xerr=[kl.half_width or 0.0 for _, kl, _ in known],
            yerr=[reward.half_width or 0.0 for _, _, reward in known],
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.2,
            elinewidth=0.8,
            capsize=2,
            label=method,
        )
        runs = [run["metrics"] for g, _, _ in known for run in g.runs]
        axes.plot(
            [m["sequence_kl"] for m in runs], [m["reward"] for m in runs], ".", color=colour, alpha=0.35, markersize=4
        )
        for g, kl, reward in known:
            axes.annotate(f"{g.beta:g}", (kl.mean, reward.mean), xytext=(4, 4), textcoords="offset points", fontsize=7)
    _fit_to_runs(axes, groups)
    axes.set_xlabel("sequence KL(π‖ref), exact, nats" + (f", of samples at {drawn}" if drawn else ""))
    axes.set_ylabel("sampled reward" + (f" ({drawn})" if drawn else ""))
    axes.legend(fontsize=8)


def _fit_to_runs(axes: Any, groups: Sequence[Group]) -> None:
    """Axes that show every run, with KL as a logarithm where runs lie far apart; intervals of few seeds may be cut."""
    runs = [run["metrics"] for group in groups for run in group.runs]
    found = [m for m in runs if m.get("sequence_kl") is not None and m.get("reward") is not None]
    kls = [m["sequence_kl"] for m in found if m["sequence_kl"] > 0]
    if not kls:
        return
    if max(kls) > WIDE * min(kls):
        axes.set_xscale("log")
        axes.set_xlim(min(kls) / 1.4, max(kls) * 1.4)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_xlim(0.0, max(kls) * 1.08)  # an interval may reach below zero, a KL does not
    rewards = [m["reward"] for m in found]
    room = 0.12 * (max(rewards) - min(rewards)) or 0.1
    axes.set_ylim(min(rewards) - room, max(rewards) + room)


def draw_by_beta(axes: Any, groups: Sequence[Group], metric: str, label: str) -> bool:
    """A metric over β, a line a method. Returns whether there was anything to draw."""
    drawn = False
    for place, (method, own) in enumerate(_methods(groups)):
        colour, marker = _look(place)
        found = [(g.beta, estimate) for g in own if (estimate := g.estimate(metric)) is not None]
        if found:
            drawn = True
            means, widths = [e.mean for _, e in found], [e.half_width or 0.0 for _, e in found]
            axes.errorbar(
                [b for b, _ in found], means, yerr=widths, color=colour, marker=marker, capsize=2, label=method
            )
    axes.axhline(0.5, color="#7f7f7f", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    betas = sorted({group.beta for group in groups if group.beta is not None})
    axes.set_xticks(betas, [f"{beta:g}" for beta in betas])  # powers of ten would be written as formulas
    axes.minorticks_off()
    axes.set_xlabel("β")
    axes.set_ylabel(label)
    if drawn:
        axes.legend(fontsize=8)
    return drawn


def draw_masked_kl(axes: Any, groups: Sequence[Group]) -> bool:
    """Bars: what a masked KL hides. Returns whether any method has one."""
    found = [
        (group, whole, masked)
        for group in groups
        if (whole := group.estimate("kl_chosen")) is not None
        and (masked := group.estimate("masked_kl_chosen")) is not None
    ]
    if not any(abs(whole.mean - masked.mean) > 1e-9 for _, whole, masked in found):
        return False
    for place, (_, whole, masked) in enumerate(found):
        for shift, estimate, colour in ((-0.2, whole, COLOURS[0]), (0.2, masked, COLOURS[1])):
            axes.bar(place + shift, estimate.mean, 0.38, yerr=estimate.half_width or 0.0, color=colour, capsize=2)
    axes.set_xticks(
        range(len(found)), [f"{g.method} {g.beta:g}" for g, _, _ in found], rotation=60, ha="right", fontsize=7
    )
    axes.set_ylabel("nats a response")
    axes.bar(0, 0, color=COLOURS[0], label="all tokens")
    axes.bar(0, 0, color=COLOURS[1], label="weighed by m_d")
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)  # above: bars leave no room inside
    return True


def _methods(groups: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    names = dict.fromkeys(group.method for group in groups if group.method != SFT)
    return [(name, [group for group in groups if group.method == name]) for name in names]


def _look(place: int) -> tuple[str, str]:
    return COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
