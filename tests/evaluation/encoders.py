"""Tiny encoders in folders, built from nothing: what BERTScore and NLI metrics load in place of the real ones."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

NLI_LABELS = {0: "contradiction", 1: "neutral", 2: "entailment"}


def letter_tokenizer(max_length: int | None = 64) -> PreTrainedTokenizerFast:
    """One token a character (ASCII; others are unknown), with BERT's special tokens."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    for character in string.ascii_letters + string.digits + string.punctuation:
        vocabulary[character] = len(vocabulary)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    limits: dict[str, Any] = {} if max_length is None else {"model_max_length": max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", **limits
    )


def encoder_config(**changes: Any) -> Any:
    """BERT at toy size."""
    sizes = {
        "vocab_size": len(letter_tokenizer()),
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    return AutoConfig.for_model("bert", **{**sizes, **changes})


def save_encoder(folder: Path, max_length: int | None = 64) -> Path:
    """A random encoder with its tokenizer."""
    torch.manual_seed(0)
    AutoModel.from_config(encoder_config()).save_pretrained(folder)
    letter_tokenizer(max_length).save_pretrained(folder)
    return folder


def nli_model(labels: dict[int, str] | None = None, seed: int = 0) -> Any:
    """A random classifier of pairs whose outputs are far from equal."""
    torch.manual_seed(seed)
    labels = labels or NLI_LABELS
    config = encoder_config(id2label=labels, label2id={name: place for place, name in labels.items()})
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        model.classifier.weight.mul_(200)
    return model.eval()


def save_nli(folder: Path, labels: dict[int, str] | None = None) -> Path:
    """That classifier in a folder."""
    nli_model(labels).save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    return folder
