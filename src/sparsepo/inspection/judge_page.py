"""Win rates for readers: tables, figures and a page with examples."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsepo.data.content import ContentFilter, content_notice, shown_text
from sparsepo.evaluation.judge import Verdict

from .document import COLOURS, Document, figure_style, number, percent, with_interval
from .figures import errors_of

_CUT = 1_500  # characters of a text on the page
_OUTCOMES = ("first", "tie", "second")  # as in the report's table


def result_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The numbers that stand first, a row each, for terminal and page."""
    candidate, baseline = report["names"]
    rows = [["comparisons judged", f"{report['judged']:,} of {report['comparisons']:,}, {report['prompts']:,} prompts"]]
    if report["win_rate"] is None:
        return rows
    counts, test = report["counts"], report["sign_test"]
    controlled = report["length_controlled"]
    at_equal_length = controlled.get("reason") or with_interval(controlled, share=True)
    rows += [
        [f"win rate of {candidate}", with_interval(report["win_rate"], share=True)],
        ["at equal length", at_equal_length],
        [f"{candidate} better, tie, {baseline} better", f"{counts['wins']}, {counts['ties']}, {counts['losses']}"],
        ["sign test over prompts", f"{test['wins']} : {test['losses']}, {test['ties']} ties, p = {_p(test['p'])}"],
    ]
    if (order := report["order"]) is not None:
        rows += [
            ["both orders agree", with_interval(order["consistency"], share=True)],
            ["answer shown first preferred", with_interval(order["first_preferred"], share=True)],
            ["win rate where both orders agree", with_interval(order["consistent_win_rate"], share=True)],
        ]
    if report["margin"] is not None:
        rows.append(["mean difference of the rewards", with_interval(report["margin"])])
    lengths = report["lengths"]
    rows += [
        ["longer answer preferred", with_interval(lengths["longer_preferred"], share=True)],
        ["mean length (characters)", f"{lengths['candidate']:.0f} against {lengths['baseline']:.0f}"],
    ]
    if report["judged"] < report["comparisons"]:
        bounds = report["bounds"]
        rows.append(["if all others were lost, were won", f"{percent(bounds['low'])}, {percent(bounds['high'])}"])
    return rows


def left_out_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """What has no verdict, and why; empty where everything has one."""
    rows = [[problem, f"{count:,} answers"] for problem, count in report["problems"].items()]
    if report["excluded"]:
        rows.append(["excluded for that (either order)", f"{report['excluded']:,} comparisons"])
    if report["unasked"]:
        rows.append(["not asked", f"{report['unasked']:,} comparisons"])
    return rows


def write_page(
    report: Mapping[str, Any],
    verdicts: Sequence[Verdict],
    folder: str | os.PathLike[str],
    examples: int = 6,
    words: ContentFilter | None = None,
) -> Path:
    """Write ``judge.html`` and ``plots/``.

    Args:
        report: what ``judge.json`` holds.
        verdicts: of all comparisons.
        folder: where to.
        examples: of each kind; 0: no texts on the page.
        words: to mask in the examples.

    Returns:
        The page's path.
    """
    folder = Path(folder)
    candidate, baseline = report["names"]
    judge = report["judge"]
    document = Document(f"{candidate} against {baseline}", f"judged by {judge['model']}", folder / "plots")
    document.heading("Result")
    if not report["complete"]:
        document.text(
            f"Not complete: {report['stopped'] or 'some answers are missing'}. Run the command again to go on."
        )
    document.table(["", ""], result_rows(report), texts=(0, 1))
    document.text(
        "A win counts 1, a tie ½; each of the two orders of a comparison counts one half. Intervals of 95 % by bootstrap "
        "over prompts (Wilson's where nothing varies). What the rate at equal length is, docs/judge.md says."
    )
    with figure_style() as pyplot:
        _add_figures(document, pyplot, report, verdicts)
    if report["win_rate"] is not None and report["order"] is not None:
        _add_orders(document, report)
    if left_out := left_out_rows(report):
        document.heading("Without a verdict")
        document.table(["why", "how many"], left_out)
        document.text("An answer that does not follow the form is counted here and never guessed.")
    _add_judge(document, judge, report)
    if examples:
        _add_examples(document, verdicts, (candidate, baseline), examples, words)
    return document.write(folder / "judge.html")


def _add_figures(document: Document, pyplot: Any, report: Mapping[str, Any], verdicts: Sequence[Verdict]) -> None:
    if report["win_rate"] is None:
        return
    caption = "Shares with 95 % intervals; the line is chance."
    document.figure(_rates(pyplot, report), "rates", caption)
    if report["length_controlled"]["value"] is not None and report["length_controlled"]["scale"] > 0:
        caption = (
            "Mean score by the difference of the lengths, in fifths of the comparisons, and the fitted curve: the rate at "
            "equal length is its height at zero."
        )
        document.figure(_by_length(pyplot, report, verdicts), "length", caption)


def _rates(pyplot: Any, report: Mapping[str, Any]) -> Any:
    own = {
        f"win rate of {report['names'][0]}": report["win_rate"],
        "at equal length": report["length_controlled"],
        "where both orders agree": (report["order"] or {}).get("consistent_win_rate"),
        "longer answer preferred": report["lengths"]["longer_preferred"],
        "answer shown first preferred": (report["order"] or {}).get("first_preferred"),
    }
    shown = {label: row for label, row in own.items() if row is not None and row["value"] is not None}
    figure, axes = pyplot.subplots(figsize=(5.2, 0.9 + 0.4 * len(shown)))
    values, errors = errors_of(list(shown.values()))
    for place, value in enumerate(values):
        axes.errorbar(
            value, place, xerr=errors[:, place : place + 1], fmt="o", capsize=3, color=COLOURS[int(place > 2)]
        )
    axes.axvline(0.5, color="#888888", linewidth=0.9, linestyle="--")
    axes.set_yticks(range(len(shown)), list(shown))
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="y", visible=False)
    return figure


