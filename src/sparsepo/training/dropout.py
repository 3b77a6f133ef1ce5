"""Dropout that is applied by function instead of by module."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel


def disable_functional_dropout(model: nn.Module) -> list[str]:
    """Zero every rate that modules hand to functional dropout, layer drop or router jitter.

    TRL's ``disable_dropout`` zeroes ``nn.Dropout`` modules only; OPT, GPTBigCode and others keep rates as plain numbers,
    and Falcon's blocks read them from the config in every forward, so that two training forwards differ. Blocks get a
    quiet copy of the config; the model's own, which is saved, keeps its rates.

    Returns:
        Names of what was changed, ``module.attribute`` or ``module.config.attribute``.
    """
    changed = []
    quiet: dict[int, tuple[Any, list[str]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            continue
        for attribute in _rates(module):
            setattr(module, attribute, 0.0)
            changed.append(f"{name}.{attribute}")
        config = getattr(module, "config", None)
        if config is None or isinstance(module, PreTrainedModel) or not hasattr(config, "model_type"):
            continue
        if id(config) not in quiet:
            quiet[id(config)] = _quiet_copy(config)
        module_config, rates = quiet[id(config)]
        if rates and "config" in vars(module):
            module.config = module_config
            changed += [f"{name}.config.{attribute}" for attribute in rates]
    return changed


def _rates(holder: Any) -> list[str]:
    """Names of the attributes that hold a rate above zero."""
    return [
        name
        for name, value in vars(holder).items()
        if isinstance(value, float) and value > 0 and any(word in name for word in ("drop", "jitter"))
    ]


def _quiet_copy(config: Any) -> tuple[Any, list[str]]:
    rates = _rates(config)
    if not rates:
        return config, rates
    quiet = copy.deepcopy(config)
    for name in rates:
        setattr(quiet, name, 0.0)
    return quiet, rates
