"""Scoring in one pass: logits of a few pairs at a time, and their gradient formed before they are forgotten.

The loss couples the tokens of a pair through the objective alone, so the rows of logits of one pair are enough to
finish it: project once through both heads, take log-probabilities and KL from the rows, ask the objective (autograd on
(T,)-sized vectors) for g_t = ∂L/∂log π_t and c_t = ∂L/∂k_t, and overwrite the rows with the gradient of the logits,

    ∂L/∂z_t = g_t (1[v = y_t] − p_t) + c_t (p_t − q_t),        p policy, q reference.

No logits of the whole batch exist, nothing is recomputed in backward, and the objective is called, never re-derived.
:mod:`sparsepo.scoring.walks` holds the ways through a group of pairs, which differ in memory, not in their result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsepo.masks.base import TokenMasks
from sparsepo.objectives.scores import PairLoss, PairScores

from .dense import ScorerInputs, ScorerOutput, split_pairs
from .head import operand_head
from .results import STATISTICS, Results
from .rows import RowBuffers
from .triton_rows import row_backend
from .walks import Work, walk

LEAST_BUDGET_MIB = 512
GPU_SHARE = 64  # of a GPU's memory, where that is more: larger groups need fewer launches


@dataclass
class _Plan:
    """What the autograd function needs besides its differentiable inputs, and where it leaves what is not."""

    inputs: ScorerInputs
    objective: Callable[[PairScores], PairLoss]
    need_kl: bool
    budget: int | None  # bytes of the buffers of logits
    with_gradient: bool
    kept: tuple[Tensor, ...]  # rows and columns of the tokens to score, (N,) each
    pair_loss: PairLoss | None = None
    arrays: dict[str, Tensor] = field(default_factory=dict)


class FusedScorer:
    """Scores response tokens in one pass with a bounded buffer.

    Args:
        budget_mib: memory for rows of logits (policy and reference together), MiB. Peak extra memory is this plus the
            gradient of the head, whatever the batch size. None: the size of that gradient in float32, at least 512, and on
            CUDA at least 1/64 of the device's memory.

    Values agree with :class:`DenseScorer` to rounding. The returned scores are detached: gradients flow through ``loss``.
    """

    def __init__(self, budget_mib: float | None = None) -> None:
        if budget_mib is not None and not budget_mib > 0:
            raise ValueError(f"budget_mib={budget_mib!r} must be above 0.")
        self.budget = None if budget_mib is None else int(budget_mib * 2**20)

    def __call__(
        self, inputs: ScorerInputs, objective: Callable[[PairScores], PairLoss], need_kl: bool
    ) -> ScorerOutput:
        inputs.check_cached(need_kl)
        # looked up once: every use of a boolean index waits for the device
        kept = inputs.scored.nonzero(as_tuple=True)
        plan = _Plan(inputs, objective, need_kl, self.budget, torch.is_grad_enabled(), kept)
        head, masks = inputs.policy_head, inputs.masks
        loss = _FusedLoss.apply(
            inputs.policy_hidden[kept],
            head.weight,
            head.bias,
            None if masks is None else masks.reward,
            None if masks is None else masks.kl,
            plan,
        )
        assert plan.pair_loss is not None
        arrays = plan.arrays
        detached = None if masks is None else TokenMasks(masks.reward.detach(), masks.kl.detach())
        scores = split_pairs(
            arrays["logps"],
            arrays.get("ref_logps"),
            arrays.get("kl"),
            detached,
            inputs.response_mask,
            inputs.anchor_weight,
        )
        return ScorerOutput(loss, plan.pair_loss, scores, {n: arrays[n] for n in STATISTICS if n in arrays})


class _FusedLoss(torch.autograd.Function):
    """Σ_p weight_p · loss_p with gradients for hidden states, head and masks, formed in forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        reward_mask: Tensor | None,
        kl_mask: Tensor | None,
        plan: _Plan,
    ) -> Tensor:
        needs = ctx.needs_input_grad if plan.with_gradient else (False,) * 6
        work = _prepare(hidden, weight, bias, plan, needs)
        masks = None if reward_mask is None or kl_mask is None else (reward_mask, kl_mask)
        results = Results(plan.inputs, plan.objective, work.buffers.dtype, plan.with_gradient, plan.need_kl, masks)
        # autocast would turn products of float32 rows into half precision
        with torch.autocast(hidden.device.type, enabled=False):
            walk(work, results, _budget(plan, weight))
        plan.pair_loss, plan.arrays = results.pair_loss(), results.arrays
        # kept in float32 until the loss's scale is on them: fp16 would lose the small ones
        ctx.gradients = (work.grad_hidden, work.grad_weight, work.grad_bias, *(results.mask_grads or (None, None)))
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias, reward_mask, kl_mask)]
        return results.weighted_loss()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> Any:
        if ctx.gradients is None:
            raise RuntimeError(
                "The fused scorer's gradients were used up by an earlier backward. Backward twice (retain_graph) needs "
                "scorer='dense'."
            )
        gradients, ctx.gradients = list(ctx.gradients), None
        scaled: list[Tensor | None] = []
        while gradients:  # in place and one by one: the head's gradient is as large as the head
            gradient = gradients.pop(0)
            dtype = ctx.dtypes[len(scaled)]
            scaled.append(None if gradient is None else gradient.mul_(grad_loss.to(gradient.dtype)).to(dtype))
        return (*scaled, None)


def _budget(plan: _Plan, weight: Tensor) -> int:
    if plan.budget is not None:
        return plan.budget
    least = LEAST_BUDGET_MIB << 20
    if weight.device.type == "cuda":
        least = max(least, torch.cuda.get_device_properties(weight.device).total_memory // GPU_SHARE)
    return max(least, 4 * weight.numel())


def _prepare(hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: _Plan, needs: Any) -> Work:
    inputs, keep = plan.inputs, plan.kept
    dtype = inputs.policy_head.row_dtype(hidden)
    cached, reference = inputs.cached, inputs.reference_hidden

    def zeros(like: Tensor | None, wanted: bool) -> Tensor | None:
        return torch.zeros(like.shape, dtype=dtype, device=like.device) if wanted and like is not None else None

    def kept(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[keep].to(dtype)

    return Work(
        head=operand_head(inputs.policy_head),
        flat=keep[0] * inputs.targets.shape[1] + keep[1],
        hidden=hidden.detach(),
        targets=inputs.targets[keep],
        reference_head=None
        if cached is not None or inputs.reference_head is None
        else operand_head(inputs.reference_head),
        reference_hidden=None if reference is None or cached is not None else reference[keep],
        cached_logps=None if cached is None else kept(cached.logps),
        cached_normaliser=None if cached is None else kept(cached.log_normaliser),
        cached_hidden=None if cached is None else kept(cached.hidden),
        expected_weight=None if cached is None else kept(cached.expected_weight),
        need_kl=plan.need_kl,
        statistics=inputs.statistics,
        has_fixed_direction=bool(getattr(plan.objective, "has_fixed_direction", False)),
        grad_hidden=zeros(hidden, needs[0]),
        grad_weight=zeros(weight, needs[1]),
        grad_bias=zeros(bias, needs[2]),
        buffers=RowBuffers(weight.shape[0], dtype, hidden.device),
        arithmetic=row_backend(hidden.device),
    )
