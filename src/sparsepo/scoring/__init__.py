"""Hidden states and heads → per-token log-probabilities and full-vocabulary KL. ``dense`` is the readable truth."""

from .cached import CachedReference
from .dense import DenseScorer, Scorer, ScorerInputs, ScorerOutput, dense_pair_scores
from .fused import FusedScorer
from .head import LMHead
from .tokens import token_kl, token_logps

__all__ = [
    "CachedReference",
    "DenseScorer",
    "FusedScorer",
    "LMHead",
    "Scorer",
    "ScorerInputs",
    "ScorerOutput",
    "dense_pair_scores",
    "token_kl",
    "token_logps",
]
