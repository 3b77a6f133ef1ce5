"""``sparsepo humanrank``: HumanRankEval's score of models, where its data are given."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base import CliError
from .loading_flags import add_loading_flags
from .saved_runs import check_output_folder


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register ``humanrank``; the namespace's ``func`` runs it and returns the exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "humanrank",
        help="HumanRankEval: does a model rank answers as people voted?",
        description="For each question the answers' log-likelihood per character is correlated (Pearson) with people's "
        "votes; the score is the mean over all questions. Several models stand side by side, compared with the first.",
    )
    parser.add_argument("models", nargs="+", metavar="[NAME=]MODEL", help="folder of a model or adapter, or hub id")
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="FILE",
        help="rows with question, answers (objects with text and votes) and, if wanted, topic (else: the file's name)",
    )
    parser.add_argument("--limit", type=int, help="only the first so many questions of each file")
    parser.add_argument("--output", metavar="FOLDER", help="write humanrank.json there, resumable")
    parser.add_argument("--batch_size", type=int, default=8, help="answers together (default: %(default)s)")
    parser.add_argument(
        "--max_length", type=int, help="most tokens of question and answer (default: the model's positions)"
    )
    add_loading_flags(parser, "auto")
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Score, correlate and show. Returns 0."""
    from rich.console import Console

    from sparsepo.evaluation.human_rank import correlations

    _check(args)
    models = _named(args.models)
    questions = [question for file in args.data for question in read_questions(file, args.limit)]
    console = Console()
    folder = None if args.output is None else Path(args.output).expanduser()
    found = {
        name: correlations(questions, _scores(args, name, path, questions, folder, console))
        for name, path in models.items()
    }
    _show(args, questions, found, folder, console)
    return 0


def _check(args: argparse.Namespace) -> None:
    for name in ("limit", "batch_size", "max_length"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise CliError(f"--{name} {value}: must be at least 1.")
    check_output_folder(args.output)


def _named(texts: list[str]) -> dict[str, str]:
    from .models import check_model_name
    from .summary_files import split_source

    found: dict[str, str] = {}
    for text in texts:
        name, path, _ = split_source(text)
        if name in found:
            raise CliError(f"Two models are called {name}: name them, NAME=PATH.")
        found[name] = check_model_name(path, "MODEL")
    return found


def read_questions(path: str, limit: int | None = None) -> list[Any]:
    """Questions of a file.

    Raises:
        CliError: no such file, no rows, or a row without question or answers; names the row and the field.
    """
    from sparsepo.data.reading import read_rows

    file = Path(path).expanduser()
    if not file.is_file():
        raise CliError(f"There is no file {path}.")
    found: list[Any] = []
    for number, row in read_rows(file):
        if limit is not None and len(found) >= limit:
            break
        found.append(_question(row, file.name.split(".")[0], f"{path}, row {number}"))
    if not found:
        raise CliError(f"{path} holds no rows.")
    return found


def _question(row: Mapping[str, Any], topic: str, where: str) -> Any:
    from sparsepo.evaluation.human_rank import Question

    question, answers = row.get("question"), row.get("answers")
    if not isinstance(question, str) or not question.strip():
        raise CliError(f"{where}: 'question' must be a text, found {question!r:.60}.")
    if not isinstance(answers, list) or not all(
        isinstance(one, Mapping) and isinstance(one.get("text"), str) for one in answers
    ):
        raise CliError(f"{where}: 'answers' must be a list of objects with 'text' and 'votes', found {answers!r:.60}.")
    try:
        votes = tuple(float(one["votes"]) for one in answers)
        return Question(question, tuple(one["text"] for one in answers), votes, str(row.get("topic") or topic))
    except (KeyError, TypeError, ValueError) as error:
        raise CliError(f"{where}: {f'an answer has no {error}' if isinstance(error, KeyError) else error}") from error


def _scores(
    args: argparse.Namespace, name: str, path: str, questions: list[Any], folder: Path | None, console: Any
) -> list[list[float | None]]:
    """Of all answers; the model is loaded only if some are missing."""
    from dataclasses import astuple
    from functools import cache

    from sparsepo.evaluation.human_rank import human_rank, scored_in_blocks
    from sparsepo.evaluation.summaries.items import text_hash
    from sparsepo.inspection.summary_page import safe_name

    from .kept import Kept, model_state
    from .models import load_for_sampling, load_tokenizer, positions_of
    from .tables import say
    from .waiting import Waiting

    positions = positions_of(path, args.trust_remote_code)
    if positions is not None and (args.max_length or 0) > positions:
        say(console, f"{name}: max_length {args.max_length} → {positions}: the model has no more positions")
    model = cache(lambda: load_for_sampling(path, args.dtype, args.use_cpu, args.trust_remote_code))
    tokenizer = cache(lambda: load_tokenizer(path, trust_remote_code=args.trust_remote_code))
    about = [model_state(path), [astuple(question) for question in questions], args.max_length, args.dtype]
    own = f"{safe_name(name)}-{text_hash(json.dumps(about))}"
    keep = Kept(None if folder is None else folder / "scores" / own)

    def score(part: Any) -> list[list[float | None]]:
        return human_rank(model(), tokenizer(), part, batch_size=args.batch_size, max_length=args.max_length)

    with Waiting(console, f"scoring with {name}", len(questions)) as waiting:
        return scored_in_blocks(questions, score, keep, waiting)


def _show(
    args: argparse.Namespace,
    questions: list[Any],
    found: Mapping[str, list[float | None]],
    folder: Path | None,
    console: Any,
) -> None:
    from sparsepo.evaluation.summaries import bootstrap_mean
    from sparsepo.inspection.document import with_interval, write_whole

    from .tables import say, text_table

    topics = list(dict.fromkeys(question.topic for question in questions))
    groups = {topic: [question.topic == topic for question in questions] for topic in topics}
    groups["all questions"] = [True] * len(questions)
    content: dict[str, Any] = {"questions": len(questions), "models": {}, "differences": {}}
    for name, values in found.items():
        content["models"][name] = {
            topic: bootstrap_mean([v for v, inside in zip(values, own, strict=True) if inside and v is not None])
            for topic, own in groups.items()
        }
    first = next(iter(found))
    for name in list(found)[1:]:
        pairs = [(a, b) for a, b in zip(found[name], found[first], strict=True) if a is not None and b is not None]
        content["differences"][f"{name} − {first}"] = bootstrap_mean([a - b for a, b in pairs])
    rows = [[topic, *(with_interval(own[topic], digits=4) for own in content["models"].values())] for topic in groups]
    console.print(text_table("HumanRankEval: mean correlation with votes", ["topic", *found], rows))
    for name, own in content["differences"].items():
        say(console, f"{name}: {with_interval(own, digits=4)}, paired by question")
    for name, values in found.items():
        left = sum(value is None for value in values)
        if left:
            say(
                console,
                f"{name}: {left:,} of {len(values):,} questions are left out: an answer is longer than the model takes, or "
                "all votes (or all scores) are equal",
            )
    say(console, "intervals of 95 % by bootstrap over questions")
    if folder is not None:
        settings = {name: value for name, value in vars(args).items() if name not in ("func", "command", "output")}
        content = {"settings": settings, **content}
        write_whole(folder / "humanrank.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
        say(console, f"wrote {folder / 'humanrank.json'}")
