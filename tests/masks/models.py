"""Tiny random models of many architectures, and token identities."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from sparsepo.masks import NoiseKey

VOCABULARY = 99
_llama: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_grouped = {**_llama, "num_key_value_heads": 2}
_gpt = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_opt = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "max_position_embeddings": 64,
}
_falcon = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_experts = {"num_experts": 4, "num_experts_per_tok": 2}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", _gpt),
    "gpt_neox": ("GPTNeoXConfig", _llama),
    "gpt_neox_sequential": ("GPTNeoXConfig", {**_llama, "use_parallel_residual": False}),
    "gptj": ("GPTJConfig", {**_gpt, "rotary_dim": 4}),
    "gpt_bigcode": ("GPTBigCodeConfig", _gpt),
    "gpt_bigcode_multi_head": ("GPTBigCodeConfig", {**_gpt, "multi_query": False}),
    "llama": ("LlamaConfig", _grouped),
    "qwen2": ("Qwen2Config", _grouped),
    "qwen3": ("Qwen3Config", {**_grouped, "head_dim": 8}),
    "mistral": ("MistralConfig", _grouped),
    "gemma2": ("Gemma2Config", {**_grouped, "head_dim": 8, "final_logit_softcapping": 0.05}),
    "gemma3": ("Gemma3TextConfig", {**_grouped, "head_dim": 8}),
    "opt": ("OPTConfig", {**_opt, "word_embed_proj_dim": 32}),
    "opt_350m": ("OPTConfig", {**_opt, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "phi": ("PhiConfig", _llama),
    "falcon": ("FalconConfig", _falcon),
    "falcon_sequential": ("FalconConfig", {**_falcon, "multi_query": False, "parallel_attn": False}),
    "falcon_new": ("FalconConfig", {**_falcon, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_alibi": ("FalconConfig", {**_falcon, "alibi": True}),
    "mixtral": ("MixtralConfig", {**_grouped, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**_grouped, **_experts, "head_dim": 8, "moe_intermediate_size": 16, "mlp_only_layers": [0]},
    ),
    "mamba": ("MambaConfig", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "bloom": ("BloomConfig", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": ("MptConfig", {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "phi3": ("Phi3Config", _grouped),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 64,
        },
    ),
    "olmo2": ("Olmo2Config", _grouped),
    "olmoe": ("OlmoeConfig", {**_grouped, **_experts}),
    "cohere": ("CohereConfig", _grouped),
    "granite": ("GraniteConfig", {**_grouped, "logits_scaling": 4.0}),
    "codegen": ("CodeGenConfig", {**_gpt, "rotary_dim": 4}),
}


def tiny_model(name: str, **changes: Any) -> nn.Module:
    """A random model whose every parameter is random: norm weights and biases too, so that no site is trivial."""
    config_class, settings = MODELS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**{**settings, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens(rows: int = 3, length: int = 7) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def noise_of(response_mask: torch.Tensor, seed: int = 7, step: int = 3, first_row: int = 0) -> NoiseKey:
    rows, targets = response_mask.shape
    position = torch.arange(1, targets + 1).expand(rows, targets)
    return NoiseKey(seed, step, torch.arange(first_row, first_row + rows), position)
