"""Comparisons → requests in both orders → verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .asking import Asked
from .budget import Prices, Tokens, estimate, upper_bound
from .cache import AnswerCache, request_key
from .comparisons import Comparison
from .templates import Template
from .verdicts import UNANSWERED, Judgement, are_consistent, score_of

DEFAULT_SETTINGS: dict[str, Any] = {"temperature": 0, "max_tokens": 512}
_OWN = ("model", "messages", "stream", "n")  # of a request, that settings may not set


@dataclass(frozen=True)
class Verdict:
    """What came of one comparison.

    Args:
        comparison: what was compared.
        score: the candidate's: 1 a win, 0 a loss; None: excluded.
        judgements: by a language model: with the candidate shown first, with the baseline shown first; empty for identical
            answers and reward models.
        answers: what the judge wrote, in the same order; None: no answer.
        margin: by a reward model: the candidate's reward minus the baseline's.
        unasked: the requests were never sent (a cap).
    """

    comparison: Comparison
    score: float | None
    judgements: tuple[Judgement, ...] = ()
    answers: tuple[str | None, ...] = ()
    margin: float | None = None
    unasked: bool = False

    @property
    def consistent(self) -> bool | None:
        """Whether both orders agree; None where they cannot be compared."""
        return are_consistent(self.judgements) if self.judgements else None

    def to_json(self) -> dict[str, Any]:
        """A row of ``verdicts.jsonl``."""
        own = self.comparison
        found: dict[str, Any] = {"prompt": own.prompt, "candidate": own.candidate, "baseline": own.baseline}
        found |= {"sample": own.sample, "score": self.score, "length_difference": own.length_difference}
        if self.margin is not None:
            return {**found, "margin": self.margin}
        orders = [
            {"shown_first": first, "outcome": judgement.outcome, "problem": judgement.problem, "answer": answer}
            for first, judgement, answer in zip(("candidate", "baseline"), self.judgements, self.answers, strict=False)
        ]
        return {
            **found,
            "identical": own.is_identical,
            "unasked": self.unasked,
            "consistent": self.consistent,
            "orders": orders,
        }


def settings_with(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The default settings of a request, changed; None takes one away.

    Raises:
        ValueError: a setting is not free to choose.
    """
    if wrong := [name for name in changes if name in _OWN]:
        raise ValueError(f"request: {', '.join(wrong)} cannot be set here.")
    merged = {**DEFAULT_SETTINGS, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def requests_of(
    comparisons: Sequence[Comparison], template: Template, model: str, settings: Mapping[str, Any], source: str
) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str] | None]]:
    """The requests of all comparisons, each in both orders; identical answers need none.

    Args:
        comparisons, template: what is asked, and how.
        model, settings: of the requests.
        source: :attr:`~.client.Endpoint.source` of the endpoint that will be asked: a part of the keys.

    Returns:
        Requests by key, and the two keys of each comparison (candidate first, baseline first), None for identical answers.
    """
    bodies: dict[str, dict[str, Any]] = {}
    keys: list[tuple[str, str] | None] = []
    for own in comparisons:
        if own.is_identical:
            keys.append(None)
            continue
        pair = []
        for first, second in ((own.candidate, own.baseline), (own.baseline, own.candidate)):
            body = {"model": model, "messages": template.messages(own.prompt, first, second), **settings}
            pair.append(request_key(body, source))
            bodies[pair[-1]] = body
        keys.append((pair[0], pair[1]))
    return bodies, keys


def verdicts_of(
    comparisons: Sequence[Comparison],
    keys: Sequence[tuple[str, str] | None],
    template: Template,
    cache: AnswerCache,
    asked: Asked,
) -> list[Verdict]:
    """Read the answers in the cache."""
    found = []
    for own, pair in zip(comparisons, keys, strict=True):
        if pair is None:
            found.append(Verdict(own, 0.5))
            continue
        answers = [cache.get(key) for key in pair]
        judgements = tuple(
            Judgement(None, UNANSWERED) if answer is None else template.form.read(answer) for answer in answers
        )
        unasked = any(answer is None and key not in asked.failed for key, answer in zip(pair, answers, strict=True))
        texts = tuple(None if answer is None else answer["content"] or answer["refusal"] or "" for answer in answers)
        found.append(Verdict(own, score_of(judgements), judgements, texts, unasked=unasked))
    return found


def forecast(
    bodies: Mapping[str, Mapping[str, Any]], known: set[str], template: Template, prices: Prices | None
) -> dict[str, Any]:
    """What asking would take, without asking: requests, tokens and cost, about and at most.

    The estimate takes a token for four characters and the answers' usual length; the bound a token for every byte and the
    longest answers, each request sent once. Retries come on top.
    """
    asked = [body for key, body in bodies.items() if key not in known]
    about = sum((estimate(body, template.answer_tokens) for body in asked), Tokens(0, 0))
    found: dict[str, Any] = {"requests": len(bodies), "cached": len(bodies) - len(asked), "to_ask": len(asked)}
    try:
        most: Tokens | None = sum((upper_bound(body) for body in asked), Tokens(0, 0))
    except ValueError:  # no longest answer is set
        most = None
    for name, tokens in (("about", about), ("at_most", most)):
        found[name] = None if tokens is None else {"tokens_in": tokens.sent, "tokens_out": tokens.answered}
        if tokens is not None and prices is not None:
            found[name]["cost"] = prices.cost(tokens)
    return found
