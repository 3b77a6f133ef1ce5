"""The fused scorer's memory, followed on fake tensors: what scoring/fused.py and walks.py allocate, in their order.

The scorer itself cannot run without values (it looks up which tokens count), so its allocations are repeated here, on a
GPU's terms: half precision is multiplied natively, and Triton's kernels need no temporaries. The ways through a group of
pairs and the sizes of groups are the scorer's own functions. tests/planning holds this to the scorer's measured peak.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sparsepo.scoring import products, rows, walks
from sparsepo.scoring.fused import GPU_SHARE, LEAST_BUDGET_MIB

Ledger = Any


class ScorerShape:
    """What the allocations depend on besides the tensors.

    Args:
        pair_counts: scored tokens of each pair.
        needs_reference, needs_kl: what the objective reads.
        has_fixed_direction: the objective's property.
        cached: the KL comes from a cache's expectations.
        half: type in which the device multiplies float32 heads (mixed precision), or None.
        on_gpu: whether a GPU's tiles are used.
        device_bytes: the device's memory, of which the default budget is a share.
        budget_mib: the setting ``scorer_memory_mib``.
    """

    def __init__(
        self,
        pair_counts: list[int],
        needs_reference: bool,
        needs_kl: bool,
        has_fixed_direction: bool,
        half: torch.dtype | None,
        cached: bool = False,
        on_gpu: bool = True,
        device_bytes: float = 80 << 30,
        budget_mib: float | None = None,
    ) -> None:
        self.pair_counts, self.needs_reference, self.needs_kl = pair_counts, needs_reference, needs_kl
        self.has_fixed_direction, self.half, self.cached, self.on_gpu = has_fixed_direction, half, cached, on_gpu
        self.device_bytes, self.budget_mib = device_bytes, budget_mib

    @property
    def rows(self) -> int:
        """N."""
        return sum(self.pair_counts)

    def budget(self, head_numbers: int) -> int:
        """Bytes of the buffers, as the scorer sets them."""
        if self.budget_mib is not None:
            return int(self.budget_mib * 2**20)
        least = LEAST_BUDGET_MIB << 20
        if self.on_gpu:
            least = max(least, int(self.device_bytes) // GPU_SHARE)
        return max(least, 4 * head_numbers)

    def walk_of(self, weight: Tensor, grad_hidden: Any, grad_weight: Any) -> Any:
        """What the scorer's own choices of way and group sizes read."""
        projects = self.needs_reference and not self.cached
        return SimpleNamespace(
            head=SimpleNamespace(softcap=None),
            head_is_frozen=grad_weight is None,
            grad_hidden=grad_hidden,
            expected_weight=True if self.cached and self.needs_kl else None,
            projects_reference=projects,
            need_kl=self.needs_kl,
            needs_gradient=True,
            has_fixed_direction=self.has_fixed_direction,
            is_on_gpu=self.on_gpu,
            tile_rows=rows.TILE_ROWS_ON_GPUS if self.on_gpu else rows.TILE_ROWS,
        )


