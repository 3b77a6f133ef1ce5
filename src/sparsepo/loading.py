"""Language models and tokenizers from a folder or the hub, loaded alike for commands and experiments."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any


def load_model(name: str | PathLike[str], kwargs: Mapping[str, Any] | None = None) -> Any:
    """A causal language model.

    Args:
        name: folder or hub id, of a model, or of an adapter, which is put on its base.
        kwargs: of ``from_pretrained``; ``dtype`` may be a name of torch's. None: as it was saved.

    Raises:
        OSError: not found; the message is transformers' own.
    """
    import torch
    from transformers import AutoModelForCausalLM

    own = {"dtype": "auto", **(kwargs or {})}
    if isinstance(own["dtype"], str) and own["dtype"] != "auto":
        own["dtype"] = getattr(torch, own["dtype"])
    return AutoModelForCausalLM.from_pretrained(name, **own)


def load_tokenizer(name: str | PathLike[str], revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model, with a padding token.

    Raises:
        OSError: not found; the message is transformers' own.
        ValueError: the folder holds none, of which transformers makes an empty one without a word.
    """
    from transformers import AutoTokenizer

    kwargs = {} if revision is None else {"revision": revision}
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **kwargs)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(f"{name}: the folder holds no tokenizer files (its tokenizer turns text into nothing).")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Rows are measured before they are cut, so that its warning about long ones would always be false
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def positions_in(config: Any) -> int | None:
    """Positions of a model by its config; None where it names none (models without a table of them, or unlimited)."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def sampling_device(use_cpu: bool = False) -> Any:
    """Where models sample and score: the accelerator where there is one. Apple's is left out: nothing was tried there."""
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() and not use_cpu else None
    return torch.device("cpu") if found is None or found.type == "mps" else found
