"""Masks of the same held-out pairs at every evaluation, and how far held-out numbers lag behind training's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsepo.masks.noise import mix
from sparsepo.masks.stability import Stability, compare_masks

SAMPLE = 32  # pairs kept, on average


class HeldOutMasks:
    """Masks of a fixed sample of held-out pairs, chosen by their row numbers, from one evaluation to the next.

    Args:
        masks: names of the masks that are kept.
    """

    def __init__(self, masks: tuple[str, ...]) -> None:
        self.masks = masks
        self.reset()

    def reset(self) -> None:
        """Forget all evaluations."""
        self._now: dict[str, dict[str, list[float]]] = {}  # sequence → mask → values of its response tokens
        self._before: dict[str, tuple[int, dict[str, dict[str, list[float]]]]] = {}  # split → step, the same
        self._one_in = 0

    def begin(self, rows: int | None) -> None:
        """Start an evaluation of a set of so many rows; None: unknown (a stream)."""
        self._now = {}
        self._one_in = max(1, (rows or 0) // SAMPLE)

    def collect(self, identity: Tensor, weight: Tensor, response_mask: Tensor, masks: Mapping[str, Tensor]) -> None:
        """Keep the masks of the pairs that belong to the sample.

        Args:
            identity: of each sequence, chosen first, int64, (2P,).
            weight: weight of each pair, (P,).
            response_mask: true at response tokens, (2P, T).
            masks: mask → (2P, T).
        """
        if not self._one_in:
            return
        pairs = len(weight)
        chosen = (mix(identity[:pairs]) % self._one_in == 0) & (weight > 0)
        for row in chosen.repeat(2).nonzero().flatten().tolist():
            if len(self._now) >= 4 * SAMPLE:  # of a stream, whose length is not known: the first ones
                return
            keep = response_mask[row]
            key = f"{int(identity[row % pairs])}/{row // pairs}"
            self._now[key] = {name: mask[row][keep].tolist() for name, mask in masks.items()}

    def compare(self, split: str, step: int, accelerator: Any) -> tuple[int, dict[str, Stability]] | None:
        """End an evaluation: compare with the one before on the same split. A collective call.

        Returns:
            Step of the evaluation before, and by mask how alike the two are; None without one.
        """
        now, self._now, self._one_in = self._now, {}, 0
        if accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            now = dict(gather_object(list(now.items())))
        earlier, self._before[split] = self._before.get(split), (step, now)
        if earlier is None or earlier[0] == step:
            return None
        since, before = earlier
        shared = sorted(key for key in now if key in before and _same_tokens(now[key], before[key]))
        if not shared:
            return None
        return since, {
            name: compare_masks(
                *(torch.tensor([v for key in shared for v in part[key][name]]) for part in (before, now))
            )
            for name in self.masks
        }

    def state(self) -> dict[str, Any]:
        """What a resumed run must know, JSON types only."""
        return {"before": {split: list(value) for split, value in self._before.items()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state`."""
        self._before = {split: (value[0], value[1]) for split, value in state["before"].items()}


def overfit_gap(
    training: Mapping[str, float], held_out: Mapping[str, float], masks: tuple[str, ...]
) -> dict[str, float]:
    """Training minus held-out, of the masks' mean and sparsity and of the mask-weighted margins and accuracy.

    Training's numbers are averages over the steps of the last log interval, the held-out ones those of its end.
    """
    names = {f"mask/gap/{mask}/{what}": f"mask/{mask}/{what}" for mask in masks for what in ("mean", "sparsity")}
    names |= {"mask/gap/margins": "rewards/margins", "mask/gap/accuracies": "rewards/accuracies"}
    return {
        gap: training[name] - held_out[name] for gap, name in names.items() if name in training and name in held_out
    }


def _same_tokens(left: Mapping[str, list[float]], right: Mapping[str, list[float]]) -> bool:
    return all(len(left[name]) == len(right[name]) for name in left)
