"""Building the run's masker, and starting a learned one from MaPO masks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from sparsepo.masks import ActivationMask, LearnedMask, Masker, build_mask
from sparsepo.masks.initialise import FitResult, fit_to_targets
from sparsepo.masks.layout import find_layout

from .settings import ResolvedSettings
from .step import ReferenceView, base_model_of, compute_masks

logger = logging.getLogger(__name__)


def build_masker(settings: ResolvedSettings, reference: Any, seed: int) -> Masker | None:
    """The masker that the settings describe, sized for the reference; None where the objective reads no masks."""
    if settings.mask_kind is None:
        return None
    arguments: dict[str, Any] = dict(settings.mask_arguments)
    if settings.mask_kind == "learned":
        config = reference.config.get_text_config()
        arguments |= {"hidden_size": config.hidden_size, "num_layers": config.num_hidden_layers, "seed": seed}
        if arguments["init"] == "mapo":
            arguments["init"] = "ones"  # the fit starts there, once the data are at hand
    if settings.mask_kind == "random":
        arguments["seed"] = seed
    if settings.mask_kind == "activation" and "groups" not in arguments:
        arguments["groups"] = activation_groups(reference)
    masker = build_mask(settings.mask_kind, **arguments)
    masker.check_fits(base_model_of(reference))
    return masker


def activation_groups(reference: nn.Module) -> tuple[str, ...]:
    """The groups of activations that an architecture has (Mamba: no attention, no MLP)."""
    return find_layout(base_model_of(reference)).groups


def fit_from_mapo(
    masker: LearnedMask,
    reference: nn.Module,
    batches: Iterable[dict[str, Any]],
    view_of: Callable[[dict[str, Any], Masker], ReferenceView],
    reference_context: Callable[[], AbstractContextManager[Any]],
) -> dict[str, FitResult]:
    """Fit a learned head to the MaPO masks of some batches, so that training starts from them.

    Args:
        masker: the head, started from ones.
        reference: the reference; all groups of activations that it has are read.
        batches: collated batches on the reference's device.
        view_of: runs the reference over a batch for a masker.
        reference_context: fresh context in which ``view_of`` may be called.

    Returns:
        Quality of the fit over response tokens, by head.
    """
    teacher = ActivationMask(activation_groups(reference), position=masker.position)
    states: list[list[Tensor]] = []
    targets: list[Tensor] = []
    with torch.no_grad():
        for batch in batches:
            keep = batch["completion_mask"][:, 1:].bool()
            with reference_context():
                targets.append(compute_masks(teacher, batch, view_of(batch, teacher), None).reward[keep])
                view = view_of(batch, masker)
            assert view.block_states is not None
            columns = slice(None, -1) if masker.position == "predicting" else slice(1, None)
            states.append([state[:, columns][keep].float() for state in view.block_states])
    hidden = torch.stack([torch.cat(layer) for layer in zip(*states, strict=True)])  # (L, N, H)
    results = fit_to_targets(masker, hidden, torch.cat(targets))
    for head, fit in results.items():
        logger.info(
            "mask_init='mapo': %s head fitted on %d tokens, R² %.3f, correlation %.3f",
            head,
            hidden.shape[1],
            fit.r2,
            fit.correlation,
        )
    return results
