"""``sparsepo inspect``: what the masks chose, token by token, in the terminal, on a page and as a table."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .base import CliError
from .content_flags import content_filter_of
from .saved_runs import add_flags, check_output_folder, config_of, pairs_of, saved_settings, trainer_of

FORMATS = ("html", "parquet", "jsonl")
# repeated here because importing them takes seconds (a test compares them)
LAYERS = ("reward_mask", "kl_mask", "log_ratio", "kl", "reward_part", "kl_part", "contribution", "running")
PAGE_PAIRS = 500  # a page holds no more: it must open in a moment


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register ``inspect``; the namespace's ``func`` runs it and returns the exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "inspect",
        help="what the masks chose, token by token",
        description="Masks, log-ratios, KL and contributions of every response token: some pairs in the terminal, and with "
        "--output a page for the browser and a table of all numbers. A folder that `sparsepo train` wrote brings its "
        "objective and mask along; any other model is shown with MaPO's masks, read from its own activations.",
    )
    parser.add_argument("model", help="folder of a model or adapter, or hub id")
    parser.add_argument("data", nargs="?", help="file, folder or hub id of preference pairs")
    parser.add_argument("--pair", nargs=3, metavar=("PROMPT", "CHOSEN", "REJECTED"), help="one pair instead of DATA")
    parser.add_argument("--output", metavar="FOLDER", help="write inspect.html and tokens.parquet there")
    parser.add_argument(
        "--format", nargs="+", choices=FORMATS, help="with --output: what to write (default: html parquet)"
    )
    parser.add_argument(
        "--layer", choices=LAYERS, help="what colours the tokens in the terminal (default: reward_mask)"
    )
    parser.add_argument("--show", type=int, default=3, help="pairs in the terminal (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="read only so many pairs")
    parser.add_argument("--name", default="", help="what the pairs are called in tables and comparisons: a task, a run")
    parser.add_argument(
        "--summary",
        action="store_true",
        help="statistics: zeros and mean masks by side, position, token class, frequency and type; with --output also "
        "summary.html, summary.json and plots/",
    )
    parser.add_argument("--language", help="with --summary: responses are code in this language, such as python")
    add_flags(parser)
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Inspect. Returns 0."""
    from rich.console import Console

    _check(args)
    words = content_filter_of(args)
    console = Console()
    trainer, dataset = inspected(args, args.model, console, _typed_in(args))
    statistics = _statistics(args, console)
    shown = _write(args, trainer, len(dataset), statistics, console, words)
    _print(args, shown, console)
    if statistics is not None:
        _summarise(args, statistics, trainer, console, words)
    return 0


def inspected(args: argparse.Namespace, model: str, console: Any, loaded: Any = None) -> tuple[Any, Any]:
    """A trainer that scores, and the rows that it was given.

    Args:
        args: flags of :func:`sparsepo.cli.saved_runs.add_flags`, ``data`` and ``limit``.
        model: folder or hub id.
        console: gets what a user should know.
        loaded: rows instead of ``args.data``.
    """
    from .models import check_model_name, fit_length, load_tokenizer, positions_of
    from .progress import quiet_settings
    from .tables import say

    args = argparse.Namespace(**vars(args))
    name = check_model_name(model, "MODEL")
    saved = saved_settings(name)
    if not saved and args.ref_model is None:
        say(console, f"{model} was not trained by sparsepo train: it is its own reference, so log-ratios and KL are 0")
        args.ref_model, args.own_reference = name, True
    config = config_of(args, saved, objective="mapo")
    quiet_settings(config, set())
    fit_length(config, positions_of(name, args.trust_remote_code), console)
    tokenizer = load_tokenizer(name, trust_remote_code=args.trust_remote_code)
    dataset, report = pairs_of(args, config, tokenizer, loaded)
    if loaded is None:
        report.print(console)
    if args.limit is not None:
        dataset = dataset.select(range(min(args.limit, len(dataset))))
    return trainer_of(args, name, saved, config, dataset, tokenizer), dataset


def _check(args: argparse.Namespace) -> None:
    if (args.data is None) == (args.pair is None):
        raise CliError("Give DATA, or --pair PROMPT CHOSEN REJECTED, and not both.")
    if args.pair is not None and not all(args.pair[1:]):
        raise CliError("--pair: CHOSEN and REJECTED must not be empty.")
    if args.pair is not None and args.split is not None:
        raise CliError("--split has no effect with --pair.")
    if args.format is not None and args.output is None:
        raise CliError("--format has no effect without --output FOLDER.")
    if args.language is not None and not args.summary:
        raise CliError("--language has no effect without --summary.")
    for flag, least in (("show", 0), ("limit", 1)):
        value = getattr(args, flag)
        if value is not None and value < least:
            raise CliError(f"--{flag} {value}: must be at least {least}.")
    check_output_folder(args.output)


