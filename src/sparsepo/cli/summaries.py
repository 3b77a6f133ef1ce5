"""``sparsepo summaries``: how good, how faithful and how varied are summaries of models or files?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .base import CliError
from .content_flags import add_content_flags, content_filter_of
from .saved_runs import check_output_folder
from .summary_files import PICKS

# repeated here because importing them takes seconds (a test compares them)
METRICS = ("rouge", "bertscore", "diversity", "faithfulness", "length")
BERT_MODEL = "roberta-large"
NLI_MODEL = "tals/albert-xlarge-vitaminc-mnli"
# What only sources that are models read, with its default
SAMPLING = {
    "prompts": None,
    "template": "{prompt}",
    "temperatures": [0.0, 0.25, 0.5, 0.75, 1.0],
    "samples": 5,
    "top_p": 0.5,
    "max_new_tokens": 128,
    "seed": 0,
    "max_prompt_length": None,
    "dtype": "auto",
}


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register ``summaries``; the namespace's ``func`` runs it and returns the exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "summaries",
        help="ROUGE, BERTScore, diversity and faithfulness of summaries, of models or files",
        description="Samples summaries of models (n a prompt at each temperature, as in the paper) or reads ready ones, and "
        "judges them: ROUGE and BERTScore against references, self-BLEU and distinct-n among a prompt's samples, "
        "faithfulness by an NLI model. Several sources stand side by side. With --output everything is kept and resumed.",
    )
    picks = ", ".join(f"@{pick}" for pick in PICKS)
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="[NAME=]SOURCE",
        help="a model (folder or hub id), or a file of summaries (prompt, text); of a scored file, FILE@best and the like "
        f"choose which of a prompt's summaries ({picks})",
    )
    judged = parser.add_argument_group("what is judged")
    judged.add_argument(
        "--metrics", nargs="+", choices=METRICS, help="(default: those that need no further model or file)"
    )
    judged.add_argument(
        "--references",
        metavar="FILE",
        help="prompt with reference(s), or scored summaries: the best-scored one is the reference (default: the column "
        "'reference' of the source, or --prompts where it has references or scores)",
    )
    judged.add_argument("--bert_model", help=f"encoder for BERTScore: folder or hub id (default: {BERT_MODEL})")
    judged.add_argument(
        "--bert_layers", type=int, help="its layer (default: as bert-score has chosen for known models)"
    )
    judged.add_argument("--nli_model", help=f"NLI classifier for faithfulness: folder or hub id (default: {NLI_MODEL})")
    judged.add_argument("--limit", type=int, help="only the first so many prompts")
    sampling = parser.add_argument_group("sampling from models")
    sampling.add_argument(
        "--prompts", metavar="FILE", help="rows with a prompt, and a document where it is another text"
    )
    sampling.add_argument("--template", help="what the model reads; {prompt} is replaced (default: {prompt})")
    sampling.add_argument("--temperatures", nargs="+", type=float, help="(default: 0 0.25 0.5 0.75 1)")
    sampling.add_argument("--samples", type=int, help="summaries a prompt at each temperature (default: 5)")
    sampling.add_argument("--top_p", type=float, help="nucleus (default: 0.5)")
    sampling.add_argument("--max_new_tokens", type=int, help="longest summary (default: 128)")
    sampling.add_argument("--max_prompt_length", type=int, help="keep only the last tokens of a prompt")
    sampling.add_argument("--seed", type=int, help="(default: 0)")
    sampling.add_argument("--dtype", choices=["float32", "bfloat16", "float16", "auto"], help="(default: auto)")
    parser.add_argument(
        "--output", metavar="FOLDER", help="write summaries.html, .json, .csv, plots/ and samples/ there"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="texts together (default: %(default)s)")
    parser.add_argument("--use_cpu", action="store_true", help="even where there is a GPU")
    parser.add_argument("--trust_remote_code", action="store_true", help="for models with code of their own")
    add_content_flags(parser)
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Sample, judge and show. Returns 0."""
    from rich.console import Console

    from .summary_sources import check_sources, load_sets, notes_of

    console = Console()
    check_output_folder(args.output)
    content_filter_of(args)  # a file of words that is missing is found before hours of sampling
    sources = check_sources(args)
    groups = _groups(args, sources)
    judges = _judges(args, groups)  # packages and models that are missing are found before hours of sampling
    folder = None if args.output is None else Path(args.output).expanduser()
    sets = load_sets(args, sources, folder, console)
    if "rouge" in groups and not any(item.references for one in sets for item in one.items):
        groups = _without_references(args, groups)
    scored = _scored(args, sets, groups, judges, folder, console)
    _show(args, scored, notes_of(sets, judges, groups), folder, console)
    return 0


