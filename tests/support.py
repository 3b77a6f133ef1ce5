"""Small real architectures, a tokenizer and preference rows, all built from nothing."""

from __future__ import annotations

import random
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 99
WORDS = [
    "good",
    "bad",
    "fine",
    "awful",
    "bright",
    "dull",
    "warm",
    "cold",
    "quick",
    "slow",
    "the",
    "a",
    "film",
    "story",
    "actor",
    "scene",
    "was",
    "is",
    "and",
    "with",
]

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GATED: dict[str, Any] = {**_COMMON, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

# model_type → sizes; dropout rates stay at the architecture's defaults, so that the tests see them switched off
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", _GPT2),
    "gpt_neox": ("gpt_neox", {**_COMMON, "intermediate_size": 48}),
    "gptj": ("gptj", {**_GPT2, "rotary_dim": 8}),
    "gpt_bigcode": ("gpt_bigcode", _GPT2),
    "llama": ("llama", _GATED),
    "qwen2": ("qwen2", _GATED),
    "qwen3": ("qwen3", _GATED),
    "mistral": ("mistral", {**_GATED, "sliding_window": 8}),
    "gemma2": ("gemma2", {**_GATED, "sliding_window": 8, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", {**_GATED, "sliding_window": 8}),
    "opt": ("opt", {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "phi": ("phi", {**_COMMON, "intermediate_size": 48}),
    "falcon": ("falcon", {**_COMMON, "ffn_hidden_size": 48, "alibi": False, "new_decoder_architecture": False}),
    "mixtral": ("mixtral", {**_GATED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "qwen3_moe",
        {**_GATED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1},
    ),
    "mamba": (
        "mamba",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 4,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    ),
}


def tiny_config(architecture: str, **changes: Any) -> Any:
    """A config of a real architecture at toy size."""
    model_type, sizes = ARCHITECTURES[architecture]
    return AutoConfig.for_model(model_type, **{**sizes, **changes})


def tiny_model(architecture: str = "gpt2", seed: int = 0, head_scale: float = 1.0, **changes: Any) -> torch.nn.Module:
    """A random model of a real architecture. ``head_scale`` enlarges the head, so that a missing soft-cap shows."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(architecture, **changes), dtype=torch.float32)
    torch.set_rng_state(state)
    if head_scale != 1.0:
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(head_scale)
    return model


def perturbed(model: torch.nn.Module, seed: int = 1, scale: float = 0.05) -> torch.nn.Module:
    """A copy of the model moved away from it."""
    import copy

    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return other


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer with padding and end-of-sequence tokens."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3}
    for word in [*WORDS, ".", ",", ":", "!", "?"]:
        vocabulary[word] = len(vocabulary)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<eos>", "<unk>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def preference_rows(count: int = 8, seed: int = 0) -> Dataset:
    """Plain prompt/chosen/rejected rows of unequal lengths."""
    rng = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))

    rows = [{"prompt": text(2, 6), "chosen": " " + text(3, 9), "rejected": " " + text(3, 9)} for _ in range(count)]
    return Dataset.from_list(rows)


def collated(pairs: list[tuple[list[int], list[int], list[int]]], pad: int = 0, side: str = "right") -> dict[str, Any]:
    """A collated batch from (prompt, chosen, rejected) token ids, padded on either side."""
    rows = [(p, c) for p, c, _ in pairs] + [(p, r) for p, _, r in pairs]
    length = max(len(p) + len(a) for p, a in rows)
    ids, attention, completion = [], [], []
    for prompt, answer in rows:
        gap = length - len(prompt) - len(answer)
        parts = (
            [*prompt, *answer],
            [1] * (len(prompt) + len(answer)),
            [0] * len(prompt) + [1] * len(answer),
        )
        padded = [x + [f] * gap if side == "right" else [f] * gap + x for x, f in zip(parts, (pad, 0, 0), strict=True)]
        for target, values in zip((ids, attention, completion), padded, strict=True):
            target.append(values)
    names = ("input_ids", "attention_mask", "completion_mask")
    return {name: torch.tensor(values) for name, values in zip(names, (ids, attention, completion), strict=True)}
