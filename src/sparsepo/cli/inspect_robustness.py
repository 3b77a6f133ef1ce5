"""``sparsepo inspect robustness``: noise, attacks, flipped labels, other data."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .base import CliError, CommandParser
from .content_flags import content_filter_of
from .inspect import inspected
from .saved_runs import add_flags, check_output_folder

# repeated here because importing them takes seconds (a test compares them)
METHODS = ("DPO", "TDPO1", "SparsePO", "MaPO")
CHANGES = ("typos", "case", "dropped words", "dropped function words", "neutral synonyms")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register ``inspect robustness``; the namespace's ``func`` runs it and returns the exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "inspect robustness",
        help="masks and rewards under noise, attacks, flipped labels and on other data",
        description="Four checks, each resumable with --output: noise in the responses and words inserted to mislead (of a "
        "trained model); flipped training labels and other test data (each method is trained anew).",
    )
    checks = parser.add_subparsers(dest="check", required=True, parser_class=CommandParser)
    noise = checks.add_parser("noise", help="typos, case, dropped words, neutral synonyms in both responses")
    changes = f"{', '.join(CHANGES)} (default: all)"
    noise.add_argument("--changes", nargs="+", choices=CHANGES, metavar="CHANGE", default=list(CHANGES), help=changes)
    noise.add_argument(
        "--rates",
        nargs="+",
        type=float,
        default=[0.05, 0.1, 0.2, 0.4],
        help="share of the words (default: .05 .1 .2 .4)",
    )
    attack = checks.add_parser("adversarial", help="words with large masks inserted into the rejected responses")
    attack.add_argument("--counts", nargs="+", type=int, default=[1, 2, 4, 8], help="words inserted (default: 1 2 4 8)")
    for own in (noise, attack):
        own.add_argument("model", help="folder of a trained model, or hub id")
        own.add_argument("data", help="file, folder or hub id of preference pairs")
        own.add_argument("--output", metavar="FOLDER", help="results, resumable, with robustness.html and plots/")
        own.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
        own.add_argument("--limit", type=int, help="read only so many pairs")
        add_flags(own)
    labels = checks.add_parser("labels", help="train each method on pairs some of which are flipped")
    labels.add_argument(
        "--flips", nargs="+", type=float, default=[0.0, 0.05, 0.1, 0.2, 0.4], help="shares (default: 0 .05 .1 .2 .4)"
    )
    shift = checks.add_parser("shift", help="train each method on one set, judge it on others")
    for own in (labels, shift):
        own.add_argument("model", help="folder or hub id of the start")
        own.add_argument("train", help="file of training pairs")
        own.add_argument("tests", nargs="+", metavar="NAME=FILE", help="clean held-out pairs; the name may be left out")
        own.add_argument(
            "--output", metavar="FOLDER", required=True, help="results, resumable; several processes may share it"
        )
        own.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="(default: all)")
        own.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: 0 1 2)")
        own.add_argument("--steps", type=int, default=100, help="(default: %(default)s)")
        own.add_argument("--batch_size", type=int, default=8, help="pairs (default: %(default)s)")
        own.add_argument("--learning_rate", type=float, default=1e-5, help="of the policy (default: %(default)s)")
        own.add_argument("--beta", type=float, default=0.1, help="(default: %(default)s)")
        own.add_argument("--max_length", type=int, default=512, help="(default: %(default)s)")
        own.add_argument("--limit", type=int, help="most pairs of each file")
        own.add_argument("--jobs", type=int, default=1, help="processes, one thread each (default: 1)")
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the check. Returns 0, or 1 where training runs failed."""
    from rich.console import Console

    _check(args)
    console = Console()
    return _trained(args, console) if args.check in ("labels", "shift") else _scored(args, console)


def _check(args: argparse.Namespace) -> None:
    for name in ("rates", "flips"):
        for value in getattr(args, name, ()):
            if not 0 <= value <= 1:
                raise CliError(f"--{name} {value}: must be a share from 0 to 1.")
    for name in ("counts", "limit", "steps", "batch_size", "jobs"):
        value = getattr(args, name, None)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and one < 1:
                raise CliError(f"--{name} {one}: must be at least 1.")
    check_output_folder(args.output)


# ---- of a trained model ----


