"""The kinds of masks by name."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from .activation import ActivationMask
from .base import Masker
from .learned import LearnedMask
from .simple import DataMask, DenseMask, RandomMask

MASKS: dict[str, type[Masker]] = {
    mask.kind: mask for mask in (LearnedMask, ActivationMask, DenseMask, RandomMask, DataMask)
}


def build_mask(kind: str, model: nn.Module | None = None, **settings: Any) -> Masker:
    """A mask by the name of its kind.

    Args:
        kind: ``learned``, ``activation``, ``dense``, ``random`` or ``data``.
        model: reference model from which a learned mask takes its sizes, unless ``settings`` name them; whatever the
            kind, a mask that cannot read the model is refused.
        settings: the constructor's arguments.

    Raises:
        ValueError: unknown kind, unknown setting, or a model that does not fit.
    """
    if kind not in MASKS:
        raise ValueError(f"mask={kind!r} is unknown; choose one of {', '.join(MASKS)}.")
    known = set(inspect.signature(MASKS[kind]).parameters)
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(
            f"A {kind!r} mask has no setting {', '.join(unknown)}; it has {', '.join(sorted(known)) or 'none'}."
        )
    if kind == "learned" and model is not None and not {"hidden_size", "num_layers"} & set(settings):
        mask: Masker = LearnedMask.for_model(model, **settings)
    else:
        mask = MASKS[kind](**settings)
    if model is not None:
        mask.check_fits(model)
    return mask
