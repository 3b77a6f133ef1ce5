"""``sparsepo data check`` and ``sparsepo data pairs``; registers ``data sample`` and ``data code-pairs``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .content_flags import add_content_flags, content_filter_of
from .data_code_pairs import add_code_pairs
from .data_sample import add_sample

_CHECK = """Find what would break or distort training, and say what training does about it: rows are dropped and
counted, and the command ends with status 0. With --strict any dropped row is an error (status 1) that names row and
field."""
_PAIRS = """Make preference pairs from scored completions (prompt, text, reward) or votes (history, human_ref_A,
human_ref_B, labels). Rows of a prompt need not stand together."""


def add_parser(subparsers: Any) -> None:
    """Register ``data`` with its subcommands; each sets ``func``, which takes the namespace and returns an exit status."""
    data = subparsers.add_parser(
        "data", help="check preference data; sample completions; make pairs from scored ones", allow_abbrev=False
    )
    commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    _add_check(commands)
    _add_pairs(commands)
    add_sample(commands)
    add_code_pairs(commands)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="JSON, JSONL, CSV, TSV (also .gz), Parquet, a folder, or a hub id")
    parser.add_argument("--split", help="split, as in 'train' or 'test[:200]'")
    parser.add_argument("--name", help="configuration of a hub data set")
    _flag(parser, "--data_dir", help="folder inside a hub data set, such as harmless-base")
    parser.add_argument(
        "--rename", action="append", default=[], metavar="OLD=NEW", help="rename a column (may be repeated)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace output files that exist")


def _add_check(commands: Any) -> None:
    parser = commands.add_parser(
        "check", help="what is wrong with preference data", description=_CHECK, allow_abbrev=False
    )
    _add_source(parser)
    parser.add_argument("--tokenizer", help="model folder or hub id; needed for everything about lengths")
    _flag(parser, "--max_length", type=int, help="tokens of prompt and response together")
    _flag(parser, "--max_prompt_length", type=int, help="prompts are cut to their last N tokens")
    parser.add_argument("--eval", metavar="FILE", help="eval data, to look for overlap")
    _flag(parser, "--eval_split", help="split of the eval data")
    parser.add_argument(
        "--streaming", action="store_true", help="read rows one by one: for files larger than the memory (no --eval)"
    )
    parser.add_argument("--strict", action="store_true", help="status 1 if any row would be dropped")
    _flag(parser, "--max_dropped", type=float, default=0.5, help="share of dropped rows that is an error (default 0.5)")
    _flag(parser, "--max_lost", type=float, help="drop rows whose response loses more than this share to max_length")
    parser.add_argument("--drop", nargs="+", default=[], metavar="RULE", help="rules whose rows are dropped")
    parser.add_argument("--keep", nargs="+", default=[], metavar="RULE", help="rules whose rows are kept")
    _flag(parser, "--hh_conversational", action="store_true", help="transcripts as chat messages instead of plain text")
    parser.add_argument(
        "--examples", type=int, default=3, help="examples of each finding in the JSON report (default 3)"
    )
    parser.add_argument("--json", metavar="OUT", help="write the report as JSON ('-': print it instead of the table)")
    parser.add_argument("--output", metavar="OUT", help="write the rows that stay (.jsonl, .jsonl.gz, .parquet)")
    add_content_flags(parser)
    parser.set_defaults(func=run_check)


def _add_pairs(commands: Any) -> None:
    parser = commands.add_parser(
        "pairs", help="scored completions or votes → pairs", description=_PAIRS, allow_abbrev=False
    )
    _add_source(parser)
    parser.add_argument(
        "--output", required=True, metavar="OUT", help="file for the pairs (.jsonl, .jsonl.gz, .parquet)"
    )
    parser.add_argument(
        "--strategy",
        choices=("best_worst", "all", "threshold"),
        default="best_worst",
        help="best_worst: one pair a prompt (default); all: every two rewards that differ; threshold: all, margin needed",
    )
    parser.add_argument("--margin", type=float, default=0.0, help="least difference of the two rewards (default 0)")
    parser.add_argument("--cap", type=int, help="most pairs of one prompt, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the draws and the order (default 0)")
    parser.add_argument(
        "--joiner",
        default="auto",
        help="between prompt and text: auto (a space where one is missing; default), space, none, or characters, \\n for "
        "a line break",
    )
    _flag(parser, "--min_ratio", type=float, default=1.0, help="votes: least ratio of the two scores (default 1)")
    _flag(parser, "--finished_only", action="store_true", help="leave out sampled completions that were cut off")
    _flag(parser, "--no_dedupe", action="store_true", help="do not merge repeated completions")
    _flag(parser, "--no_shuffle", action="store_true", help="keep the order of the prompts")
    _flag(parser, "--eval_fraction", type=float, help="share of the PROMPTS whose pairs go to a second file")
    _flag(parser, "--eval_output", metavar="OUT", help="that file (default: OUT with .eval before its suffix)")
    parser.set_defaults(func=run_pairs)


def run_check(args: argparse.Namespace) -> int:
    """``sparsepo data check``; 0 unless the data fail."""
    from sparsepo.data import CheckError, CheckSettings, check_preferences, load_preference_data
    from sparsepo.data.content import announce_content
    from sparsepo.data.writing import check_output, write_rows

    if args.streaming and args.eval:
        raise ValueError(
            "--streaming with --eval: overlap is found by comparing whole data sets; leave one of them out."
        )
    actions = {**dict.fromkeys(args.drop, "drop"), **dict.fromkeys(args.keep, "keep")}
    both = sorted(set(args.drop) & set(args.keep))
    if both:
        raise ValueError(f"--drop and --keep both name {', '.join(both)}.")
    settings = CheckSettings(
        strict=args.strict,
        max_dropped=args.max_dropped,
        max_lost=args.max_lost,
        actions=actions,  # type: ignore[arg-type]
        hh_conversational=args.hh_conversational,
        examples=args.examples,
    )
    if args.output:
        check_output(Path(args.output), args.overwrite)
    if args.json and args.json != "-":
        check_output(Path(args.json), args.overwrite, (".json",))
    words = content_filter_of(args)
    tokenizer = _load_tokenizer(args.tokenizer) if args.tokenizer else None
    dataset = _load(args, streaming=args.streaming)
    held_out = load_preference_data(args.eval, split=args.eval_split) if args.eval else None
    try:
        clean, report = check_preferences(
            dataset, tokenizer, args.max_length, args.max_prompt_length, held_out, settings, name=args.file
        )
        if args.streaming:
            _read_through(_judged(clean, report, settings), args)
    except CheckError as error:
        announce_content(error.report, dataset, words)
        _show(error.report, args.json)
        raise
    announce_content(report, dataset, words)
    _show(report, args.json)
    if args.output:
        if not args.streaming:
            write_rows(clean, args.output, args.overwrite)
        _say(f"Wrote {report.kept:,} rows to {args.output}", args.json)
    return 0


def _judged(rows: Any, report: Any, settings: Any) -> Any:
    """A checked stream that ends in the verdict."""
    from sparsepo.data.checking import judge

    yield from rows
    judge(report, settings)


def _read_through(rows: Any, args: argparse.Namespace) -> None:
    """Rows of a stream are checked as they are read; written on the way where a file was asked for."""
    from sparsepo.data.writing import write_rows

    if args.output:
        write_rows(rows, args.output, args.overwrite)
    else:
        for _ in rows:
            pass


def run_pairs(args: argparse.Namespace) -> int:
    """``sparsepo data pairs``; 0 when at least one pair was written."""
    from sparsepo.data import DataError, PairSettings, format_of, pairs_from_scored, pairs_from_votes, split_by_prompt
    from sparsepo.data.writing import check_output, write_rows

    settings = PairSettings(
        strategy=args.strategy,
        margin=args.margin,
        cap=args.cap,
        seed=args.seed,
        joiner=args.joiner.replace("\\n", "\n").replace("\\t", "\t"),
        dedupe=not args.no_dedupe,
        shuffle=not args.no_shuffle,
        min_ratio=args.min_ratio,
        finished_only=args.finished_only,
    )
    output = check_output(Path(args.output), args.overwrite)
    held_output = eval_output(args, output)
    dataset = _load(args, ("scored", "votes"))
    is_votes = format_of(dataset).kind == "votes"
    pairs, report = (pairs_from_votes if is_votes else pairs_from_scored)(dataset, settings)
    print("\n".join(report.lines()))
    if not pairs:
        raise DataError(f"{args.file}: no pairs could be made; the lines above say why.")
    if held_output is None:
        write_rows(pairs, output, args.overwrite)
    else:
        pairs, held_out = split_by_prompt(pairs, args.eval_fraction, args.seed)
        write_rows(held_out, held_output, args.overwrite)
        write_rows(pairs, output, args.overwrite)
        print(f"Wrote {len(held_out):,} eval pairs (other prompts) to {held_output}")
    print(f"Wrote {len(pairs):,} pairs to {output}")
    return 0


def eval_output(args: argparse.Namespace, output: Path) -> Path | None:
    """Where eval pairs go; checked before any work."""
    from sparsepo.data.writing import check_output

    if args.eval_fraction is None:
        if args.eval_output:
            raise ValueError("--eval_output needs --eval_fraction, the share of prompts to set apart.")
        return None
    if not 0 < args.eval_fraction < 1:
        raise ValueError(f"--eval_fraction {args.eval_fraction} must lie between 0 and 1.")
    stem, dot, suffix = output.name.partition(".")
    path = Path(args.eval_output) if args.eval_output else output.with_name(f"{stem}.eval{dot}{suffix}")
    if path == output:
        raise ValueError(f"--eval_output and --output are both {output}.")
    return check_output(path, args.overwrite)


def renames_of(given: list[str]) -> dict[str, str]:
    """``OLD=NEW`` texts as a mapping."""
    renames = {}
    for item in given:
        old, equals, new = item.partition("=")
        if not (old and equals and new):
            raise ValueError(f"--rename {item!r}: write OLD=NEW, such as question=prompt.")
        renames[old] = new
    return renames


def _load(
    args: argparse.Namespace, kinds: tuple[Any, ...] = ("preference", "hh_transcript"), streaming: bool = False
) -> Any:
    from sparsepo.data import load_preference_data

    return load_preference_data(
        args.file,
        split=args.split,
        streaming=streaming,
        name=args.name,
        columns=renames_of(args.rename),
        kinds=kinds,
        data_dir=args.data_dir,
    )


def _load_tokenizer(name: str) -> Any:
    from sparsepo.loading import load_tokenizer

    try:
        return load_tokenizer(name)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"--tokenizer {name}: no tokenizer could be loaded ({first})") from error


def _show(report: Any, json_path: str | None) -> None:
    """The table on the terminal, the JSON where asked."""
    if json_path == "-":
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    # Without a terminal rich assumes 80 columns, which breaks the examples.
    report.print(Console(width=None if sys.stdout.isatty() else 120))
    if json_path:
        from sparsepo.data.writing import replacing

        with replacing(Path(json_path)) as temporary:
            temporary.write_text(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _say(text: str, json_path: str | None) -> None:
    print(text, file=sys.stderr if json_path == "-" else sys.stdout)


def _flag(parser: argparse.ArgumentParser, name: str, **kwargs: Any) -> None:
    """A flag with both spellings, --max_length and --max-length."""
    parser.add_argument(name, name.replace("_", "-"), **kwargs)