def _scored(args: argparse.Namespace, console: Any) -> int:
    from sparsepo.inspection.robustness import Results, adversarial, lexicon_of, noise

    trainer, dataset = inspected(args, args.model, console)
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in dataset]
    identity = {
        "check": args.check,
        "model": args.model,
        "data": _fingerprint(rows),
        "objective": {"name": trainer.objective.name, **trainer.objective.settings()},
        "seed": args.seed,
        "max_length": trainer.args.max_length,
    }
    results = Results(None if args.output is None else Path(args.output).expanduser(), identity)

    def score(own: Sequence[dict[str, Any]], text: str) -> list[Any]:
        return _score(trainer, own, text, console)

    if args.check == "noise":
        found = noise(rows, score, results, changes=args.changes, rates=args.rates, seed=args.seed)
    else:
        half = len(rows) // 2  # words are chosen on one half, and tried on the other
        found = adversarial(
            rows[half:],
            score,
            results,
            lambda: lexicon_of(score(rows[:half], "where words are chosen"), seed=args.seed),
            counts=args.counts,
            seed=args.seed,
        )
    _show(args, found, results, console)
    return 0


def _score(trainer: Any, rows: Sequence[dict[str, Any]], text: str, console: Any) -> list[Any]:
    from datasets import Dataset
    from rich.progress import track

    from sparsepo.inspection import collect

    batches = trainer.get_eval_dataloader(trainer.prepare_pairs(Dataset.from_list(list(rows))))
    records = collect(batches, trainer.score, trainer.objective, trainer.processing_class)
    found = list(track(records, text, total=len(rows), console=console, disable=not console.is_terminal))
    if len(found) != len(rows):
        raise CliError(f"{len(rows) - len(found)} rows are longer than max_length after {text}; raise --max_length.")
    return found


def _fingerprint(rows: Sequence[dict[str, Any]]) -> str:
    return hashlib.blake2b(repr(rows).encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def _show(args: argparse.Namespace, found: dict[str, Any], results: Any, console: Any) -> None:
    from sparsepo.data.content import shown_text
    from sparsepo.inspection.robustness_page import table, write_page

    from .tables import say, text_table

    words = content_filter_of(args)
    console.print(text_table(args.check, *table(found, brief=True)))
    if args.check == "adversarial":
        for kind, inserted in results.get("lexicon", dict).items():
            text = ", ".join(inserted)
            say(console, f"{kind}: {shown_text(text, words)}")
    if args.output is not None:
        folder = Path(args.output).expanduser()
        lexicon = results.get("lexicon", dict) if args.check == "adversarial" else {}
        write_page(args.check, found, lexicon, folder, args.model, words)
        say(console, f"wrote {folder / 'robustness.html'} and plots/; what is done is not measured again")


# ---- trained anew ----


def _trained(args: argparse.Namespace, console: Any) -> int:
    from sparsepo.experiments.robustness import accuracy_table, label_tasks, read_pairs, write_training_report
    from sparsepo.experiments.running import run_tasks
    from sparsepo.experiments.store import Store

    from .tables import say, text_table

    tests = _named_files(args.tests)
    for path in (args.train, *tests.values()):
        read_pairs(path, 1)  # a bad file is refused before hours of training
    settings = {
        name: getattr(args, name) for name in ("steps", "batch_size", "learning_rate", "max_length", "limit", "beta")
    }
    flips = args.flips if args.check == "labels" else [0.0]
    tasks = label_tasks(args.model, args.train, tests, args.seeds, flips, objectives=args.methods, **settings)
    store = Store(Path(args.output).expanduser())
    run_tasks(tasks, store, args.jobs)
    for test, (header, rows) in accuracy_table(tasks, store).items():
        console.print(text_table(f"reward accuracy on {test}", header, rows))
    title = "Flipped labels" if args.check == "labels" else "Other data"
    say(console, f"wrote {write_training_report(tasks, store, title)} and plots/")
    return int(any(store.result(task) is None for task in tasks))


def _named_files(texts: Sequence[str]) -> dict[str, str]:
    from sparsepo.inspection.compare import split_name

    found: dict[str, str] = {}
    for text in texts:
        name, path = split_name(text)
        if not Path(path).exists():
            raise CliError(f"{text}: there is no file {path}.")
        name = name or Path(path).name.split(".")[0]
        if name in found:
            raise CliError(f"Two tests are called {name}: name them, NAME=FILE.")
        found[name] = path
    return found
