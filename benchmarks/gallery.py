"""The pictures and tables of docs/gallery.md, from what `sparsepo inspect --summary --output` wrote.

    python benchmarks/gallery.py --output docs/gallery IMDB=seen/IMDB:seen/IMDB-MaPO:12 --spans code=code.eval.jsonl

NAME=LEARNED:MAPO:PAIR: two inspections of the same pairs, and the pair that is shown. With --spans (rows with ``span``: the
characters of the rejected response that differ) also how well the masks rank the changed tokens.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME

from sparsepo.evaluation.ranking import roc_auc
from sparsepo.inspection import PairRecord, read_records
from sparsepo.inspection.document import percent, with_interval
from sparsepo.inspection.figures import quoted
from sparsepo.inspection.page import scale_of_records
from sparsepo.inspection.terminal import legend, pair_view


def picture(records: list[PairRecord], number: int, title: str, path: Path) -> None:
    """One pair, coloured by its reward mask, as SVG."""
    record = next(record for record in records if record.number == number)
    limit = scale_of_records(records, "reward_mask")
    console = Console(record=True, width=96, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(legend("reward_mask", limit, False))
    console.print(pair_view(record, "reward_mask", limit))
    svg = console.export_svg(title=title, theme=DEFAULT_TERMINAL_THEME)
    # rich names fonts on a server; the reader's own monospace will do
    path.write_text(re.sub(r"@font-face\s*{[^}]*}", "", svg), encoding="utf-8")


def words(summary: dict[str, Any]) -> dict[str, str]:
    """The most and least weighted token types, one line each."""
    found = summary["masks"]["reward_mask"]["types"]
    return {kind: ", ".join(f"`{quoted(row['piece'])}`" for row in rows[:12]) for kind, rows in found.items()}


def changed_tokens(
    records: list[PairRecord], rows: list[dict[str, Any]], quantity: str
) -> tuple[float, float, int] | None:
    """AUC of a quantity for the tokens that touch the change, pooled over rejected responses; with its standard error by
    bootstrap over pairs."""
    scores, labels = [], []
    for record in records:
        side = record.rejected
        values = side.values(quantity)
        if values is None or record.number >= len(rows):
            continue
        start, end = rows[record.number]["span"]
        offsets = side.offsets()
        hit = (offsets[:, 0] < end) & (offsets[:, 1] > start) & ~side.special
        if hit.any():
            scores.append(np.abs(values))
            labels.append(hit)
    if not scores:
        return None
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(200):
        own = rng.integers(len(scores), size=len(scores))
        drawn.append(roc_auc(np.concatenate([scores[i] for i in own]), np.concatenate([labels[i] for i in own])))
    return roc_auc(np.concatenate(scores), np.concatenate(labels)), float(np.std(drawn)), len(scores)


def class_rows(names: list[str], summaries: list[dict[str, Any]]) -> list[str]:
    """Mean mask and zeros by token class, tasks side by side."""
    labels = ("word start", "inside word", "number", "punctuation", "whitespace", "special")
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for label in labels:
        cells = []
        for summary in summaries:
            own = summary["masks"]["reward_mask"]["class"].get(label)
            cells.append("–" if own is None else f"{own['mean']['value']:.2f} ({percent(own['zeros']['value'])})")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", nargs="+", metavar="NAME=LEARNED:MAPO:PAIR")
    parser.add_argument(
        "--spans", metavar="NAME=FILE", help="rows of NAME with the changed span of the rejected response"
    )
    parser.add_argument("--output", required=True, help="folder of the pictures; tables.md goes there too")
    args = parser.parse_args()
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    spans = dict([args.spans.split("=", 1)]) if args.spans else {}
    names, summaries, lines = [], [], ["| task | masks | most weighted | least weighted |", "|---|---|---|---|"]
    truth: list[str] = []
    for text in args.tasks:
        name, rest = text.split("=", 1)
        learned, mapo, number = rest.split(":")
        for kind, source in (("learned", learned), ("MaPO", mapo)):
            records = list(read_records(Path(source) / "tokens.parquet"))
            summary = next(iter(json.loads((Path(source) / "summary.json").read_text(encoding="utf-8")).values()))
            picture(records, int(number), f"{name}: {kind} masks", folder / f"{name}_{kind}.svg")
            own = words(summary)
            lines.append(f"| {name} | {kind} | {own['most']} | {own['least']} |")
            names.append(f"{name}, {kind}")
            summaries.append(summary)
            if name in spans:
                rows = [json.loads(line) for line in Path(spans[name]).read_text(encoding="utf-8").splitlines()]
                for quantity in ("reward_mask", "log_ratio", "kl"):
                    found = changed_tokens(records, rows, quantity)
                    if found is not None and not (kind == "MaPO" and quantity != "reward_mask"):
                        truth.append(f"| {kind} | {quantity} | {found[0]:.3f} ± {1.96 * found[1]:.3f} | {found[2]} |")
    rows = []
    for label, key, share in (("exact zeros", "zeros", True), ("mean", "mean", False)):
        cells = [with_interval(s["masks"]["reward_mask"][key], share=share) for s in summaries]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    head = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    parts = ["\n".join(head + rows), "\n".join(class_rows(names, summaries)), "\n".join(lines)]
    if truth:
        parts.append("\n".join(["| masks | score | AUC for changed tokens | pairs |", "|---|---|---|---|", *truth]))
    (folder / "tables.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
