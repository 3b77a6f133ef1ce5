"""What is logged: TRL's names, and those of masks and KL, as sums and counts that add up over batches and processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsepo.masks.statistics import mask_statistics
from sparsepo.objectives import PairLoss, PairScores, TokenScores
from sparsepo.scoring import ScorerOutput

SIDES = ("chosen", "rejected")


def _wide(value: Tensor) -> Tensor:
    """float64, where the device has it."""
    return value.detach().float() if value.device.type == "mps" else value.detach().double()


class MetricSums:
    """Weighted averages and maxima by name, kept on the device until they are read.

    Every process must add the same names, so that one reduction in name order serves all.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # name → (2,) [weighted sum, weight]
        self._maxima: dict[str, Tensor] = {}

    def add(self, name: str, total: Tensor, count: Tensor) -> None:
        """Add Σ weight · value and Σ weight."""
        pair = torch.stack([_wide(total), _wide(count)])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def maximum(self, name: str, value: Tensor) -> None:
        """Raise a maximum."""
        value = _wide(value)
        self._maxima[name] = torch.maximum(self._maxima[name], value) if name in self._maxima else value

    def drain(self, accelerator: Any) -> dict[str, float]:
        """Averages and maxima over all processes; the collection is empty afterwards. A collective call."""
        values: dict[str, float] = {}
        if self._sums:
            names = sorted(self._sums)
            sums = accelerator.reduce(torch.stack([self._sums[name] for name in names]).float(), reduction="sum")
            for name, (total, count) in zip(names, sums.tolist(), strict=True):
                values[name] = total / count if count else 0.0
        if self._maxima:
            names = sorted(self._maxima)
            local = torch.stack([self._maxima[name] for name in names]).float()
            everywhere = accelerator.gather(local[None]).amax(0)
            values |= dict(zip(names, everywhere.tolist(), strict=True))
        self._sums.clear()
        self._maxima.clear()
        return values


def collect_metrics(
    sums: MetricSums, output: ScorerOutput, weight: Tensor, beta: float, has_masks: bool, complete: bool = True
) -> None:
    """Add a batch of P pairs.

    Args:
        sums: where to add.
        output: what the scorer returned.
        weight: weight of each pair, (P,): 0 for rows that a sampler repeated to fill the last batch.
        beta: the objective's β.
        has_masks: whether the objective reads masks.
        complete: whether every response token was scored; otherwise only what masked tokens cannot change is added.
    """
    _rewards(sums, output.pair_loss, weight)
    _sequences(sums, output.scores, weight, complete)
    _statistics(sums, output, weight)
    if has_masks:
        _masks(sums, output.scores, weight, beta)


def _rewards(sums: MetricSums, result: PairLoss, weight: Tensor) -> None:
    count = weight.sum()
    chosen, rejected = result.chosen_rewards, result.rejected_rewards
    for name, value in (
        ("rewards/chosen", chosen),
        ("rewards/rejected", rejected),
        ("rewards/accuracies", (chosen > rejected).float()),
        ("rewards/margins", chosen - rejected),
    ):
        sums.add(name, (value * weight).sum(), count)


def _sequences(sums: MetricSums, scores: PairScores, weight: Tensor, complete: bool) -> None:
    for name, side in _sides(scores):
        pairs = weight.sum()
        tokens = (side.lengths() * weight).sum()
        if complete:
            sums.add(f"logps/{name}", (side.total(side.policy_logps) * weight).sum(), pairs)
        if side.kl is None:
            continue
        for prefix, mask in (("kl", None), ("kl_masked", side.kl_mask)):
            if mask is None if prefix == "kl_masked" else not complete:
                continue
            total = (side.total(side.kl, mask) * weight).sum()
            sums.add(f"{prefix}/{name}", total, pairs)
            sums.add(f"{prefix}/{name}_per_token", total, tokens)


def _statistics(sums: MetricSums, output: ScorerOutput, weight: Tensor) -> None:
    if not output.statistics:
        return
    pairs = len(weight)
    entropy_total, entropy_count = weight.new_zeros(()), weight.new_zeros(())
    for index, (name, side) in enumerate(_sides(output.scores)):
        rows = slice(index * pairs, (index + 1) * pairs)
        tokens = (side.lengths() * weight).sum()
        values = {key: (side.total(value[rows]) * weight).sum() for key, value in output.statistics.items()}
        sums.add(f"logits/{name}", values["mean_logits"], tokens)
        if name == "chosen":
            sums.add("mean_token_accuracy", values["is_top1"], tokens)
        entropy_total, entropy_count = entropy_total + values["entropy"], entropy_count + tokens
    sums.add("entropy", entropy_total, entropy_count)


def _masks(sums: MetricSums, scores: PairScores, weight: Tensor, beta: float) -> None:
    for kind in ("reward", "kl"):
        for name, side in _sides(scores):
            mask = side.reward_mask if kind == "reward" else side.kl_mask
            if mask is None:
                mask = torch.ones_like(side.policy_logps)
            found = mask_statistics(mask, side.response_mask, weight)
            for suffix in ("", f"_{name}"):
                sums.add(f"mask/{kind}/mean{suffix}", found["sum"], found["tokens"])
                sums.add(f"mask/{kind}/sparsity{suffix}", found["zeros"], found["tokens"])
                sums.add(f"mask/{kind}/dead{suffix}", found["dead"], found["sequences"])
                sums.maximum(f"mask/{kind}/max{suffix}", found["max"])
            if kind == "reward":
                sums.add("mask/effective_beta", beta * found["sum"], found["tokens"])


def _sides(scores: PairScores) -> list[tuple[str, TokenScores]]:
    return [("chosen", scores.chosen), ("rejected", scores.rejected)]