def _typed_in(args: argparse.Namespace) -> Any:
    if args.pair is None:
        return None
    from datasets import Dataset

    return Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), args.pair, strict=True))])


def _statistics(args: argparse.Namespace, console: Any) -> Any:
    if not args.summary:
        return None
    from sparsepo.inspection.statistics import Statistics
    from sparsepo.inspection.token_classes import find_tagger

    from .tables import say

    tagger, name = find_tagger() if args.language is None else (None, "")
    if args.language is None and tagger is None:
        say(console, f"parts of speech are left out: {name}")
    return Statistics(args.name, args.language, tagger)


def _summarise(args: argparse.Namespace, statistics: Any, trainer: Any, console: Any, words: Any) -> None:
    from sparsepo.inspection.masked_words import masked_types
    from sparsepo.inspection.summary_page import overview_rows, type_table, write_summary

    from .tables import say, text_table

    if args.output is None:
        summaries = {args.name: statistics.summary()}
    else:
        folder = Path(args.output).expanduser()
        subtitle = f"{trainer.objective.display_name} · {args.model}"
        summaries = write_summary({args.name: statistics}, folder, subtitle=subtitle, words=words)
    if not summaries[args.name]["masks"]:
        say(console, f"no statistics of masks: {trainer.objective.display_name} has none")
        return
    console.print(text_table("masks", ["", args.name or "all pairs"], overview_rows(summaries)))
    mask = next(iter(summaries[args.name]["masks"]))
    shown = masked_types(summaries, words)
    console.print(text_table("token types", *type_table(shown[args.name], mask)))
    if args.output is not None:
        say(console, f"wrote {folder / 'summary.html'}, summary.json and plots/")


def _write(args: argparse.Namespace, trainer: Any, count: int, statistics: Any, console: Any, words: Any) -> list[Any]:
    """One pass over the pairs: tables and statistics while they come, then the page. Returns the first pairs."""
    from rich.progress import track

    from sparsepo.inspection import RecordWriter, collect, write_page
    from sparsepo.inspection.masked_words import masked, notice_of

    from .tables import say

    formats = [] if args.output is None else list(args.format or ("html", "parquet"))
    folder = Path(args.output or ".").expanduser()
    kept: list[Any] = []
    most = max(args.show, PAGE_PAIRS if "html" in formats else 0)
    batches = trainer.get_eval_dataloader()
    records = collect(batches, trainer.score, trainer.objective, trainer.processing_class, group=args.name)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(RecordWriter(folder / f"tokens.{ending}")) for ending in formats if ending != "html"
        ]
        for record in track(records, "scoring pairs", total=count, console=console, disable=not console.is_terminal):
            for writer in writers:
                writer.add(record)
            if statistics is not None:
                statistics.add(record)
            if len(kept) < most:
                kept.append(record)
    notice = notice_of(kept, words)
    if notice:
        say(console, notice)
    if "html" in formats:
        folder.mkdir(parents=True, exist_ok=True)
        notes = [] if count <= PAGE_PAIRS else [f"The first {PAGE_PAIRS} of {count} pairs; the table holds all."]
        subtitle = f"{trainer.objective.display_name} · {args.model}"
        write_page(kept[:PAGE_PAIRS], folder / "inspect.html", subtitle=subtitle, notes=notes, words=words)
    for ending in formats:
        file = "inspect.html" if ending == "html" else f"tokens.{ending}"
        pairs = min(count, PAGE_PAIRS) if ending == "html" else count
        say(console, f"wrote {folder / file} ({pairs} pairs)")
    return masked(kept[: args.show], words)


def _print(args: argparse.Namespace, records: list[Any], console: Any) -> None:
    from sparsepo.inspection.page import SIGNED, scale_of_records
    from sparsepo.inspection.terminal import legend, pair_view, shows_colour

    if not records:
        return
    available = records[0].quantities()
    layer = args.layer or ("reward_mask" if "reward_mask" in available else available[0])
    if layer not in available:
        raise CliError(f"--layer {layer}: these scores have no such values; choose one of {', '.join(available)}.")
    limit = scale_of_records(records, layer)
    coloured = shows_colour(console)
    console.print(legend(layer, limit, layer in SIGNED, coloured))
    console.print()
    for record in records:
        console.print(pair_view(record, layer, limit, coloured))
