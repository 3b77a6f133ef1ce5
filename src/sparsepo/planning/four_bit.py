"""Weights of 4 bits as bitsandbytes keeps and uses them, on tensors without memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

BLOCK = 64  # weights that share a scale
_BLOCK_OF_SCALES = 256  # scales that share one, with double quantisation
_CODES = 16  # the values that four bits stand for


class FourBitLinear(nn.Linear):
    """A frozen linear layer whose weights take half a byte each and their scales 4 bytes for 64 (1 with double
    quantisation). Every product unpacks the whole weight and forgets it, forward and backward, as bitsandbytes does for
    more than a few tokens; its input is not kept.

    Args:
        layer: what it stands for.
        double: the scales are quantised too (``use_bnb_nested_quant``).
    """

    def __init__(self, layer: nn.Linear | Conv1D, double: bool) -> None:
        nn.Module.__init__(self)
        rows, columns = layer.weight.shape
        self.out_features, self.in_features = (columns, rows) if isinstance(layer, Conv1D) else (rows, columns)
        self.nested = double
        count = rows * columns
        blocks = -(-count // BLOCK)
        with torch.device("meta"):
            self.weight = _frozen(torch.empty(-(-count // 2), 1, dtype=torch.uint8))
            self.scales = _frozen(torch.empty(blocks, dtype=torch.uint8 if double else torch.float32))
            self.scales_of_scales = _frozen(torch.empty(-(-blocks // _BLOCK_OF_SCALES))) if double else None
            self.codes = _frozen(torch.empty(_CODES + (256 if double else 0)))
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Products in the type of the input."""
        out: Tensor = _Product.apply(x, self)
        return out.clone() if torch.is_grad_enabled() else out  # PEFT's, against changes in place

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The weight in its own shape; zeros, which the ledger counts as bytes that are written."""
        scales = torch.zeros(self.scales.shape) if self.nested else None
        weight = torch.zeros(self.out_features, self.in_features, dtype=dtype)
        del scales
        return weight


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FourBitLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        with torch.autocast("cpu", enabled=False):
            return nn.functional.linear(x, layer.unpacked(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        (gradient,) = gradients
        return gradient @ ctx.layer.unpacked(gradient.dtype), None


def with_four_bits(model: Any, double: bool) -> Any:
    """Replace all linear layers of a causal LM but its head (and what is tied to it), as transformers does when it loads
    one with ``load_in_4bit``."""
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = set(get_keys_to_not_convert(model))
    for name, module in list(model.named_modules()):
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and name not in kept:
            model.set_submodule(name, FourBitLinear(module, double))
    return model


def scales_in(model: nn.Module) -> list[Tensor]:
    """What no sharding divides: the scales and codes of all 4-bit weights."""
    layers = [module for module in model.modules() if isinstance(module, FourBitLinear)]
    return [t for layer in layers for t in (layer.scales, layer.scales_of_scales, layer.codes) if t is not None]


def adapters_in_half(model: nn.Module) -> None:
    """TRL keeps adapters of quantised weights in bfloat16."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