def _by_length(pyplot: Any, report: Mapping[str, Any], verdicts: Sequence[Verdict]) -> Any:
    rows = np.array([(own.comparison.length_difference, own.score) for own in verdicts if own.score is not None])
    fit = report["length_controlled"]
    figure, axes = pyplot.subplots(figsize=(5.2, 3.0))
    fifths = np.array_split(rows[np.argsort(rows[:, 0], kind="stable")], min(5, len(rows)))
    axes.plot([own[:, 0].mean() for own in fifths], [own[:, 1].mean() for own in fifths], "o", label="comparisons")
    x = np.linspace(rows[:, 0].min(), rows[:, 0].max(), 200)
    curve = 1 / (1 + np.exp(-(fit["theta"] + fit["phi"] * np.tanh(x / fit["scale"]))))
    axes.plot(x, curve, "-", linewidth=1.3, label="fit")
    axes.axvline(0, color="#888888", linewidth=0.9, linestyle="--")
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(f"characters of {report['names'][0]} minus {report['names'][1]}")
    axes.set_ylabel("mean score")
    axes.legend(fontsize=8)
    return figure


def _add_orders(document: Document, report: Mapping[str, Any]) -> None:
    candidate, baseline = report["names"]
    document.heading("The two orders")
    header = [f"{candidate} first ↓, {baseline} first →", *(f"{outcome} preferred" for outcome in _OUTCOMES)]
    rows = zip(header[1:], report["order"]["table"], strict=True)
    document.table(header, [[label, *(f"{count:,}" for count in counts)] for label, counts in rows])
    document.text(
        "A judge without a liking for a place says first in one order and second in the other, or a tie in both. First in "
        "both, or second in both, is a verdict on the place and counts as a tie."
    )


def _add_judge(document: Document, judge: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    document.heading("The judge")
    if judge["kind"] == "reward model":
        rows = [["reward model", judge["model"]], ["tie up to a difference of", f"{judge['tie_margin']:g}"]]
        document.table(["", ""], rows, texts=(0, 1))
        for note in judge["notes"]:
            document.text(note)
        return
    template, asking, spent = judge["template"], report["asking"], report["spent"]
    rows = [
        ["model", judge["model"]],
        ["endpoint", judge["endpoint"]],
        ["settings", ", ".join(f"{name} {value}" for name, value in judge["settings"].items())],
        ["template", f"{template['name']}: {template['about']}"],
        ["its source", template["source"]],
        ["answers of this run, known before", f"{asking['answered']:,}, {asking['cached']:,}"],
        ["requests sent in all", f"{spent['requests']:,}"],
        *([f"of them {end}", f"{count:,}"] for end, count in spent["by_end"].items()),
        ["tokens sent, answered", f"{spent['tokens_in']:,}, {spent['tokens_out']:,}"],
    ]
    if judge["prices"] is not None:
        rows.append(["cost", number(spent["cost"], 4)])
    rows += [[f"tried again: {what}", f"{count:,}"] for what, count in asking["retried"].items()]
    document.table(["", ""], rows, texts=(0, 1))
    messages = [[role, template[role]] for role in ("system", "user") if template[role]]
    document.table(["role", "prompt"], messages, texts=(0, 1), mono=True, folded="The judge's prompt")


def _add_examples(
    document: Document,
    verdicts: Sequence[Verdict],
    names: tuple[str, str],
    count: int,
    words: ContentFilter | None,
) -> None:
    kinds = {
        f"{names[0]} better": [own for own in verdicts if own.score is not None and own.score > 0.5],
        f"{names[1]} better": [own for own in verdicts if own.score is not None and own.score < 0.5],
        "the orders disagree": [own for own in verdicts if own.consistent is False],
        "no verdict": [own for own in verdicts if own.score is None and not own.unasked],
    }
    shown = {
        f"{kind}: {min(count, len(own))} of {len(own):,}": [
            _example(own[place], names) for place in np.linspace(0, len(own) - 1, min(count, len(own))).astype(int)
        ]
        for kind, own in kinds.items()
        if own
    }
    document.heading("Examples")
    document.text("Texts are shown as data and models wrote them; press a line to see them.")
    if notice := content_notice((text for rows in shown.values() for row in rows for text in row), words):
        document.text(notice)
    has_rewards = any(own.margin is not None for own in verdicts)
    header = ["prompt", *names, "difference of the rewards" if has_rewards else "the judge, in both orders"]
    for folded, rows in shown.items():
        rows = [[shown_text(text, words) for text in row] for row in rows]
        document.table(header, rows, texts=range(4), mono=True, folded=folded)


def _example(verdict: Verdict, names: tuple[str, str]) -> list[str]:
    own = verdict.comparison
    said = "" if verdict.margin is None else f"{verdict.margin:.3f}"
    if verdict.judgements:
        said = "\n\n".join(
            f"[{name} first: {judgement.outcome or judgement.problem}]\n{answer or ''}"
            for name, judgement, answer in zip(names, verdict.judgements, verdict.answers, strict=True)
        )
    return [_cut(text) for text in (own.prompt, own.candidate, own.baseline, said)]


def _cut(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _CUT else text[:_CUT] + f"… ({len(text) - _CUT:,} characters more)"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"
