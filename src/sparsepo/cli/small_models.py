"""A small model and a tokenizer of its own, from nothing but texts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import CliError, suggest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

END, PAD = "<|endoftext|>", "<|pad|>"

# Sizes that train on a CPU; the millions in the names are with a vocabulary of about 4,000
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2-1m": {"model_type": "gpt2", "n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 512},
    "gpt2-4m": {"model_type": "gpt2", "n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": 1024},
    "llama-1m": {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
    "llama-4m": {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
}


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every text can be written in it and comes back unchanged.

    Args:
        texts: what it is trained on.
        vocab_size: entries, the 256 bytes and two special tokens (end of text, padding) included; a small corpus may
            give fewer.

    Raises:
        CliError: fewer than 258 entries.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < 258:
        raise CliError(f"vocab_size={vocab_size} must be at least 258: 256 bytes and two special tokens.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=PAD)


def model_from_config(source: str, tokenizer: Any, seed: int) -> PreTrainedModel:
    """A model with random weights.

    Args:
        source: one of ``SHAPES``, or a JSON file such as a model's ``config.json`` (with ``model_type``).
        tokenizer: gives the size of the vocabulary and the special tokens.
        seed: of the weights.

    Raises:
        CliError: neither, or a file that describes no causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = _shape(source)
    model_type = settings.pop("model_type")
    settings |= {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    try:
        config = AutoConfig.for_model(model_type, **settings)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, KeyError) as error:
        raise CliError(f"init_from_config={source!r} makes no causal language model: {error}") from error


def _shape(source: str) -> dict[str, Any]:
    if source in SHAPES:
        return dict(SHAPES[source])
    path = Path(source).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise CliError(
            f"init_from_config={source!r} is neither a file nor one of {', '.join(SHAPES)}{suggest(source, SHAPES)}"
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CliError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise CliError(f"{path} must be a JSON object with model_type, such as a model's config.json.")
    for name in ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path"):
        settings.pop(name, None)
    return settings
