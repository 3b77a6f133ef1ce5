"""Scoring in one pass: logits of a few pairs at a time, and their gradient formed before they are forgotten.

The loss couples the tokens of a pair through the objective alone, so the rows of logits of one pair are enough to
finish it: project once through both heads, take log-probabilities and KL from the rows, ask the objective (autograd on
(T,)-sized vectors) for g_t = ∂L/∂log π_t and c_t = ∂L/∂k_t, and overwrite the rows with the gradient of the logits,

    ∂L/∂z_t = g_t (1[v = y_t] − p_t) + c_t (p_t − q_t),        p policy, q reference.

No logits of the whole batch exist, nothing is recomputed in backward, and the objective is called, never re-derived. A
pair that does not fit the memory budget goes through blocks of rows twice, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsepo.masks.base import TokenMasks
from sparsepo.objectives.scores import PairLoss, PairScores

from .dense import ScorerInputs, ScorerOutput, split_pairs
from .head import LMHead
from .rows import RowBuffers, RowStatistics, logit_gradient, row_statistics

DEFAULT_BUDGET_MIB = 512


@dataclass
class _Plan:
    """What the autograd function needs besides its differentiable inputs, and where it leaves what is not."""

    inputs: ScorerInputs
    objective: Callable[[PairScores], PairLoss]
    need_kl: bool
    budget: int  # bytes of the two buffers of logits
    with_gradient: bool
    pair_loss: PairLoss | None = None
    logps: Tensor | None = None
    ref_logps: Tensor | None = None
    kl: Tensor | None = None
    statistics: dict[str, Tensor] = field(default_factory=dict)


class FusedScorer:
    """Scores response tokens in one pass with a bounded buffer.

    Args:
        budget_mib: memory for rows of logits (policy and reference together), MiB. Peak extra memory is this plus the
            gradient of the head, whatever the batch size.

    Values agree with :class:`DenseScorer` to rounding. The returned scores are detached: gradients flow through ``loss``.
    """

    def __init__(self, budget_mib: float = DEFAULT_BUDGET_MIB) -> None:
        if not budget_mib > 0:
            raise ValueError(f"budget_mib={budget_mib!r} must be above 0.")
        self.budget = int(budget_mib * 2**20)

    def __call__(
        self, inputs: ScorerInputs, objective: Callable[[PairScores], PairLoss], need_kl: bool
    ) -> ScorerOutput:
        keep = inputs.scored
        plan = _Plan(inputs, objective, need_kl, self.budget, torch.is_grad_enabled())
        head, masks = inputs.policy_head, inputs.masks
        loss = _FusedLoss.apply(
            inputs.policy_hidden[keep],
            head.weight,
            head.bias,
            None if masks is None else masks.reward,
            None if masks is None else masks.kl,
            plan,
        )
        assert plan.pair_loss is not None
        assert plan.logps is not None
        detached = None if masks is None else TokenMasks(masks.reward.detach(), masks.kl.detach())
        scores = split_pairs(plan.logps, plan.ref_logps, plan.kl, detached, inputs.response_mask)
        return ScorerOutput(loss, plan.pair_loss, scores, plan.statistics)


@dataclass
class _Work:
    """Tensors of one call: kept rows in order, gradients being filled, (R, T) results."""

    hidden: Tensor  # (N, H)
    targets: Tensor  # (N,)
    reference_hidden: Tensor | None  # (N, H)
    grad_hidden: Tensor | None
    grad_weight: Tensor | None
    grad_bias: Tensor | None
    buffers: RowBuffers


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
        mask_grads = [
            torch.zeros_like(m) if m is not None and need else None
            for m, need in zip((reward_mask, kl_mask), needs[3:5], strict=True)
        ]
        # autocast would turn products of float32 rows into half precision
        with torch.autocast(hidden.device.type, enabled=False):
            loss = _run(work, reward_mask, kl_mask, mask_grads, plan)
        # kept in float32 until the loss's scale is on them: fp16 would lose the small ones
        ctx.gradients = (work.grad_hidden, work.grad_weight, work.grad_bias, *mask_grads)
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias, reward_mask, kl_mask)]
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> Any:
        if ctx.gradients is None:
            raise RuntimeError(
                "The fused scorer's gradients were used up by an earlier backward. Backward twice (retain_graph) needs "
                "scorer='dense'."
            )
        gradients, ctx.gradients = ctx.gradients, None
        # in place: the head's gradient is as large as the head
        pairs = zip(gradients, ctx.dtypes, strict=True)
        scaled = [None if g is None else g.mul_(grad_loss.to(g.dtype)).to(dtype) for g, dtype in pairs]
        return (*scaled, None)


def _prepare(hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: _Plan, needs: Any) -> _Work:
    inputs = plan.inputs
    keep = inputs.scored
    dtype = torch.promote_types(torch.promote_types(weight.dtype, hidden.dtype), torch.float32)
    reference = inputs.reference_hidden

    def zeros(like: Tensor | None, wanted: bool) -> Tensor | None:
        return torch.zeros(like.shape, dtype=dtype, device=like.device) if wanted and like is not None else None

    return _Work(
        hidden=hidden.detach(),
        targets=inputs.targets[keep],
        reference_hidden=None if reference is None else reference[keep],
        grad_hidden=zeros(hidden, needs[0]),
        grad_weight=zeros(weight, needs[1]),
        grad_bias=zeros(bias, needs[2]),
        buffers=RowBuffers(weight.shape[0], dtype, hidden.device),
    )


def _groups(counts: list[int], rows_that_fit: int) -> Iterator[tuple[int, int]]:
    """Consecutive pairs [first, last) whose rows fit the buffer together; a larger pair stands alone."""
    first, total = 0, 0
    for pair, count in enumerate(counts):
        if pair > first and total + count > rows_that_fit:
            yield first, pair
            first, total = pair, 0
        total += count
    if first < len(counts):
        yield first, len(counts)


def _run(
    work: _Work, reward_mask: Tensor | None, kl_mask: Tensor | None, mask_grads: list[Tensor | None], plan: _Plan
) -> Tensor:
    """Walk over groups of pairs; returns the weighted loss and fills ``work``, ``mask_grads`` and ``plan``."""
    inputs = plan.inputs
    keep = inputs.scored
    pairs = len(keep) // 2
    counts = keep.sum(1)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).tolist()
    has_reference = work.reference_hidden is not None and inputs.reference_head is not None
    buffers = 2 if has_reference else 1
    fit = max(1, plan.budget // (buffers * work.buffers.vocabulary * work.buffers.dtype.itemsize))
    results = _Results(keep, work.buffers.dtype, has_reference, plan)
    pair_counts = [starts[p + 1] - starts[p] + starts[pairs + p + 1] - starts[pairs + p] for p in range(pairs)]
    for first, last in _groups(pair_counts, fit):
        sequences = [*range(first, last), *range(pairs + first, pairs + last)]
        index = torch.cat([torch.arange(starts[s], starts[s + 1]) for s in sequences]).to(keep.device)
        blocks = list(index.split(fit)) or [index]
        found = [row_statistics(*_block(work, plan, rows), plan.need_kl, inputs.statistics) for rows in blocks]
        rows = torch.tensor(sequences, device=keep.device)
        results.put(rows, found)
        token_grads = results.objective(rows, first, last, reward_mask, kl_mask, mask_grads, plan)
        if work.grad_hidden is None and work.grad_weight is None and work.grad_bias is None:
            continue
        assert token_grads is not None
        for block, (row_index, statistics) in enumerate(zip(blocks, found, strict=True)):
            if len(blocks) > 1:  # the buffer holds the last block only: project again
                row_statistics(*_block(work, plan, row_index), plan.need_kl, False)
            offset = sum(len(b) for b in blocks[:block])
            grads = [g[offset : offset + len(row_index)] for g in token_grads]
            _accumulate(work, inputs.policy_head, row_index, grads, statistics)
    return results.finish(plan)


def _block(work: _Work, plan: _Plan, index: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Logits of some kept rows through both heads, in the buffers: policy (n, V), reference (n, V), targets (n,)."""
    inputs = plan.inputs
    policy = work.buffers.project("policy", inputs.policy_head, work.hidden[index])
    reference = None
    if work.reference_hidden is not None and inputs.reference_head is not None:
        reference = work.buffers.project("reference", inputs.reference_head, work.reference_hidden[index])
    return policy, reference, work.targets[index]


