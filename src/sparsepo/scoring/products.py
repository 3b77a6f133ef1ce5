"""Products of the head with float32 results, whatever the weights' type.

Half-precision logits would put a floor of about 1e-3 under the KL, so rows of logits are float32. Where a device
multiplies half precision into float32 natively (CUDA), operands stay in half precision, and under mixed precision float32
operands take it; elsewhere the weight is cast to the rows' type tile by tile, so that no whole copy of it exists.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_TILE_ELEMENTS = 8 << 20
_HALF = (torch.bfloat16, torch.float16)
_native: dict[tuple[str, torch.dtype], bool] = {}


def autocast_operand(weight: Tensor) -> Tensor:
    """The weight as mixed precision multiplies it: in autocast's type where the device does so natively, else itself."""
    device = weight.device.type
    if weight.dtype != torch.float32 or device == "cpu" or not torch.is_autocast_enabled(device):
        return weight
    dtype = torch.get_autocast_dtype(device)
    return weight.detach().to(dtype) if _multiplies_natively(weight.device, dtype) else weight


def hidden_operand(hidden: Tensor, weight: Tensor) -> Tensor:
    """Hidden states as :func:`project_into` multiplies them: in the weight's half precision where that is native."""
    return hidden.to(weight.dtype) if hidden.dtype != torch.float64 and is_native(weight) else hidden


def project_into(out: Tensor, hidden: Tensor, weight: Tensor) -> None:
    """out = hidden · Wᵀ: hidden (n, H), W (V, H), out (n, V) float32 or float64."""
    weight = weight.detach()
    if out.dtype == torch.float32 and is_native(weight):
        torch.mm(hidden_operand(hidden, weight), weight.T, out_dtype=torch.float32, out=out)
        return
    hidden = hidden.to(out.dtype)
    if weight.dtype == out.dtype:
        torch.mm(hidden, weight.T, out=out)
        return
    for rows in weight_tiles(weight):
        out[:, rows] = hidden @ weight[rows].to(out.dtype).T


def times_weight(rows: Tensor, weight: Tensor, exact: bool = False) -> Tensor:
    """rows · W: (n, V), (V, H) → (n, H) in the rows' type.

    ``exact`` keeps the rows' digits: for values, where gradients can do with operands in half precision.
    """
    weight = weight.detach()
    if weight.dtype == rows.dtype:
        return rows @ weight
    total = torch.zeros(len(rows), weight.shape[1], dtype=rows.dtype, device=rows.device)
    if not exact and _keeps_range(weight) and is_native(weight):
        for tile in weight_tiles(weight):
            total += torch.mm(rows[:, tile].to(weight.dtype), weight[tile], out_dtype=torch.float32)
        return total
    for tile in weight_tiles(weight):
        total.addmm_(rows[:, tile], weight[tile].to(rows.dtype))
    return total


def add_outer(total: Tensor, rows: Tensor, hidden: Tensor, like: Tensor) -> None:
    """total += rowsᵀ · hidden: total (V, H), rows (n, V), hidden (n, H).

    ``like`` is the weight whose gradient this is: products of a bfloat16 weight's gradient are formed from bfloat16 operands
    where that is native; the sum is kept in ``total``'s type.
    """
    if total.dtype == torch.float32 and _keeps_range(like) and is_native(like):
        hidden = hidden.to(like.dtype)
        for tile in weight_tiles(like):
            total[tile] += torch.mm(rows[:, tile].T.to(like.dtype), hidden, out_dtype=torch.float32)
        return
    total.addmm_(rows.T, hidden.to(rows.dtype))


def backward_products(rows: Tensor, hidden: Tensor, weight: Tensor, total: Tensor | None) -> Tensor:
    """rows · W as :func:`times_weight`, and total += rowsᵀ · hidden as :func:`add_outer` where there is a total.

    Where half precision is multiplied natively, rows are cast once for both.
    """
    if total is None:
        return times_weight(rows, weight)
    if total.dtype != torch.float32 or not (_keeps_range(weight) and is_native(weight)):
        add_outer(total, rows, hidden, weight)
        return times_weight(rows, weight)
    weight, hidden = weight.detach(), hidden.to(weight.dtype)
    result = torch.zeros(len(rows), weight.shape[1], dtype=rows.dtype, device=rows.device)
    for tile in weight_tiles(weight):
        half = rows[:, tile].to(weight.dtype)
        result += torch.mm(half, weight[tile], out_dtype=torch.float32)
        total[tile] += torch.mm(half.T, hidden, out_dtype=torch.float32)
    return result


def weight_tiles(weight: Tensor) -> Iterator[slice]:
    """Consecutive rows of a (V, H) weight, some million elements at a time."""
    size = max(1, _TILE_ELEMENTS // weight.shape[1])
    if weight.device.type != "cpu":
        size *= 8  # launches cost more than memory there
    for first in range(0, len(weight), size):
        yield slice(first, min(first + size, len(weight)))


def _keeps_range(weight: Tensor) -> bool:
    """float16 would lose small gradients, to which the loss's scale has not been applied yet."""
    return weight.dtype == torch.bfloat16


def is_native(weight: Tensor) -> bool:
    """Whether the device multiplies this half precision into float32; tried once on small numbers, else the slow way."""
    return _multiplies_natively(weight.device, weight.dtype)


def _multiplies_natively(device: torch.device, dtype: torch.dtype) -> bool:
    if dtype not in _HALF or device.type != "cuda":
        return False
    key = (str(device), dtype)
    if key not in _native:
        _native[key] = _check_native(device, dtype)
    return _native[key]


def _check_native(device: torch.device, dtype: torch.dtype) -> bool:
    a = torch.linspace(-1, 1, 16 * 32, device=device).view(16, 32).to(dtype)
    b = torch.linspace(-2, 1, 32 * 8, device=device).view(32, 8).to(dtype)
    found = torch.empty(16, 8, device=device)
    try:
        torch.mm(a, b, out_dtype=torch.float32, out=found)
        right = bool(torch.allclose(found.double(), a.double() @ b.double(), rtol=1e-4, atol=1e-4))
    except (RuntimeError, TypeError) as error:
        logger.warning("scorer: %s products into float32 are not available here (%s); casting instead.", dtype, error)
        return False
    if not right:
        logger.warning("scorer: %s products into float32 are inexact here; casting instead.", dtype)
    return right
