"""Hidden states and heads → per-token log-probabilities and full-vocabulary KL. ``dense`` is the readable truth."""

from .cached import CachedReference
from .dense import DenseScorer, Scorer, ScorerInputs, ScorerOutput, dense_pair_scores
from .fused import FusedScorer
from .head import LMHead
from .reference_values import ReferenceValues, reference_values
from .tokens import token_kl, token_logps

__all__ = [
    "CachedReference",
    "DenseScorer",
    "FusedScorer",
    "LMHead",
    "ReferenceValues",
    "Scorer",
    "ScorerInputs",
    "ScorerOutput",
    "dense_pair_scores",
    "reference_values",
    "token_kl",
    "token_logps",
]
