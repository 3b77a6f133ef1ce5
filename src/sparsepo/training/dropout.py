"""Dropout that is applied by function instead of by module."""

from __future__ import annotations

from torch import nn


def disable_functional_dropout(model: nn.Module) -> list[str]:
    """Zero every float attribute that modules hand to functional dropout, layer drop or router jitter.

    TRL's ``disable_dropout`` zeroes ``nn.Dropout`` modules only; OPT, GPTBigCode and others keep rates as plain numbers,
    so that two training forwards differ.

    Returns:
        Names of the attributes that were changed, ``module.attribute``.
    """
    changed = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            continue
        for attribute, value in list(vars(module).items()):
            is_rate = isinstance(value, float) and value > 0
            if is_rate and any(word in attribute for word in ("drop", "jitter")):
                setattr(module, attribute, 0.0)
                changed.append(f"{name}.{attribute}")
    return changed
