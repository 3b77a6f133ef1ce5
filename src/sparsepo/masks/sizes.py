"""Sizes of a Hugging Face causal LM that masks depend on, read from its configuration."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn


class ModelSizes(NamedTuple):
    """Width of the block outputs and number of blocks."""

    hidden_size: int
    num_layers: int


def text_config(model: nn.Module) -> Any:
    """The configuration of a model's language part."""
    config = getattr(model, "config", None)
    if config is None:
        raise ValueError(f"{type(model).__name__} has no config; masks read a Hugging Face causal LM.")
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def model_sizes(model: nn.Module) -> ModelSizes:
    """Sizes of ``model``. Raises ``ValueError`` naming the setting where the configuration lacks one.

    The last state of a model that projects it to another width (OPT-350m) cannot be read beside the others: refused.
    """
    config = text_config(model)
    values = {}
    for name in ("hidden_size", "num_hidden_layers"):
        value = getattr(config, name, None)
        if not isinstance(value, int):
            raise ValueError(f"{type(model).__name__}'s config says {name}={value!r}; masks need it as an integer.")
        values[name] = value
    projected = getattr(config, "word_embed_proj_dim", None)
    if projected is not None and projected != values["hidden_size"]:
        raise ValueError(
            f"{type(model).__name__} projects its last state from hidden_size={values['hidden_size']} to "
            f"word_embed_proj_dim={projected}, so its layers' states differ in width; a learned mask cannot read it. "
            "Use an activation mask or another model."
        )
    return ModelSizes(values["hidden_size"], values["num_hidden_layers"])
