"""Activation masks (MaPO, arXiv 2410.05102): no parameters, statistics of the reference's own activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .base import Masker, MaskInputs
from .taps import group_sites, record_sites, require_groups

GROUPS = ("mlp", "attn", "resid", "logits")
# A site whose values differ by less than this share of their size is constant: what differs is rounding.
_CONSTANT = 1e-6


class ActivationMask(Masker):
    """m_u = m_d = how active the reference is at a token, compared with the other tokens of the response.

    For each tapped activation: mean over its features → rescaled to [0, 1] by the response's smallest and largest
    (standardising first changes nothing: it is affine) → mean over the activations of a group → mean over the groups.
    An activation that is constant over a response, as in a response of one token, counts as 1.

    Args:
        groups: which activations: ``mlp``, ``attn``, ``resid``, ``logits``.
        mask_on: ``both`` (the paper's), ``reward`` or ``kl``.
        position: ``predicting`` (the paper's) or ``token``.
    """

    kind = "activation"

    def __init__(self, groups: Sequence[str] = GROUPS, mask_on: str = "both", position: str = "predicting") -> None:
        super().__init__(mask_on, position)
        self.groups = _checked_groups(groups)

    def raw_masks(self, inputs: MaskInputs) -> tuple[Tensor, Tensor]:
        """(m, m) from ``inputs.activations``, (B, T) each."""
        if inputs.activations is None:
            raise ValueError("An activation mask needs activations: run the reference inside mask.tap(reference).")
        missing = [group for group in self.groups if not inputs.activations.get(group)]
        if missing:
            raise ValueError(
                f"No activations of {', '.join(missing)} were recorded; run the reference inside mask.tap()."
            )
        device = inputs.response_mask.device
        with torch.no_grad():
            of_groups = [
                self._rescaled([site.to(device) for site in inputs.activations[group]], inputs.response_mask).mean(0)
                for group in self.groups
            ]
            mask = torch.stack(of_groups).mean(0)
        return mask, mask

    def _rescaled(self, sites: list[Tensor], response_mask: Tensor) -> Tensor:
        """Feature means of S sites, (B, T + 1) each → [0, 1] over each response's tokens, (S, B, T)."""
        means = torch.stack(sites)
        rows, targets = response_mask.shape
        if means.shape[1:] != (rows, targets + 1):
            raise ValueError(
                f"activations cover {tuple(means.shape[1:])} positions, but response_mask {(rows, targets)} asks for "
                f"{(rows, targets + 1)}: those of the whole sequence."
            )
        values = self.at_targets(means.float())
        low = values.masked_fill(~response_mask, torch.inf).amin(-1, keepdim=True)
        high = values.masked_fill(~response_mask, -torch.inf).amax(-1, keepdim=True)
        spread = high - low
        constant = ~(spread > _CONSTANT * torch.maximum(low.abs(), high.abs()))
        rescaled = torch.where(constant, torch.ones_like(values), (values - low) / spread)
        return torch.where(response_mask, rescaled, torch.zeros_like(rescaled))

    @contextmanager
    def tap(self, model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
        """Hooks on the reference for the length of its forward; see :mod:`sparsepo.masks.taps` for the sites.

        Yields:
            group → feature means of its sites, (B, T + 1) each, there once the forward has ended.

        Raises:
            ValueError: naming the groups that this architecture has no activations of.
        """
        activations: dict[str, list[Tensor]] = {}
        with record_sites(model, self.groups, lambda sites: activations.update(group_sites(sites, self.groups))):
            yield activations

    def check_fits(self, model: nn.Module) -> None:
        """Raise ``ValueError`` naming the groups that the model has no activations of."""
        require_groups(model, self.groups)

    def settings(self) -> dict[str, Any]:
        """Constructor arguments that rebuild this mask."""
        return {"groups": list(self.groups), **super().settings()}


def _checked_groups(groups: Sequence[str]) -> tuple[str, ...]:
    if isinstance(groups, str) or not groups or not all(isinstance(group, str) for group in groups):
        raise ValueError(f"groups={groups!r} must be a list of one or more of {', '.join(GROUPS)}.")
    unknown = sorted(set(groups) - set(GROUPS))
    if unknown:
        raise ValueError(f"groups={list(groups)!r}: {', '.join(unknown)} is unknown; choose of {', '.join(GROUPS)}.")
    return tuple(group for group in GROUPS if group in groups)  # order and repetition mean nothing
