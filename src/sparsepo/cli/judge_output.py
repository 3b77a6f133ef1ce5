"""What ``sparsepo judge`` leaves: judge.json, verdicts.jsonl, judge.html, and a table in the terminal."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .base import RUN_ERROR, CliError
from .content_flags import content_filter_of

REPORT, VERDICTS = "judge.json", "verdicts.jsonl"


def check_identity(args: argparse.Namespace, judge: dict[str, Any], joined: Any, names: Sequence[str]) -> str:
    """Hash of what is judged, how and by whom; a folder that holds another judging is refused without ``--overwrite``.

    ``--limit``, caps and prices are no part of it: with others of these the same judging goes on. Nor is the endpoint, which
    is compared by itself, so that the error can name it.
    """
    kept = {name: value for name, value in judge.items() if name not in ("endpoint", "source", "prices")}
    texts = [(own.prompt, own.candidate, own.baseline) for own in joined.comparisons]
    content = json.dumps([kept, texts, list(names)], sort_keys=True)
    identity = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
    path = Path(args.output).expanduser() / REPORT
    if path.exists() and not args.overwrite:
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            found, by = report["identity"], _source(report["judge"])
        except (ValueError, KeyError, TypeError):
            found = by = None
        if found != identity:
            raise CliError(f"{path} is another judging; give --overwrite, or another --output.")
        if by != _source(judge):
            raise CliError(
                f"{path} is a judging by another endpoint, {by}; give --overwrite, another --output, or, where the same "
                f"server has moved, --endpoint_name {by}."
            )
    return identity


def _source(judge: dict[str, Any]) -> str | None:
    """The endpoint of a judging, by its name or address; None for reward models."""
    from sparsepo.evaluation.judge.client import source_of

    if judge["kind"] == "reward model":
        return None
    return str(judge.get("source") or source_of(judge["endpoint"]))


def finish(
    args: argparse.Namespace,
    console: Any,
    verdicts: Sequence[Any],
    judge: dict[str, Any],
    names: list[str],
    identity: str,
    stopped: str = "",
    more: dict[str, Any] | None = None,
) -> int:
    """Write everything and show the numbers. Returns 0, or 1 where something was left unasked."""
    from sparsepo.data.writing import write_rows
    from sparsepo.evaluation.judge import summarise
    from sparsepo.inspection.document import write_whole
    from sparsepo.inspection.judge_page import left_out_rows, result_rows, write_page

    from .tables import say, text_table

    folder = Path(args.output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarise(verdicts, args.seed, args.resamples)
    is_complete = not summary["unasked"] and not (more or {}).get("asking", {}).get("failed")
    report = {"names": names, "complete": is_complete, "stopped": stopped, **summary}
    report |= {"judge": judge, **(more or {}), "seed": args.seed, "resamples": args.resamples, "identity": identity}
    write_rows([own.to_json() for own in verdicts], folder / VERDICTS, overwrite=True)
    write_page(report, verdicts, folder, args.examples, content_filter_of(args))
    write_whole(folder / REPORT, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    console.print(text_table(f"{names[0]} against {names[1]}", ["", ""], result_rows(report)))
    if left_out := left_out_rows(report):
        console.print(text_table("without a verdict", ["why", ""], left_out))
    for note in judge.get("notes", []):
        say(console, note)
    if "spent" in report and judge["prices"] is not None:
        say(console, f"cost of all runs into this folder: {report['spent']['cost']:.4g}")
    say(console, f"wrote {folder / 'judge.html'}, {REPORT}, {VERDICTS} and plots/")
    if stopped:
        say(console, f"stopped: {stopped}. What is answered is kept; raise the cap and run again to go on.")
        return RUN_ERROR
    return 0
