"""Sources of ``sparsepo summaries``: which are models, which files; models are sampled from, in parts that are kept."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .base import CliError
from .summary_files import PromptRows, file_set, read_prompts, references_of, split_source


@dataclass(frozen=True)
class Source:
    """One of the command's sources.

    Args:
        name: shown.
        path: of a model or a file.
        pick: which summaries of a file.
        is_file: or a model.
    """

    name: str
    path: str
    pick: str
    is_file: bool


def check_sources(args: argparse.Namespace) -> list[Source]:
    """The sources, with all flags checked and their defaults filled in.

    Raises:
        CliError: a source that is not there, a name twice, a flag out of range or without effect.
    """
    from sparsepo.data.reading import data_suffix

    from .models import check_model_name
    from .summaries import SAMPLING

    sources: list[Source] = []
    for text in args.sources:
        name, path, pick = split_source(text)
        is_file = Path(path).expanduser().is_file() or data_suffix(Path(path)) is not None
        if is_file and not Path(path).expanduser().is_file():
            raise CliError(f"{text}: there is no file {path}.")
        if not is_file:
            path = check_model_name(path, "SOURCE")
        if name in {source.name for source in sources}:
            raise CliError(f"Two sources are called {name}: name them, NAME=PATH.")
        sources.append(Source(name, path, pick, is_file))
    has_model = not all(source.is_file for source in sources)
    for flag, default in SAMPLING.items():
        if getattr(args, flag) is None:
            setattr(args, flag, default)
        elif not has_model:
            raise CliError(f"--{flag} has no effect: every source is a file of summaries.")
    if has_model and args.prompts is None:
        raise CliError("Give --prompts FILE: the rows whose prompts the model summarises.")
    _check_numbers(args)
    return sources


def _check_numbers(args: argparse.Namespace) -> None:
    for name in ("samples", "max_new_tokens", "batch_size", "limit", "max_prompt_length", "bert_layers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise CliError(f"--{name} {value}: must be at least 1.")
    if not 0 < args.top_p <= 1:
        raise CliError(f"--top_p {args.top_p}: must be above 0 and at most 1.")
    if args.seed < 0:
        raise CliError(f"--seed {args.seed}: must be at least 0.")
    if len(set(args.temperatures)) < len(args.temperatures) or min(args.temperatures) < 0:
        raise CliError(f"--temperatures {args.temperatures}: each at least 0, and none twice.")
    if "{prompt}" not in args.template:
        raise CliError(f"--template {args.template!r}: must hold {{prompt}}, where the prompt goes.")


def load_sets(args: argparse.Namespace, sources: list[Source], folder: Path | None, console: Any) -> list[Any]:
    """Sets of all sources, one a temperature; files are read before any model is sampled from."""
    prompts = {} if args.prompts is None else read_prompts(args.prompts, args.limit)
    references = _references(args, prompts)
    ready = {
        source.name: file_set(source.name, source.path, source.pick, references, args.limit)
        for source in sources
        if source.is_file
    }
    sets = []
    for source in sources:
        sets += ready.get(source.name) or _sampled(args, source, prompts, references or {}, folder, console)
    return sets


def _references(args: argparse.Namespace, prompts: Mapping[str, PromptRows]) -> dict[str, tuple[str, ...]] | None:
    """By prompt, from --references, or from --prompts where every row has what it takes; None: each file has its own."""
    if args.references is not None:
        return references_of(read_prompts(args.references), args.references)
    if not prompts or not any(rows.references or rows.rewards for rows in prompts.values()):
        return None
    return references_of(prompts, args.prompts)


def _sampled(
    args: argparse.Namespace,
    source: Source,
    prompts: Mapping[str, PromptRows],
    references: Mapping[str, tuple[str, ...]],
    folder: Path | None,
    console: Any,
) -> list[Any]:
    """Samples of one model, which is loaded only if some are missing."""
    from functools import cache

    from sparsepo.evaluation.summaries import SummaryItem, SummarySet
    from sparsepo.evaluation.summaries.sampling import Sampling, sample_summaries

    from .kept import Kept
    from .models import load_for_sampling, load_tokenizer
    from .waiting import Waiting

    sampling = Sampling(args.samples, args.top_p, args.max_new_tokens, args.seed, batch_size=args.batch_size)
    tokenizer = load_tokenizer(source.path, trust_remote_code=args.trust_remote_code)
    texts = _fitting(
        args, source, tokenizer, [_filled(args.template, rows.prompt) for rows in prompts.values()], console
    )
    load = cache(lambda: (load_for_sampling(source.path, args.dtype, args.use_cpu, args.trust_remote_code), tokenizer))
    sets = []
    for temperature in args.temperatures:
        keep = Kept(_samples_folder(args, source, texts, temperature, sampling, folder))
        with Waiting(console, f"sampling from {source.name} at temperature {temperature:g}", len(texts)) as waiting:
            found = sample_summaries(load, texts, temperature, sampling, keep, waiting)
        items = tuple(
            SummaryItem(key, rows.document, tuple(one["text"] for one in own), references.get(key, ()))
            for (key, rows), own in zip(prompts.items(), found, strict=True)
        )
        sets.append(SummarySet(source.name, items, temperature))
    return sets


def _fitting(args: argparse.Namespace, source: Source, tokenizer: Any, texts: list[Any], console: Any) -> list[Any]:
    """Prompts that leave room for a summary; how many were cut is said."""
    from sparsepo.evaluation.summaries.sampling import shortened

    from .models import positions_of
    from .tables import say

    positions = positions_of(source.path, args.trust_remote_code)
    room = min(
        [
            length
            for length in (args.max_prompt_length, positions and positions - args.max_new_tokens)
            if length is not None
        ],
        default=None,
    )
    if room is None:
        return texts
    if room < 1:
        raise CliError(f"--max_new_tokens {args.max_new_tokens}: {source.name} has {positions} positions in all.")
    found = [shortened(tokenizer, text, room) for text in texts]
    cut = sum(one != other for one, other in zip(found, texts, strict=True))
    if cut:
        say(console, f"{source.name}: {cut:,} of {len(texts):,} prompts are cut to their last {room:,} tokens")
    return found


def _filled(template: str, prompt: Any) -> Any:
    if isinstance(prompt, str):
        return template.replace("{prompt}", prompt)
    if template != "{prompt}":
        raise CliError("--template has no effect on conversations; the model's chat template is applied to them.")
    return prompt


def _samples_folder(
    args: argparse.Namespace, source: Source, texts: list[Any], temperature: float, sampling: Any, folder: Path | None
) -> Path | None:
    """Where samples of exactly these settings lie; ``settings.json`` in it says which."""
    from sparsepo.evaluation.summaries.items import text_hash
    from sparsepo.inspection.document import write_whole
    from sparsepo.inspection.summary_page import safe_name

    from .kept import model_state

    if folder is None:
        return None
    numbers = {name: value for name, value in asdict(sampling).items() if name != "batch_size"}
    settings = {
        "model": model_state(source.path),
        "prompts": text_hash(json.dumps(texts)),
        "temperature": temperature,
        "max_prompt_length": args.max_prompt_length,
        "dtype": args.dtype,
        **numbers,
    }
    text = json.dumps(settings, indent=1) + "\n"
    found = folder / "samples" / f"{safe_name(source.name)}-T{temperature:g}-{text_hash(text)}"
    if not (found / "settings.json").is_file():
        write_whole(found / "settings.json", text)
    return found


def notes_of(sets: list[Any], judges: Any, groups: list[str]) -> list[str]:
    """What a reader of the numbers must know."""
    from sparsepo.evaluation.summaries.items import own_references

    notes = []
    for one in sets:
        with_references = sum(bool(item.references) for item in one.items)
        if {"rouge", "bertscore"} & set(groups):
            if with_references < len(one.items):
                left = len(one.items) - with_references
                notes.append(f"{one.label}: {left:,} prompts have no reference; ROUGE and BERTScore leave them out.")
            own, total = own_references(one.items), sum(len(item.summaries) for item in one.items)
            if own:
                notes.append(
                    f"{one.label}: {own:,} of {total:,} summaries are their own reference, word for word; their ROUGE is "
                    "100 by construction."
                )
    if len({one.name for one in sets}) > 1:
        least = min(len(one.items) for one in sets)
        shared = len(set.intersection(*({item.prompt for item in one.items} for one in sets)))
        if shared < least or shared < max(len(one.items) for one in sets):
            notes.append(
                f"The sources share {shared:,} prompts; columns are over each source's own, differences over shared ones."
            )
    chunked = getattr(judges.nli(), "chunked", 0) if "faithfulness" in groups else 0
    if chunked:
        notes.append(f"{chunked:,} sentences were too long for the NLI model and were read in parts.")
    return notes