def _accumulate(work: _Work, head: LMHead, index: Tensor, grads: list[Tensor], statistics: RowStatistics) -> None:
    """Rows of probabilities in the buffers → gradient of the logits → gradients of hidden states and head."""
    dz = logit_gradient(work.buffers, statistics, work.targets[index], grads[0], grads[1], head)
    if work.grad_hidden is not None:
        work.grad_hidden[index] = work.buffers.times_weight(dz, head.weight)
    if work.grad_weight is not None:
        work.grad_weight.addmm_(dz.T, work.hidden[index].to(dz.dtype))
    if work.grad_bias is not None:
        work.grad_bias += dz.sum(0)


class _Results:
    """(R, T) arrays filled group by group, and the objective's answers."""

    def __init__(self, keep: Tensor, dtype: torch.dtype, has_reference: bool, plan: _Plan) -> None:
        self.keep, self.response = keep, plan.inputs.response_mask
        names = [
            "logps",
            *(["ref_logps"] if has_reference else []),
            *(["kl"] if has_reference and plan.need_kl else []),
        ]
        names += ["entropy", "mean_logits", "is_top1"] if plan.inputs.statistics else []
        self.arrays = {name: torch.zeros(keep.shape, dtype=dtype, device=keep.device) for name in names}
        pairs = len(keep) // 2
        self.loss = torch.zeros(pairs, dtype=dtype, device=keep.device)
        self.rewards = torch.zeros(2, pairs, dtype=dtype, device=keep.device)

    def put(self, rows: Tensor, found: list[RowStatistics]) -> None:
        """Scatter the values of a group's kept tokens."""
        for name, array in self.arrays.items():
            values = torch.cat([getattr(statistics, name) for statistics in found])
            part = torch.zeros_like(array[rows])
            part[self.keep[rows]] = values
            array[rows] = part

    def objective(
        self,
        rows: Tensor,
        first: int,
        last: int,
        reward_mask: Tensor | None,
        kl_mask: Tensor | None,
        mask_grads: list[Tensor | None],
        plan: _Plan,
    ) -> list[Tensor] | None:
        """Evaluate the objective on a group; returns [∂L/∂log π, ∂L/∂k] of its kept tokens, (n,) each."""
        leaves = {name: self.arrays[name][rows] for name in ("logps", "kl") if name in self.arrays}
        masks = {n: m.detach()[rows] for n, m in (("reward", reward_mask), ("kl_mask", kl_mask)) if m is not None}
        with torch.enable_grad() if plan.with_gradient else torch.no_grad():
            for tensor in (*leaves.values(), *masks.values()):
                tensor.requires_grad_(plan.with_gradient)
            ref_logps = self.arrays["ref_logps"][rows] if "ref_logps" in self.arrays else None
            both = TokenMasks(masks["reward"], masks["kl_mask"]) if masks else None
            scores = split_pairs(leaves["logps"], ref_logps, leaves.get("kl"), both, self.response[rows])
            result = plan.objective(scores)
            total = (result.loss * plan.inputs.weights()[first:last]).sum()
        self.loss[first:last] = result.loss.detach().to(self.loss.dtype)
        self.rewards[0, first:last], self.rewards[1, first:last] = result.chosen_rewards, result.rejected_rewards
        if not plan.with_gradient or not total.requires_grad:
            return None
        wanted = [*leaves.values(), *masks.values()]
        grads = dict(zip([*leaves, *masks], torch.autograd.grad(total, wanted, allow_unused=True), strict=True))
        for target, name in zip(mask_grads, ("reward", "kl_mask"), strict=True):
            if target is not None and grads.get(name) is not None:
                target[rows] = grads[name].to(target.dtype)
        zero = torch.zeros_like(leaves["logps"])
        kept = self.keep[rows]
        found = (grads.get(name) for name in ("logps", "kl"))
        return [(zero if gradient is None else gradient)[kept] for gradient in found]

    def finish(self, plan: _Plan) -> Tensor:
        """Hand the arrays over; returns the weighted loss."""
        plan.logps = self.arrays["logps"]
        plan.ref_logps, plan.kl = self.arrays.get("ref_logps"), self.arrays.get("kl")
        plan.statistics = {n: self.arrays[n] for n in ("entropy", "mean_logits", "is_top1") if n in self.arrays}
        plan.pair_loss = PairLoss(self.loss, self.rewards[0], self.rewards[1])
        return (self.loss * plan.inputs.weights()).sum()
