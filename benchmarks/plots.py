"""Plots of what a scoring head costs: against sparsity, and against the length of responses.

    python benchmarks/plots.py                # measures what is missing, then draws
    python benchmarks/plots.py --rounds 0     # draws what OUTPUT/sparsity.json and length.json hold

Each picture has the time of loss and gradients beside the peak of what torch allocates for them; both as PNG and SVG. The
measurements are scorer.py's: variants take turns, points are medians, bands reach from the fastest round to the slowest.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import Results, add_clock, clock_note, machine, markdown, spread
from scorer import VARIANTS, Problem, measure, ours

from sparsepo.scoring import DenseScorer, FusedScorer

SHARES = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95)
# the same colour for the same thing in both pictures (Okabe and Ito's, which most eyes tell apart)
STYLES = {
    "dense": ("#E69F00", "s"),
    "TRL DPO (no KL)": ("#009E73", "^"),
    "TRL composed (with KL)": ("#CC79A7", "v"),
    "fused": ("#0072B2", "o"),
    "fused, 80 % zeros": ("#56B4E9", "D"),
    "frozen head: fused": ("#666666", "X"),
    "frozen head: cached reference": ("#D55E00", "P"),
}
LINES = ("dense", "TRL DPO (no KL)", "TRL composed (with KL)")  # do not depend on the masks' zeros
Run = Callable[[Problem], None]


def sparsity_runs() -> dict[str, dict[float, Run]]:
    """Curves of the first picture: name → share of zeros → what is timed. Both dense and fused leave masked tokens out."""

    def curve(scorer: Any, **settings: Any) -> dict[float, Run]:
        return {share: functools.partial(_ours, scorer=scorer, share=share, **settings) for share in SHARES}

    return {
        "dense": curve(DenseScorer()),
        "fused": curve(FusedScorer()),
        "frozen head: fused": curve(FusedScorer(), frozen=True),
        "frozen head: cached reference": curve(FusedScorer(), frozen=True, cached=True),
        **{name: {0.0: VARIANTS[name]} for name in LINES[1:]},
    }


def _ours(problem: Problem, scorer: Any, share: float, **settings: Any) -> None:
    ours(problem, scorer, share, **settings)


def table(result: dict[str, Any]) -> str:
    """Markdown of one measurement."""
    lines = [
        [row["variant"], f"{row['median']:.3f}", spread(row["seconds"], 3), f"{row['peak_mib']:.0f}"]
        for row in result["rows"]
    ]
    return f"## {result['key']}\n\n{markdown(['variant', 'seconds (median)', 'spread', 'peak extra MiB'], lines)}"


def measure_sparsity(args: argparse.Namespace, results: Results) -> None:
    """All points of the first picture, in one measurement."""
    key = f"{args.pairs} pairs, {args.tokens} tokens"
    if args.rounds and not results.holds(key, args.rounds):
        runs = {f"{name} @ {share}": run for name, curve in sparsity_runs().items() for share, run in curve.items()}
        results.add(key, {"rounds": args.rounds, "rows": measure(args, args.tokens, runs)})


def measure_lengths(args: argparse.Namespace, results: Results) -> None:
    """The second picture, a measurement a length."""
    names = ("dense", "TRL DPO (no KL)", "TRL composed (with KL)", "fused", "fused, 80 % zeros")
    for length in args.lengths:
        if args.rounds and not results.holds(str(length), args.rounds):
            runs = {name: VARIANTS[name] for name in (*names, "frozen head: cached reference")}
            results.add(str(length), {"rounds": args.rounds, "rows": measure(args, length, runs)})


Points = dict[str, list[tuple[float, dict[str, Any]]]]


def sparsity_points(results: Results) -> Points:
    """Curves by name: (zeros in %, row)."""
    points: Points = {}
    for row in next(iter(results.found.values()))["rows"]:
        name, share = row["variant"].split(" @ ")
        points.setdefault(name, []).append((100 * float(share), row))
    return points


def length_points(results: Results) -> Points:
    """Curves by name: (response tokens, row)."""
    points: Points = {}
    for key, result in sorted(results.found.items(), key=lambda item: int(item[0])):
        for row in result["rows"]:
            points.setdefault(row["variant"], []).append((float(key), row))
    return points


def draw(points: Points, axis: str, title: str, path: Path, clock: str, ticks: Sequence[float], log: bool) -> None:
    """Time on the left, memory on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    pyplot.rcParams.update({"font.size": 10, "svg.hashsalt": "sparsepo", "axes.spines.top": False})
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for name, curve in points.items():
        colour, marker = STYLES[name]
        look = {"color": colour, "marker": marker, "markersize": 5, "label": name}
        x = [position for position, _ in curve]
        medians = [row["median"] for _, row in curve]
        peaks = [row["peak_mib"] for _, row in curve]
        if len(curve) == 1:  # does not depend on the axis
            for panel, value in ((left, medians[0]), (right, peaks[0])):
                panel.axhline(value, color=colour, linestyle="--", label=name)
            continue
        left.plot(x, medians, **look)
        low, high = ([pick(row["seconds"]) for _, row in curve] for pick in (min, max))
        left.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        right.plot(x, peaks, **look)
    seconds = "seconds" if clock == "wall" else "seconds of the processor"
    for panel, label in ((left, seconds), (right, "peak extra memory (MiB)")):
        if log:
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(ticker.LogLocator(10, subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.minorticks_off()
        else:
            panel.set_ylim(bottom=0)
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.set_xlabel(axis)
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=130)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    pyplot.close(figure)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=192, help="response tokens of the picture against sparsity")
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 64, 128, 256], help="response tokens")
    parser.add_argument("--rounds", type=int, default=3, help="0: draw what is there")
    parser.add_argument("--threads", type=int, default=1)
    add_clock(parser)
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.set_defaults(memory=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "plots", help="folder")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        sys.exit("Plots need matplotlib, which sparsepo brings: make setup")
    torch.set_num_threads(args.threads)
    sizes = f"{args.pairs} pair{'s' if args.pairs > 1 else ''}, H {args.hidden}, V {args.vocabulary}, {args.dtype}"
    setting = f"{sizes}, {machine()}{clock_note(args.clock)}"
    command = f"python benchmarks/plots.py {' '.join(sys.argv[1:])}"
    zeros = "response tokens whose masks are zero (%)"
    pictures: list[tuple[str, Any, Any, str, str]] = [
        ("sparsity", measure_sparsity, sparsity_points, zeros, f"{args.tokens} tokens a response, "),
        ("length", measure_lengths, length_points, "tokens of a response", ""),
    ]
    for name, measured, points, axis, detail in pictures:
        results = Results(str(args.output / name), setting, command, table, args.fresh)
        measured(args, results)
        if not results.found:
            print(f"{name}: nothing measured yet (--rounds 0 measures nothing)", file=sys.stderr)
            continue
        ticks = (0, 25, 50, 70, 80, 90, 100) if name == "sparsity" else [int(key) for key in results.found]
        title = f"Scoring head, loss and gradients: {detail}{sizes}\n{machine()}{clock_note(args.clock)}"
        draw(points(results), axis, title, args.output / name, args.clock, ticks, log=name == "length")
        print(args.output / f"{name}.png")


if __name__ == "__main__":
    main()
