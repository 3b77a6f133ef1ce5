"""Models without memory: from a config, or from a few sizes, to modules on the meta device and exact counts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class ModelShape:
    """A model's sizes.

    Args:
        name: as given.
        config: transformers' config.
        parameters: all of them, tied ones once.
        head: of the LM head (V · H, and its bias).
        is_tied: whether the head is the embedding.
        largest_block: parameters of the largest block.
        embeddings: parameters outside the blocks.
        hidden_size, layers, vocabulary: H, L, V.
    """

    name: str
    config: Any
    parameters: int
    head: int
    is_tied: bool
    largest_block: int
    embeddings: int
    hidden_size: int
    layers: int
    vocabulary: int


def config_of(source: str, trust_remote_code: bool = False) -> Any:
    """The config of a folder, a ``config.json`` or a hub id.

    Raises:
        ValueError: the file is no config.
        OSError: there is none; transformers' own message.
    """
    from transformers import AutoConfig

    path = Path(source).expanduser()
    if path.is_file():
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{source}: not valid JSON ({error}).") from None
        if not isinstance(values, dict) or "model_type" not in values:
            raise ValueError(f"{source} names no model_type; give a model's config.json.")
        return AutoConfig.for_model(**values)
    if path.is_dir() and (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        values = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        return config_of(values["base_model_name_or_path"], trust_remote_code)
    return AutoConfig.from_pretrained(str(path) if path.exists() else source, trust_remote_code=trust_remote_code)


def config_by_hand(
    params: float | None,
    layers: int,
    hidden: int,
    vocab: int,
    heads: int | None = None,
    intermediate: int | None = None,
) -> Any:
    """A Llama-like config of the given sizes; with ``params`` the MLP is as wide as makes their number.

    Raises:
        ValueError: no such model has that many parameters.
    """
    from transformers import AutoConfig

    heads = heads or max(1, hidden // 128)
    if hidden % heads:
        raise ValueError(f"hidden={hidden} must be a multiple of heads={heads}.")
    if params is not None and intermediate is None:
        rest = (params - 2 * vocab * hidden) / layers - 4 * hidden**2
        intermediate = round(rest / (3 * hidden))
        if intermediate < 1:
            least = 2 * vocab * hidden + 4 * layers * hidden**2
            raise ValueError(
                f"params={params:g} is less than what embeddings and attention of these sizes have ({least:g}); "
                "check layers, hidden and vocab."
            )
    return AutoConfig.for_model(
        "llama",
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=intermediate or 8 * hidden // 3,
        vocab_size=vocab,
        tie_word_embeddings=False,
    )


def meta_model(config: Any, dtype: str, attention: str | None = None) -> nn.Module:
    """The causal LM of a config on the meta device."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation=attention
        )
    return model


def shape_of(config: Any, name: str) -> ModelShape:
    """Exact counts, from the modules themselves."""
    model: Any = meta_model(config, "float32")
    text = config.get_text_config()
    head = model.get_output_embeddings()
    blocks = max(
        (module for module in model.modules() if isinstance(module, nn.ModuleList)), key=lambda m: count(m.parameters())
    )
    total, inside = count(model.parameters()), count(blocks.parameters())
    return ModelShape(
        name=name,
        config=config,
        parameters=total,
        head=count(head.parameters()),
        is_tied=head.weight is model.get_input_embeddings().weight,
        largest_block=max(count(block.parameters()) for block in blocks),
        embeddings=total - inside,
        hidden_size=head.weight.shape[1],
        layers=text.num_hidden_layers,
        vocabulary=head.weight.shape[0],
    )


def count(parameters: Iterable[nn.Parameter]) -> int:
    """Numbers in parameters, shared ones once."""
    return sum({id(p): p.numel() for p in parameters}.values())