def _groups(args: argparse.Namespace, sources: list[Any]) -> list[str]:
    """The metrics asked for, or those for which everything is there."""
    if args.metrics is None:
        given = {"bertscore": args.bert_model, "faithfulness": args.nli_model}
        return [group for group in METRICS if group not in given or given[group] is not None]
    for flag, group in (("bert_model", "bertscore"), ("bert_layers", "bertscore"), ("nli_model", "faithfulness")):
        if getattr(args, flag) is not None and group not in args.metrics:
            raise CliError(f"--{flag} has no effect: --metrics does not name {group}.")
    return [group for group in METRICS if group in args.metrics]


def _without_references(args: argparse.Namespace, groups: list[str]) -> list[str]:
    if args.metrics is not None or "bertscore" in groups:
        raise CliError("ROUGE and BERTScore need references: give --references FILE, or a column 'reference'.")
    return [group for group in groups if group != "rouge"]


def _judges(args: argparse.Namespace, groups: list[str]) -> Any:
    from functools import cache

    from sparsepo.evaluation.summaries import Judges
    from sparsepo.evaluation.summaries.bert import BertScorer, layer_of
    from sparsepo.evaluation.summaries.nli import NliModel
    from sparsepo.evaluation.summaries.requirements import optional

    from .kept import model_state
    from .models import check_model_name

    if "rouge" in groups:
        optional("rouge_score", "ROUGE")
    if "diversity" in groups:
        optional("sacrebleu", "Self-BLEU")
    device = "cpu" if args.use_cpu else None
    bert = nli = None
    bert_name = nli_name = ""
    if "bertscore" in groups:
        name = check_model_name(args.bert_model or BERT_MODEL, "bert_model")
        layer = layer_of(name, args.bert_layers)
        bert_name = str([*model_state(name), layer])
        bert = cache(lambda: BertScorer(name, layer, device, args.batch_size))
        bert()
    if "faithfulness" in groups:
        nli_id = check_model_name(args.nli_model or NLI_MODEL, "nli_model")
        nli_name = str(model_state(nli_id))
        nli = cache(lambda: NliModel.load(nli_id, device, args.batch_size))
        nli()
    return Judges(bert, nli, bert_name, nli_name)


def _scored(
    args: argparse.Namespace, sets: list[Any], groups: list[str], judges: Any, folder: Path | None, console: Any
) -> list[Any]:
    from sparsepo.evaluation.summaries import score_set

    from .kept import Kept
    from .waiting import Waiting

    keep = Kept(None if folder is None else folder / "scores")
    scored = []
    for one in sets:
        with Waiting(console, f"judging {one.label}", len(one.items)) as waiting:
            scored.append(score_set(one, groups, judges, keep, waiting))
    return scored


def _show(args: argparse.Namespace, scored: list[Any], notes: list[str], folder: Path | None, console: Any) -> None:
    from sparsepo.inspection.summarisation_page import NOTE, difference_table, tables, write_report

    from .tables import say, text_table

    for title, (header, rows) in tables(scored).items():
        console.print(text_table(title, header, rows))
    differences = _differences(scored)
    if differences and len(differences) <= 4:
        console.print(text_table("differences, paired by prompt", *difference_table(differences)))
    for note in (NOTE, *notes):
        say(console, note)
    if folder is not None:
        settings = {name: value for name, value in vars(args).items() if name not in ("func", "command", "output")}
        page = write_report(scored, differences, folder, notes, settings, content_filter_of(args))
        say(console, f"wrote {page}, summaries.json, summaries.csv and plots/")


def _differences(scored: list[Any]) -> list[dict[str, Any]]:
    """Every source against the first one: at the same temperature, and what has none (a file) against all of its."""
    from sparsepo.evaluation.summaries import compare

    first = {one.source.temperature: one for one in scored if one.source.name == scored[0].source.name}
    found = []
    for one in scored:
        temperature = one.source.temperature
        others = [own for t, own in first.items() if t == temperature or t is None or temperature is None]
        for other in others if one.source.name != scored[0].source.name else []:
            metrics = compare(one, other)
            if any(own["count"] for own in metrics.values()):
                found.append({"one": one.source.label, "other": other.source.label, "metrics": metrics})
    return found
