"""Win rates: pairs of answers judged by a language model behind an OpenAI-compatible endpoint, or by a reward model."""

from __future__ import annotations

from sparsepo.evaluation.endpoints import key_from_environment

from .asking import Asked, Manners, ask_all
from .budget import BudgetError, Ledger, Prices
from .cache import AnswerCache, default_cache, request_key
from .client import Endpoint, JudgeError
from .comparisons import Comparison, Joined, comparisons_of, has_both_answers, join_answers
from .questions import Verdict, forecast, requests_of, settings_with, verdicts_of
from .report import summarise
from .reward_judge import judge_by_rewards
from .templates import Template, load_template, template_names

__all__ = [
    "AnswerCache",
    "Asked",
    "BudgetError",
    "Comparison",
    "Endpoint",
    "Joined",
    "JudgeError",
    "Ledger",
    "Manners",
    "Prices",
    "Template",
    "Verdict",
    "ask_all",
    "comparisons_of",
    "default_cache",
    "forecast",
    "has_both_answers",
    "join_answers",
    "judge_by_rewards",
    "key_from_environment",
    "load_template",
    "request_key",
    "requests_of",
    "settings_with",
    "summarise",
    "template_names",
    "verdicts_of",
]
