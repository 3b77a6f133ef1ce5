"""Training and evaluation pairs of ``sparsepo train``: loaded, paired, checked, split."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsepo.data import (
    CheckReport,
    CheckSettings,
    DataError,
    PairSettings,
    check_preferences,
    format_of,
    load_preference_data,
    pairs_from_scored,
    pairs_from_votes,
    split_by_prompt,
)
from sparsepo.data.checker import preference_format
from sparsepo.data.content import announce_content
from sparsepo.data.formats import PAIRABLE_KINDS, PREFERENCE_KINDS
from sparsepo.data.rules import prompt_digest, resolve_row

from .arguments import TrainArguments
from .base import CliError
from .content_flags import content_filter_of
from .tables import say

_ALL_KINDS = (*PREFERENCE_KINDS, *PAIRABLE_KINDS)
_PAIR_FLAGS = ("pairs", "pairs_margin", "pairs_cap")


@dataclass
class PreferenceSets:
    """What training gets.

    Args:
        train, evaluation: clean data sets; evaluation is None where there is none.
        reports: what the checks found; a stream's fills while it is read.
    """

    train: Any
    evaluation: Any = None
    reports: list[CheckReport] = field(default_factory=list)


@dataclass
class DataRequest:
    """Where the data are and how they are to be treated.

    Args:
        script: TRL's ``ScriptArguments``.
        mixture: TRL's ``DatasetMixtureConfig``.
        own: our flags.
        config: the run's ``SparsePOConfig``.
        given: names of settings that flags or a recipe gave.
        tokenizer: for lengths and chat templates.
        max_length: of prompt and response together.
        console: where tables go; None on all processes but the first.
    """

    script: Any
    mixture: Any
    own: TrainArguments
    config: Any
    given: set[str]
    tokenizer: Any
    max_length: int | None
    console: Any = None


def preference_sets(request: DataRequest) -> PreferenceSets:
    """Load, make pairs where needed, check, and set evaluation pairs apart.

    Raises:
        CliError, DataError: no data named, no evaluation data although they are wanted, or data that cannot be used.
    """
    train, evaluation = _load(request)
    sets = PreferenceSets(train)
    if evaluation is not None:
        sets.evaluation = _check(request, evaluation, "evaluation data", sets)
    sets.train = _check(request, train, "training data", sets, against=sets.evaluation)
    if request.own.eval_fraction is not None:
        sets.train, sets.evaluation = _split(request, sets.train)
    return sets


def _load(request: DataRequest) -> tuple[Any, Any]:
    script, own = request.script, request.own
    if request.mixture.datasets:
        return _load_mixture(request)
    if not script.dataset_name:
        raise CliError("No data: give --dataset_name (a file, folder or hub id), or dataset_name in the recipe.")
    if own.eval_fraction is not None and script.dataset_streaming:
        raise CliError("eval_fraction needs the whole data set; with dataset_streaming give eval_dataset.")
    train = _load_pairs(request, script.dataset_name, script.dataset_train_split)
    if own.eval_fraction is not None:
        return train, None
    if own.eval_dataset is not None:
        is_local = Path(own.eval_dataset).expanduser().exists()
        split = None if is_local and "dataset_test_split" not in request.given else script.dataset_test_split
        return train, _load_pairs(request, own.eval_dataset, split)
    if str(getattr(request.config.eval_strategy, "value", request.config.eval_strategy)) == "no":
        return train, None
    return train, _test_split(request)


def _load_mixture(request: DataRequest) -> tuple[Any, Any]:
    from trl import get_dataset

    if request.script.dataset_name:
        raise CliError("datasets and dataset_name exclude each other; give one.")
    sets = get_dataset(request.mixture)
    evaluation = sets.get("test")
    if request.own.eval_dataset is not None:
        evaluation = _load_pairs(request, request.own.eval_dataset, None)
    return sets["train"], evaluation


def _test_split(request: DataRequest) -> Any:
    """The evaluation split of the training data set, ``validation`` where the default ``test`` does not exist."""
    name = request.script.dataset_name
    if Path(name).expanduser().is_file():
        raise CliError(_no_evaluation(request, f"{name} is one file"))
    wanted = request.script.dataset_test_split
    names = [wanted] if "dataset_test_split" in request.given else [wanted, "validation"]
    problems = []
    for split in names:
        try:
            return _load_pairs(request, name, split)
        except DataError as error:
            problems.append(str(error))
    raise CliError(_no_evaluation(request, problems[0]))


def _no_evaluation(request: DataRequest, reason: str) -> str:
    strategy = getattr(request.config.eval_strategy, "value", request.config.eval_strategy)
    return (
        f"eval_strategy={strategy} needs evaluation pairs: {reason}. Give --eval_dataset, --eval_fraction 0.05, or "
        "--eval_strategy no."
    )


def _load_pairs(request: DataRequest, source: str, split: str | None) -> Any:
    script, own = request.script, request.own
    is_hub = not Path(source).expanduser().exists()
    loaded = load_preference_data(
        source,
        split=split,
        streaming=script.dataset_streaming,
        name=script.dataset_config if is_hub else None,
        columns=_renames(own.rename),
        kinds=_ALL_KINDS,
        data_dir=own.dataset_dir if is_hub else None,
    )
    found = format_of(loaded, source)
    if found.kind not in PAIRABLE_KINDS:
        for flag in _PAIR_FLAGS:
            if getattr(own, flag) is not None:
                raise CliError(f"{flag}={getattr(own, flag)!r} has no effect: {source} holds {found.describe()}.")
        return loaded
    if script.dataset_streaming:
        raise CliError(
            f"{source} holds {found.describe()}, from which pairs are made; that needs dataset_streaming off."
        )
    return _made_pairs(request, loaded, source, found.kind)


def _made_pairs(request: DataRequest, rows: Any, source: str, kind: str) -> Any:
    from datasets import Dataset

    own = request.own
    settings = PairSettings(
        strategy=own.pairs or "best_worst",  # type: ignore[arg-type]
        margin=own.pairs_margin or 0.0,
        cap=own.pairs_cap,
        seed=request.config.seed,
    )
    make = pairs_from_scored if kind == "scored" else pairs_from_votes
    pairs, report = make(rows, settings)
    say(request.console, f"{source}: {'; '.join(report.lines())}")
    if not pairs:
        raise CliError(f"{source}: no pairs could be made: {'; '.join(report.lines())}.")
    return Dataset.from_list([{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in pairs])


def _renames(pairs: list[str] | None) -> dict[str, str] | None:
    renames = {}
    for pair in pairs or ():
        old, sign, new = pair.partition("=")
        if not (sign and old and new):
            raise CliError(f"rename: {pair!r} must be OLD=NEW, such as question=prompt.")
        renames[old] = new
    return renames or None


def _check(request: DataRequest, dataset: Any, name: str, sets: PreferenceSets, against: Any = None) -> Any:
    own, config, words = request.own, request.config, content_filter_of(request.own)
    settings = CheckSettings(
        strict=own.strict,
        max_dropped=own.max_dropped,
        max_lost=own.max_lost,
        hh_conversational=own.hh_conversational,
        truncation_mode=config.truncation_mode,
        progress=None if request.console is not None else False,
    )
    try:
        clean, report = check_preferences(
            dataset,
            tokenizer=request.tokenizer,
            max_length=request.max_length,
            max_prompt_length=config.max_prompt_length,
            eval_dataset=against,
            settings=settings,
            name=name,
        )
    except DataError as error:
        found = getattr(error, "report", None)
        if found is not None and request.console is not None:
            announce_content(found, () if request.script.dataset_streaming else dataset, words)
            found.print(request.console)
        raise
    sets.reports.append(report)
    if not request.script.dataset_streaming:  # of a stream nothing is known yet
        announce_content(report, clean, words)
        if request.console is not None:
            report.print(request.console)
    return clean


def _split(request: DataRequest, dataset: Any) -> tuple[Any, Any]:
    """Evaluation pairs by prompt: no prompt is on both sides."""
    form = preference_format(dataset, "training data")
    rows = [
        {"prompt": prompt_digest(resolve_row(row, form)[0]).hex(), "index": index} for index, row in enumerate(dataset)
    ]
    train, held_out = split_by_prompt(rows, request.own.eval_fraction or 0.0, request.config.seed)
    say(request.console, f"evaluation data: {len(held_out):,} pairs set apart, {len(train):,} left to train on")
    return dataset.select([row["index"] for row in train]), dataset.select([row["index"] for row in held_out])
