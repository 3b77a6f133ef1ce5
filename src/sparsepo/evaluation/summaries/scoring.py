"""Metrics of a set of summaries, prompt by prompt, resumable; and the comparison of two sets on the prompts they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from .bert import BertScorer
from .diversity import distinct, self_bleu
from .faithfulness import edna, faithfulness, self_entailment
from .intervals import bootstrap_mean
from .items import SummaryItem, SummarySet
from .metrics import metrics_of
from .nli import Entailment
from .overlap import rouge

Values = dict[str, list[float | None]]  # metric → one value a prompt
# Key and how to compute → what is kept under the key, computed if it is not there
Keep = Callable[[str, Callable[[], Any]], Any]
Progress = Callable[[int, int], None]  # prompts done, prompts in all
BLOCK = 25  # prompts scored, and kept, together


@dataclass(frozen=True)
class Judges:
    """The models that metrics need, made when they are first asked for.

    Args:
        bert: makes the scorer of BERTScore.
        nli: makes the entailment model.
        bert_name, nli_name: what tells their results from those of other models.
    """

    bert: Callable[[], BertScorer] | None = None
    nli: Callable[[], Entailment] | None = None
    bert_name: str = ""
    nli_name: str = ""


@dataclass(frozen=True)
class Scored:
    """What a set got.

    Args:
        source: the set.
        values: metric → one value a prompt, in the set's order; None where the metric says nothing of a prompt (no
            reference, one sample only).
    """

    source: SummarySet
    values: Values

    def estimates(self, seed: int = 0) -> dict[str, dict[str, Any]]:
        """Mean and 95 % bootstrap interval over prompts of each metric, as :func:`bootstrap_mean` gives them."""
        return {
            name: bootstrap_mean([value for value in own if value is not None], seed)
            for name, own in self.values.items()
        }


def score_set(
    source: SummarySet,
    groups: Sequence[str],
    judges: Judges,
    keep: Keep | None = None,
    progress: Progress | None = None,
) -> Scored:
    """Compute metrics of a set.

    Args:
        source: the summaries.
        groups: of :data:`sparsepo.evaluation.summaries.metrics.GROUPS`.
        judges: models for bertscore and faithfulness.
        keep: keeps the values of each part under a key that depends on its texts and the judges.
        progress: called after each part.

    Raises:
        ValueError: an unknown group, or one whose model is not given.
    """
    values: Values = {name: [] for group in groups for name in metrics_of(group)}
    for group, judge in (("bertscore", judges.bert), ("faithfulness", judges.nli)):
        if group in groups and judge is None:
            raise ValueError(f"metrics={group} needs a model.")
    total = len(source.items)
    for start in range(0, total, BLOCK):
        part = SummarySet(source.name, source.items[start : start + BLOCK])
        for group in groups:
            found = _kept(part, group, judges, keep)
            for name in metrics_of(group):
                values[name] += found[name]
        if progress is not None:
            progress(min(start + BLOCK, total), total)
    return Scored(source, values)


def _kept(part: SummarySet, group: str, judges: Judges, keep: Keep | None) -> Values:
    def compute() -> Values:
        return _compute(part.items, group, judges)

    if keep is None:
        return compute()
    judge = {"bertscore": judges.bert_name, "faithfulness": judges.nli_name}.get(group, "")
    found: Values = keep(f"{group}-{part.fingerprint(group, judge)}", compute)
    return found


def _compute(items: Sequence[SummaryItem], group: str, judges: Judges) -> Values:
    if group == "bertscore":
        assert judges.bert is not None
        return {"bertscore": _bert(items, judges.bert())}
    rows = [_row(item, group, judges) for item in items]
    return {name: [row[name] for row in rows] for name in metrics_of(group)}


def _row(item: SummaryItem, group: str, judges: Judges) -> dict[str, float | None]:
    """One prompt's values; those of single summaries are averaged over its samples."""
    if group == "rouge":
        if not item.references:
            return dict.fromkeys(metrics_of(group))
        found = [rouge(summary, item.references) for summary in item.summaries]
        return {name: fmean(own[name] for own in found) for name in metrics_of(group)}
    if group == "diversity":
        many = len(item.summaries) > 1
        return {
            "self_bleu": self_bleu(item.summaries),
            "distinct1": distinct(item.summaries, 1) if many else None,
            "distinct2": distinct(item.summaries, 2) if many else None,
        }
    if group == "faithfulness":
        assert judges.nli is not None
        nli = judges.nli()
        faithful = fmean(faithfulness(item.document, summary, nli) for summary in item.summaries)
        among = self_entailment(item.summaries, nli)
        return {"faithfulness": faithful, "self_entailment": among, "edna": edna(faithful, among)}
    return {
        "words": fmean(len(summary.split()) for summary in item.summaries),
        "empty": fmean(not summary.strip() for summary in item.summaries),
    }


def _bert(items: Sequence[SummaryItem], scorer: BertScorer) -> list[float | None]:
    rows = [(summary, item.references) for item in items if item.references for summary in item.summaries]
    found = iter(scorer([summary for summary, _ in rows], [references for _, references in rows]))
    return [fmean(next(found) for _ in item.summaries) if item.references else None for item in items]


def compare(one: Scored, other: Scored, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Mean difference ``one − other`` of each metric that both have, over the prompts that both have values of.

    Paired by prompt: the interval is that of the differences, and is narrower than the two sets' own intervals suggest.
    """
    places = {item.prompt: place for place, item in enumerate(other.source.items)}
    found = {}
    for name in one.values:
        if name not in other.values:
            continue
        differences = []
        for place, item in enumerate(one.source.items):
            mine = one.values[name][place]
            theirs = other.values[name][places[item.prompt]] if item.prompt in places else None
            if mine is not None and theirs is not None:
                differences.append(mine - theirs)
        found[name] = bootstrap_mean(differences, seed)
    return found
