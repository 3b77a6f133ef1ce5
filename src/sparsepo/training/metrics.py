"""What is logged: TRL's names, and those of masks and KL, as sums and counts that add up over batches and processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsepo.masks.statistics import mask_statistics
from sparsepo.objectives import PairLoss, TokenScores
from sparsepo.scoring import ScorerOutput

SIDES = ("chosen", "rejected")


def _wide(value: Tensor) -> Tensor:
    """float64, where the device has it."""
    return value.detach().float() if value.device.type == "mps" else value.detach().double()


Sums = dict[str, tuple[Tensor, Tensor]]  # name → Σ weight · value, Σ weight


class MetricSums:
    """Weighted averages and maxima by name, kept on the device until they are read.

    Every process must add the same names in the same calls, so that one reduction serves all. Names that come together
    are kept together: a step adds a vector, not dozens of numbers.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}  # names → (2, n) [weighted sums, weights]
        self._maxima: dict[tuple[str, ...], Tensor] = {}  # names → (n,)

    def add(self, name: str, total: Tensor, count: Tensor) -> None:
        """Add Σ weight · value and Σ weight."""
        self.add_all({name: (total, count)})

    def add_all(self, sums: Sums) -> None:
        """Add several at once."""
        if not sums:
            return
        parts = [torch.stack([pair[i] for pair in sums.values()]) for i in (0, 1)]
        both, names = torch.stack([_wide(part) for part in parts]), tuple(sums)
        self._sums[names] = self._sums[names] + both if names in self._sums else both

    def maxima(self, values: dict[str, Tensor]) -> None:
        """Raise maxima."""
        new, names = _wide(torch.stack([*values.values()])), tuple(values)
        self._maxima[names] = torch.maximum(self._maxima[names], new) if names in self._maxima else new

    def copy(self) -> MetricSums:
        """What was added until now, for a step that may be left out."""
        other = MetricSums()
        other._sums, other._maxima = dict(self._sums), dict(self._maxima)  # their tensors are never changed in place
        return other

    def drain(self, accelerator: Any) -> dict[str, float]:
        """Averages and maxima over all processes; the collection is empty afterwards. A collective call."""
        values: dict[str, float] = {}
        if self._sums:
            order = sorted(self._sums)
            sums = accelerator.reduce(torch.cat([self._sums[names] for names in order], dim=1).float(), reduction="sum")
            totals: dict[str, list[float]] = {}
            for name, total, count in zip((name for names in order for name in names), *sums.tolist(), strict=True):
                own = totals.setdefault(name, [0.0, 0.0])
                own[0], own[1] = own[0] + total, own[1] + count
            values = {name: total / count if count else 0.0 for name, (total, count) in totals.items()}
        if self._maxima:
            order = sorted(self._maxima)
            local = torch.cat([self._maxima[names] for names in order]).float()
            everywhere = accelerator.gather(local[None]).amax(0)
            for name, value in zip((name for names in order for name in names), everywhere.tolist(), strict=True):
                values[name] = max(value, values.get(name, value))
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
    sides = (output.scores.chosen, output.scores.rejected)
    response = torch.stack([side.response_mask for side in sides])  # (2, P, T)
    pairs = weight.sum()
    tokens = (response.sum(-1) * weight).sum(-1)  # (2,)
    found = _rewards(output.pair_loss, weight, pairs)
    totals = _totals(output, response, weight, complete)
    for index, name in enumerate(SIDES):
        for key in ("logps", "kl", "kl_masked"):
            if key in totals:
                found[f"{key}/{name}"] = totals[key][index], pairs
                if key != "logps":
                    found[f"{key}/{name}_per_token"] = totals[key][index], tokens[index]
        if output.statistics:
            found[f"logits/{name}"] = totals["mean_logits"][index], tokens[index]
    if output.statistics:
        found["mean_token_accuracy"] = totals["is_top1"][0], tokens[0]
        found["entropy"] = totals["entropy"].sum(), tokens.sum()
    if has_masks:
        of_masks, maxima = _masks(sides, response, weight, beta)
        found |= of_masks
        sums.maxima(maxima)
    sums.add_all(found)


def _rewards(result: PairLoss, weight: Tensor, pairs: Tensor) -> Sums:
    chosen, rejected = result.chosen_rewards, result.rejected_rewards
    values = torch.stack([chosen, rejected, (chosen > rejected).to(chosen.dtype), chosen - rejected])
    names = ("chosen", "rejected", "accuracies", "margins")
    totals = (values * weight).sum(-1)
    return {f"rewards/{name}": (total, pairs) for name, total in zip(names, totals, strict=True)}


def _totals(output: ScorerOutput, response: Tensor, weight: Tensor, complete: bool) -> dict[str, Tensor]:
    """Per-token values summed over the response tokens of each side, pairs by their weight: name → (2,)."""
    sides = (output.scores.chosen, output.scores.rejected)
    arrays: dict[str, list[Tensor]] = {}
    if complete:
        arrays["logps"] = [side.policy_logps for side in sides]
    kl = [side.kl for side in sides if side.kl is not None]
    if kl:
        masks = [side.kl_mask for side in sides]
        arrays["kl_masked"] = [k if m is None else k * m for k, m in zip(kl, masks, strict=True)]
        if complete:
            arrays["kl"] = kl
    for name, value in output.statistics.items():
        arrays[name] = list(value.view(response.shape))
    if not arrays:
        return {}
    stacked = torch.stack([value.detach() for pair in arrays.values() for value in pair]).view(-1, *response.shape)
    # where, not a product: padding may hold inf or nan
    per_sequence = torch.where(response, stacked, torch.zeros_like(stacked)).sum(-1)  # (K, 2, P)
    return dict(zip(arrays, (per_sequence * weight).sum(-1), strict=True))


def _masks(
    sides: tuple[TokenScores, TokenScores], response: Tensor, weight: Tensor, beta: float
) -> tuple[Sums, dict[str, Tensor]]:
    """Sums and maxima of both masks, of both sides together and of each."""
    given = [side.reward_mask for side in sides] + [side.kl_mask for side in sides]
    ones = torch.ones_like(sides[0].policy_logps)
    masks = torch.stack([ones if mask is None else mask for mask in given]).view(2, *response.shape)
    found = {name: value.unbind() for name, value in mask_statistics(masks, response, weight).items()}
    sums: Sums = {}
    maxima: dict[str, Tensor] = {}
    for index, kind in enumerate(("reward", "kl")):
        own = {name: values[index] for name, values in found.items()}  # (2,) each
        for suffix, side in (("", None), ("_chosen", 0), ("_rejected", 1)):
            part = {name: _of_side(name, value, side) for name, value in own.items()}
            sums[f"mask/{kind}/mean{suffix}"] = part["sum"], part["tokens"]
            sums[f"mask/{kind}/sparsity{suffix}"] = part["zeros"], part["tokens"]
            sums[f"mask/{kind}/dead{suffix}"] = part["dead"], part["sequences"]
            maxima[f"mask/{kind}/max{suffix}"] = part["max"]
    total, count = sums["mask/reward/mean"]
    sums["mask/effective_beta"] = beta * total, count
    return sums, maxima


def _of_side(name: str, values: Tensor, side: int | None) -> Tensor:
    if side is not None:
        return values[side]
    return values.amax() if name == "max" else values.sum()
