"""SparsePO made of TRL's kernels: what a training step costs without a scorer of our own, and without whole logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

from sparsepo.objectives.scores import PairLoss, PairScores
from sparsepo.scoring import LMHead, ScorerInputs, ScorerOutput
from sparsepo.scoring.dense import split_pairs


def _logps(hidden: Tensor, head: LMHead, targets: Tensor) -> Tensor:
    chunk, outputs = _CHUNKED_LOGPROB_CHUNK_SIZE, ("log_probs",)
    result: Tensor = _ChunkedLogProbFunction.apply(
        hidden, head.weight, head.bias, targets, 1.0, chunk, None, head.scale, outputs
    )[0]
    return result


class ComposedScorer:
    """Scores the response tokens with TRL's chunked log-probabilities and divergence; the objective goes by autograd.

    Takes heads without a cap of logits and inputs without a cache.
    """

    def __call__(
        self, inputs: ScorerInputs, objective: Callable[[PairScores], PairLoss], need_kl: bool
    ) -> ScorerOutput:
        keep = inputs.scored
        targets, head = inputs.targets[keep], inputs.policy_head
        hidden = inputs.policy_hidden[keep]

        def scatter(values: Tensor) -> Tensor:
            return values.new_zeros(keep.shape).masked_scatter(keep, values)

        logps = scatter(_logps(hidden, head, targets))
        ref_logps = kl = None
        if inputs.reference_hidden is not None and inputs.reference_head is not None:
            reference, reference_head = inputs.reference_hidden[keep], inputs.reference_head
            with torch.no_grad():
                ref_logps = scatter(_logps(reference, reference_head, targets))
            if need_kl:
                divergence = ChunkedDivergenceFunction.apply(
                    hidden, head.weight, head.bias, reference, reference_head.weight, reference_head.bias, 0.0, 1.0,
                    head.scale, None, reference_head.scale, None,
                )[0]  # fmt: skip
                kl = scatter(divergence)
        scores = split_pairs(logps, ref_logps, kl, inputs.masks, inputs.response_mask, inputs.anchor_weight)
        pair_loss = objective(scores)
        return ScorerOutput((pair_loss.loss * inputs.weights()).sum(), pair_loss, scores)