class ScorerStandIn(torch.autograd.Function):
    """Takes what the fused scorer takes, and leaves gradients of the same sizes."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        reference_hidden: Tensor | None,
        reference_weight: Tensor | None,
        shape: ScorerShape,
        ledger: Ledger,
    ) -> Tensor:
        head = _operand(weight, shape)
        own = None
        if reference_weight is not None:  # kept beside the policy's for the length of the call
            own = _operand(reference_weight, shape)
        grad_hidden = hidden.new_empty(hidden.shape, dtype=torch.float32)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            with ledger.part("head"):
                grad_weight = weight.new_empty(weight.shape, dtype=torch.float32)
        with ledger.part("head"):
            _walk(hidden, head, grad_hidden, grad_weight, shape)
        del head, own
        ctx.gradients, ctx.dtypes, ctx.ledger = (grad_hidden, grad_weight), (hidden.dtype, weight.dtype), ledger
        return hidden.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        found = [None if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return (*found, None, None, None, None)


def _operand(weight: Tensor, shape: ScorerShape) -> Tensor:
    return weight.detach().to(shape.half) if shape.half is not None and weight.dtype == torch.float32 else weight


def _walk(hidden: Tensor, head: Tensor, grad_hidden: Tensor, grad_weight: Tensor | None, shape: ScorerShape) -> None:
    """One group of each size after another; the buffers stay."""
    vocabulary = head.shape[0]
    work = shape.walk_of(head, grad_hidden, grad_weight)
    room = max(1, shape.budget(head.numel()) // (vocabulary * 4))
    way = walks._way(work, room, shape.pair_counts)
    fit = room if way.endswith("frozen") or way == "moments" else walks._rows_of_a_group(way, work, room)
    buffers: dict[str, Tensor] = {}

    def take(name: str, count: int) -> Tensor:
        old = buffers.pop(name, None)
        if old is None or len(old) < count:
            del old
            old = hidden.new_empty((count, vocabulary), dtype=torch.float32)
        buffers[name] = old
        return old[:count]

    for first, last in walks._groups(shape.pair_counts, fit):
        count = sum(shape.pair_counts[first:last])
        if way == "paired" or (way == "directed" and count > fit):
            _paired(count, walks._rows_of_a_group("paired", work, room), take, hidden, head, grad_weight, work)
        elif way == "directed":
            tile = max(1, min(work.tile_rows, room - count))
            policy = _rows_of(take, "policy", count, hidden, head)
            _rows_of(take, "reference", min(tile, count), hidden, head) if work.projects_reference else None
            _accumulate(policy, hidden, head, grad_weight)
        else:
            tile = max(1, min(2 * work.tile_rows if way == "moments" else work.tile_rows, room // 2))
            _tiles(count, tile, take, hidden, head, work, way == "moments")


def _paired(
    count: int, fit: int, take: Any, hidden: Tensor, head: Tensor, grad_weight: Tensor | None, work: Any
) -> None:
    for first in range(0, count, fit):
        size = min(fit, count - first)
        policy = _rows_of(take, "policy", size, hidden, head)
        if work.projects_reference:
            _rows_of(take, "reference", size, hidden, head)
        _accumulate(policy, hidden, head, grad_weight)


def _tiles(count: int, tile: int, take: Any, hidden: Tensor, head: Tensor, work: Any, moments: bool) -> None:
    """A frozen head: rows of (n, H) results instead of a head's gradient."""
    held = []
    if moments:
        held = [hidden.new_empty((count, hidden.shape[1]), dtype=torch.float32) for _ in range(2)]
    for first in range(0, count, tile):
        size = min(tile, count - first)
        policy = _rows_of(take, "policy", size, hidden, head)
        if work.projects_reference:
            _rows_of(take, "reference", size, hidden, head)
        _times_weight(policy, head)
    del held


def _rows_of(take: Any, name: str, count: int, hidden: Tensor, head: Tensor) -> Tensor:
    part = hidden[:count].clone()  # indexed
    operand = part.to(head.dtype)
    out: Tensor = take(name, count)
    del part, operand
    return out


def _accumulate(policy: Tensor, hidden: Tensor, head: Tensor, grad_weight: Tensor | None) -> None:
    count = len(policy)
    states = hidden[:count].clone().to(torch.float32)
    if grad_weight is None:
        _times_weight(policy, head)
        return
    result = torch.zeros_like(states)
    if head.dtype == torch.float32:  # in place, no temporaries
        return
    half = states.to(head.dtype)
    for tile in _weight_tiles(head):
        cast = policy[:, tile].to(head.dtype)
        product = torch.empty_like(states)
        del product
        outer = head.new_empty((tile.stop - tile.start, head.shape[1]), dtype=torch.float32)
        del outer, cast
    del result, half


def _times_weight(policy: Tensor, head: Tensor) -> None:
    total = policy.new_empty((len(policy), head.shape[1]))
    if head.dtype != policy.dtype:
        for tile in _weight_tiles(head):
            cast = policy[:, tile].to(head.dtype)
            product = torch.empty_like(total)
            del cast, product
    del total


def _weight_tiles(head: Tensor) -> Iterator[slice]:
    """As products.weight_tiles lays them out on a GPU."""
    size = 8 * max(1, products._TILE_ELEMENTS // head.shape[1])
    for first in range(0, len(head), size):
        yield slice(first, min(first + size, len(head)))


def products_of(shape: ScorerShape, hidden_size: int, vocabulary: int, trains_head: bool) -> int:
    """Floating-point operations of the head in a step: 2NHV a product."""
    count = 1 + int(shape.needs_reference and not shape.cached)  # logits of policy, of reference
    count += 1 + int(trains_head)  # gradients of states, of the head
    return 2 * shape.rows * hidden_size * vocabulary * count
