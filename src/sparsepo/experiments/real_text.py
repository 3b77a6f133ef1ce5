"""Masks on real text: ``python -m sparsepo.experiments.real_text --model SFT --scored FILE --output DIR``.

Trains masks, read at both positions and at several target sparsities, on pairs of scored completions, and ranks them
against sentiment word lists; then on texts against themselves with replaced words, where the deciding tokens are known.
Resumable as the studies are. The model: ``sparsepo sft --config recipes/sft_small.yaml``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .grids import ANCHOR, BETA, TARGETS, Setting, learned, plain
from .real_text_runs import YARDSTICKS, Corpus, RealTextTask
from .running import run_tasks
from .store import Store
from .tables import REAL_TEXT_COLUMNS, real_text_controls, study_table


def settings() -> list[Setting]:
    """What is trained, the most informative first."""
    rate: dict[str, Any] = {"mask_learning_rate": None}  # the library's: a multiple of the policy's
    positions = ("predicting", "token")
    own: list[Setting] = [("DPO", {"objective": "dpo", "beta": BETA, "kl_anchor": ANCHOR})]
    own += [learned("relu", mask_position=position) for position in positions]
    own += [learned("relu", target) for target in TARGETS]
    own += [plain("relu", target, mask_position=position, **rate) for target in (None, 0.6) for position in positions]
    own += [learned("normalised", 0.6, mask_position=position) for position in positions]
    own += [learned("relu", target, mask_position="token") for target in TARGETS]
    own.append(("published", {"preset": "published", "beta": BETA}))
    return own


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write DIR/real_text.md. Returns 0, or 1 where runs failed or are missing."""
    args = _parser().parse_args(arguments)
    store = Store(args.output)
    corpus = Corpus(args.model, args.scored, args.vader, args.opinion, limit=args.train_pairs)
    corpus.words()  # before anything is trained: are the lists there?
    tasks = [
        RealTextTask(label, corpus, own, yardstick, seed, args.steps, learning_rate=args.learning_rate)
        for seed in args.seeds
        for label, own in settings()
        for yardstick in args.yardsticks
    ]
    if args.only is not None:
        tasks = [task for task in tasks if any(word in task.label for word in args.only)]
    tasks = tasks if args.limit is None else tasks[: args.limit]
    if not args.report_only:
        run_tasks(tasks, store, args.jobs)
    parts = ["# Masks on real text\n"]
    for yardstick in args.yardsticks:
        own_tasks = [task for task in tasks if task.yardstick == yardstick]
        title = {"words": "Against the word lists", "edits": "Against known edits"}[yardstick]
        parts += [
            f"## {title}\n",
            study_table(own_tasks, store, REAL_TEXT_COLUMNS),
            real_text_controls(own_tasks, store),
        ]
    parts.append(
        "Mean ± half of the 95 % interval over seeds (Student's t). content: first tokens of content words only.\n"
    )
    report = "\n".join(parts)
    (Path(args.output) / "real_text.md").write_text(report, encoding="utf-8")
    print(report)
    return int(any(store.result(task) is None for task in tasks))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sparsepo.experiments.real_text", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="folder of a small causal LM with its tokenizer")
    parser.add_argument("--scored", required=True, help="rows with prompt, text and reward (.jsonl, .jsonl.gz)")
    parser.add_argument("--vader", help="zip file of VADER's word list")
    parser.add_argument("--opinion", help="zip file of the opinion lexicon; give at least one of the two lists")
    parser.add_argument("--output", required=True, help="folder of results")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--steps", type=int, default=100, help="of training, 8 pairs each (default: %(default)s)")
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="of the policy (default: %(default)s)")
    parser.add_argument("--yardsticks", nargs="+", choices=YARDSTICKS, default=list(YARDSTICKS), help="default: both")
    parser.add_argument("--train_pairs", type=int, help="most training pairs (default: all)")
    parser.add_argument("--limit", type=int, help="only the first runs, which say the most")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only settings whose name holds one of these words")
    parser.add_argument("--report_only", action="store_true", help="run nothing, write the tables of what is done")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
