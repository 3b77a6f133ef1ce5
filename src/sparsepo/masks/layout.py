"""Where a Hugging Face causal LM has its blocks, attention, MLP and norms: by class and attribute names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .sizes import text_config

_QUERY = ("q_proj", "wq", "query", "q_lin", "q_b_proj")
_KEY = ("k_proj", "wk", "key", "k_lin")
_VALUE = ("v_proj", "wv", "value", "v_lin")
_FUSED = ("query_key_value", "c_attn", "qkv_proj", "Wqkv", "wqkv", "qkv")
_ATTENTION_OUT = ("o_proj", "out_proj", "c_proj", "dense", "wo", "out_lin")
_MLP = ("mlp", "feed_forward", "feedforward", "ffn", "block_sparse_moe", "moe", "ff")
_DOWN = (
    "down_proj",
    "c_proj",
    "dense_4h_to_h",
    "fc2",
    "fc_out",
    "w2",
    "wo",
    "proj_out",
    "output_linear",
    "lin2",
    "w_out",
)
_MIXER = ("mixer", "mamba", "temporal_block", "linear_attn", "conv", "short_conv")


@dataclass
class AttentionSites:
    """One attention module: its projections, whichever could be told by name."""

    module: nn.Module
    query: nn.Module | None
    key: nn.Module | None
    value: nn.Module | None
    fused: nn.Module | None
    out: nn.Module | None


@dataclass
class BlockSites:
    """One block. ``down`` is the projection whose input is the MLP's activation; None in a mixture of experts."""

    module: nn.Module
    norms: list[nn.Module]
    attention: AttentionSites | None
    mlp: nn.Module | None
    down: nn.Module | None
    mixer: nn.Module | None


@dataclass
class ModelLayout:
    """What activation masks tap in a model."""

    model: nn.Module
    backbone: nn.Module  # runs the blocks and the final norm
    config: Any
    blocks: list[BlockSites]

    @property
    def model_type(self) -> str:
        """The architecture's name."""
        return getattr(self.config, "model_type", None) or type(self.model).__name__

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of activations that the model has."""
        present = {
            "mlp": any(block.mlp is not None or block.down is not None for block in self.blocks),
            "attn": any(block.attention is not None for block in self.blocks),
            "resid": bool(self.blocks),
            "logits": self.head is not None,
        }
        return tuple(name for name, there in present.items() if there)

    @property
    def head(self) -> nn.Module | None:
        """The language-model head."""
        get: Any = getattr(self.model, "get_output_embeddings", None)
        return get() if get is not None else None

    @property
    def rotates(self) -> bool:
        """Whether queries and keys are rotated between their projection and the attention."""
        if getattr(self.config, "alibi", False):
            return False
        if any("rotary" in type(module).__name__.lower() for module in self.backbone.modules()):
            return True
        return any(block.attention and hasattr(block.attention.module, "rotary_dim") for block in self.blocks)


def find_layout(model: nn.Module) -> ModelLayout:
    """The layout of a causal LM, a PEFT model's base included.

    Raises:
        ValueError: no list of ``num_hidden_layers`` blocks, naming the model's type.
    """
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module  # type: ignore[assignment]
    unwrap: Any = getattr(model, "get_base_model", None)
    if unwrap is not None:
        model = unwrap()
    config = text_config(model)
    backbone, blocks = _find_blocks(getattr(model, "base_model", model), config)
    return ModelLayout(model, backbone, config, [_block_sites(block) for block in blocks])


def _find_blocks(backbone: nn.Module, config: Any) -> tuple[nn.Module, list[nn.Module]]:
    """The module that runs the blocks (OPT's causal LM calls its decoder, not its backbone), and the blocks."""
    count = getattr(config, "num_hidden_layers", None)
    found = [
        (name.count("."), name.rpartition(".")[0], list(module))
        for name, module in backbone.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    found = [entry for entry in found if all(_has_parameters(block) for block in entry[-1])]
    if not found:
        raise ValueError(
            f"No list of num_hidden_layers={count} blocks found in {type(backbone).__name__} "
            f"(model type {getattr(config, 'model_type', None)!r}): activation masks cannot tap it. Use a learned mask."
        )
    _, parent, blocks = min(found, key=lambda entry: entry[0])
    return backbone.get_submodule(parent), blocks


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _named(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    return next((module._modules[name] for name in names if module._modules.get(name) is not None), None)


def _is_linear(module: nn.Module) -> bool:
    module = getattr(module, "base_layer", module)  # LoRA wraps
    weight = getattr(module, "weight", None)
    return weight is not None and weight.dim() == 2 and "embedding" not in type(module).__name__.lower()


def _last_linear(module: nn.Module) -> nn.Module | None:
    return next((child for child in reversed(list(module.children())) if _is_linear(child)), None)


def _is_norm(name: str, module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() or "norm" in name.lower() or name.startswith("ln_")


def _block_sites(block: nn.Module) -> BlockSites:
    attention = _attention_sites(block)
    norms = [child for name, child in block.named_children() if _is_norm(name, child)]
    mixer = None if attention is not None else _named(block, _MIXER)
    mlp = _named(block, _MLP) or next(
        (
            child
            for child in block.children()
            if any(part in type(child).__name__.lower() for part in ("mlp", "feedforward", "ffn", "moe"))
        ),
        None,
    )
    if mlp is None:
        # OPT and its kin have the two maps in the block itself
        down = _last_linear(block)
        return BlockSites(block, norms, attention, down, down, mixer)
    return BlockSites(block, norms, attention, mlp, _down_projection(mlp), mixer)


def _down_projection(mlp: nn.Module) -> nn.Module | None:
    # experts see routed tokens, not the sequence: the MLP's output is tapped instead
    if _named(mlp, ("experts", "router")) is not None:
        return None
    return _named(mlp, _DOWN) or _last_linear(mlp)


def _attention_sites(block: nn.Module) -> AttentionSites | None:
    for name, module in block.named_modules():
        kind = type(module).__name__.lower()
        if not name or not ("attention" in kind or "attn" in kind):
            continue
        query, fused = _named(module, _QUERY), _named(module, _FUSED)
        if query is None and fused is None:
            continue  # a wrapper around the module that projects (GPT-Neo)
        out = _named(module, _ATTENTION_OUT) or _last_linear(module)
        return AttentionSites(module, query, _named(module, _KEY), _named(module, _VALUE), fused, out)
    return None
