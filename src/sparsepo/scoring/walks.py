"""Ways through a group of pairs: all give the same losses and gradients, with different memory and products.

N kept rows, width H, vocabulary V; a product costs 2NHV operations.

- ``paired``: policy and reference rows of the group stay in two buffers until the objective has spoken. Four products; a
  single pair that does not fit goes through blocks of rows twice.
- ``directed``: the objective's gradient over a pair is known up to one factor before any logits are
  (:meth:`Results.directions`), so each row becomes a gradient at once and the factor is applied to (n, H) arrays. Four
  products, one buffer of the pair's rows and a tile of the reference's; with a frozen head one tile of each, three products.
- ``moments`` (frozen head): E_p[W] and E_q[W] a row are all that the gradient of the hidden states needs,
  g (W[y] − E_p[W]) + c (E_p[W] − E_q[W]). Any objective, one tile of memory; with a cached reference two products.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .head import LMHead
from .products import add_outer, backward_products, hidden_operand, times_weight
from .results import Group, Results
from .rows import TILE_ROWS, TILE_ROWS_ON_GPUS, RowBuffers, RowStatistics, joined

# Rows of the reference that share the memory with a pair's: fewer cost products some speed
_LEAST_TILE_ROWS, _LEAST_TILE_ROWS_ON_GPUS = 32, 512


@dataclass
class Work:
    """One call's kept rows in order, (N, …), and the gradients being filled; None where there is nothing."""

    head: LMHead
    flat: Tensor  # places of the rows in the flattened (R, T) arrays, (N,)
    hidden: Tensor  # (N, H)
    targets: Tensor  # (N,)
    reference_head: LMHead | None
    reference_hidden: Tensor | None  # (N, H)
    cached_logps: Tensor | None  # (N,)
    cached_normaliser: Tensor | None  # (N,)
    cached_hidden: Tensor | None  # (N, H)
    expected_weight: Tensor | None  # (N, H)
    need_kl: bool
    statistics: bool
    has_fixed_direction: bool
    grad_hidden: Tensor | None
    grad_weight: Tensor | None
    grad_bias: Tensor | None
    buffers: RowBuffers
    arithmetic: Any  # TorchRows or TritonRows

    @property
    def projects_reference(self) -> bool:
        """Whether rows go through the reference's head."""
        return self.reference_hidden is not None and self.reference_head is not None

    @property
    def tile_rows(self) -> int:
        """Rows of logits of a tile, where memory allows them."""
        return TILE_ROWS_ON_GPUS if self.is_on_gpu else TILE_ROWS

    @property
    def is_on_gpu(self) -> bool:
        """Whether launches of kernels cost more than memory that stays in a cache saves."""
        return self.hidden.device.type != "cpu"

    @property
    def needs_gradient(self) -> bool:
        """Whether anything behind the logits wants a gradient."""
        return any(g is not None for g in (self.grad_hidden, self.grad_weight, self.grad_bias))

    @property
    def head_is_frozen(self) -> bool:
        """Whether the head's own parameters want none."""
        return self.grad_weight is None and self.grad_bias is None

    def policy_rows(self, index: Tensor) -> Tensor:
        """Policy logits of some kept rows, in their buffer, (n, V)."""
        return self.buffers.project("policy", self.head, self.hidden[index])

    def reference_rows(self, index: Tensor) -> Tensor | None:
        """Reference logits of some kept rows, in their buffer, (n, V); None where no reference is projected."""
        if self.reference_hidden is None or self.reference_head is None:
            return None
        return self.buffers.project("reference", self.reference_head, self.reference_hidden[index])

    def row_statistics(
        self, policy: Tensor, reference: Tensor | None, index: Tensor, statistics: bool | None = None
    ) -> RowStatistics:
        """Values of rows; what a cache knows of the reference is added."""
        wanted = self.statistics if statistics is None else statistics
        found: RowStatistics = self.arithmetic.statistics(policy, reference, self.targets[index], self.need_kl, wanted)
        if self.cached_logps is not None:
            found.ref_logps = self.cached_logps[index]
        if self.need_kl and self.expected_weight is not None:
            assert self.cached_hidden is not None
            assert self.cached_normaliser is not None
            # the states that the logits were formed from: what rounding takes from one side would be left of the KL
            policy_hidden, reference_hidden = (
                hidden_operand(hidden[index], self.head.weight).to(self.buffers.dtype)
                for hidden in (self.hidden, self.cached_hidden)
            )
            moved = policy_hidden - reference_hidden
            found.kl = found.log_normaliser - self.cached_normaliser[index]
            found.kl = found.kl - self.head.scale * torch.linalg.vecdot(moved, self.expected_weight[index])
        return found


def walk(work: Work, results: Results, budget: int) -> None:
    """Score all kept rows, fill ``results`` and the gradients of ``work``.

    Args:
        work: the rows.
        results: the arrays, and the objective.
        budget: bytes that the buffers of logits may take.
    """
    keep = results.keep
    pairs = len(keep) // 2
    counts = keep.sum(1).tolist()
    starts = [0, *itertools.accumulate(counts)]
    room = max(1, budget // (work.buffers.vocabulary * work.buffers.dtype.itemsize))  # rows in all buffers together
    pair_counts = [counts[p] + counts[pairs + p] for p in range(pairs)]
    way = _way(work, room, pair_counts)
    fit = room if way.endswith("frozen") or way == "moments" else _rows_of_a_group(way, work, room)
    for first, last in _groups(pair_counts, fit):
        group = _group(work, starts, keep.shape, first, last)
        if way == "moments":
            _moments(work, results, group, room)
        elif way == "paired" or (way == "directed" and len(group.index) > fit):
            _paired(work, results, group, _rows_of_a_group("paired", work, room))
        else:
            _directed(work, results, group, room)


def _group(work: Work, starts: list[int], shape: torch.Size, first: int, last: int) -> Group:
    """Pairs [first, last); ``starts``: the first kept row of each of the R sequences, and N."""
    pairs, width, device = shape[0] // 2, shape[1], work.flat.device
    ranges = [(starts[s], starts[s + last - first], s) for s in (first, pairs + first)]
    index = torch.cat([torch.arange(begin, end, device=device) for begin, end, _ in ranges])
    flat = work.flat[index]
    if first == 0 and last == pairs:
        return Group(index, flat, flat, None, slice(first, last))
    # the group's own sequences are numbered from 0, the chosen ones first
    moves = (first, pairs + first - (last - first))
    local = torch.cat([work.flat[begin:end] - width * move
                       for (begin, end, _), move in zip(ranges, moves, strict=True)])  # fmt: skip
    sequences = torch.cat([torch.arange(s, s + last - first, device=device) for _, _, s in ranges])
    return Group(index, flat, local, sequences, slice(first, last))


def _way(work: Work, room: int, pair_counts: list[int]) -> str:
    """The way that needs the least products, then the least memory; on GPUs the fewest launches where memory is there."""
    largest = max(pair_counts, default=0)
    can_use_moments = work.head_is_frozen and work.head.softcap is None and work.grad_hidden is not None
    if can_use_moments and (work.expected_weight is not None or not (work.projects_reference and work.need_kl)):
        return "moments"
    if not work.needs_gradient:
        return "directed, frozen"  # nothing is kept: tiles of rows
    if work.has_fixed_direction and not (work.is_on_gpu and 2 * sum(pair_counts) <= room):
        return "directed, frozen" if work.head_is_frozen else "directed"
    if can_use_moments and 2 * largest > room:
        return "moments"
    return "paired"


def _rows_of_a_group(way: str, work: Work, room: int) -> int:
    """Rows of the policy that a group may have in its buffer."""
    if not work.projects_reference:
        return room
    if way == "paired":
        return max(1, room // 2)
    least = _LEAST_TILE_ROWS_ON_GPUS if work.is_on_gpu else _LEAST_TILE_ROWS
    return max(1, room - min(least, room // 4))


def _groups(counts: list[int], rows_that_fit: int) -> Iterator[tuple[int, int]]:
    """Consecutive pairs [first, last) whose rows fit the buffer together; a larger pair stands alone."""
    first, total = 0, 0
    for pair, count in enumerate(counts):
        if pair > first and total + count > rows_that_fit:
            yield first, pair
            first, total = pair, 0
        total += count
    if first < len(counts):
        yield first, len(counts)


def _paired(work: Work, results: Results, group: Group, fit: int) -> None:
    blocks = list(group.index.split(fit)) or [group.index]
    found = []
    for rows in blocks:
        policy, reference = work.policy_rows(rows), work.reference_rows(rows)
        found.append(work.row_statistics(policy, reference, rows))
    results.put(group, joined(found))
    grads = results.token_gradients(group)
    if grads is None or not work.needs_gradient:
        return
    first = 0
    for rows, statistics in zip(blocks, found, strict=True):
        if len(blocks) > 1:  # the buffers hold the last block only: project again
            policy, reference = work.policy_rows(rows), work.reference_rows(rows)
            work.row_statistics(policy, reference, rows, statistics=False)
        g, c = (values[first : first + len(rows)] for values in grads)
        first += len(rows)
        dz = work.arithmetic.gradient(policy, reference, statistics, work.targets[rows], g, c, work.head)
        _accumulate(work, rows, dz, None)


def _directed(work: Work, results: Results, group: Group, room: int) -> None:
    """Rows become G' = a (1[v = y] − p) + b (p − q) at once, with the directions a, b of their tokens."""
    index = group.index
    directions = results.directions(group) if work.needs_gradient else None
    # with a frozen head nothing couples the rows before the factor: a tile of both is enough
    whole = not work.head_is_frozen
    tile = room
    if work.projects_reference:
        tile = max(1, min(work.tile_rows, room - len(index) if whole else room // 2))
    policy = work.policy_rows(index) if whole else None
    found = []
    for first in range(0, max(len(index), 1), tile):
        rows = index[first : first + tile]
        mine = policy[first : first + tile] if policy is not None else work.policy_rows(rows)
        pair = None if directions is None else [values[first : first + tile] for values in directions]
        found.append(_directed_tile(work, rows, mine, work.reference_rows(rows), pair))
        if policy is None and directions is not None and work.grad_hidden is not None:
            work.grad_hidden[rows] = times_weight(mine, work.head.weight)
    results.put(group, joined(found))
    grads = results.token_gradients(group)
    if directions is None or grads is None:
        if work.grad_hidden is not None:
            work.grad_hidden[index] = 0
        return
    factor = _pair_factors(directions, grads, results, group)
    if policy is not None:
        _accumulate(work, index, policy, factor)
    elif work.grad_hidden is not None:
        work.grad_hidden[index] *= factor[:, None]


def _directed_tile(
    work: Work, rows: Tensor, policy: Tensor, reference: Tensor | None, directions: list[Tensor] | None
) -> RowStatistics:
    """Statistics and gradient of a tile, block by block while a block is in the cache."""
    size = work.arithmetic.block(policy)
    parts = []
    for first in range(0, max(len(rows), 1), size):
        block = slice(first, first + size)
        z, w = policy[block], None if reference is None else reference[block]
        parts.append(work.row_statistics(z, w, rows[block]))
        if directions is not None:
            a, b = (values[block] for values in directions)
            work.arithmetic.gradient(z, w, parts[-1], work.targets[rows[block]], a, b, work.head)
    return joined(parts)


def _pair_factors(directions: list[Tensor], grads: list[Tensor], results: Results, group: Group) -> Tensor:
    """Of each row the factor s of its pair, with (g, c) = s · (a, b); zero where a pair has no gradient, (n,)."""
    count = group.pairs.stop - group.pairs.start
    of_row = group.local // results.keep.shape[1] % count  # pair of each row
    (a, b), (g, c) = directions, grads
    products, squares = a * g + b * c, a * a + b * b
    sums = products.new_zeros(2, count).index_add_(1, of_row, torch.stack([products, squares]))
    factors = torch.where(sums[1] > 0, sums[0] / sums[1].where(sums[1] > 0, torch.ones_like(sums[1])), 0.0)
    return factors[of_row]


def _moments(work: Work, results: Results, group: Group, room: int) -> None:
    """Rows need not wait for the objective: their means of head rows are enough."""
    assert work.grad_hidden is not None
    index, weight = group.index, work.head.weight
    tile = max(1, min(2 * work.tile_rows, room // 2))
    expected = torch.empty_like(work.grad_hidden[index])
    reference_expected = None if work.expected_weight is None else work.expected_weight[index]
    if reference_expected is None and work.projects_reference and work.need_kl:
        reference_expected = torch.empty_like(expected)
    found = []
    for first in range(0, max(len(index), 1), tile):
        block = slice(first, first + tile)
        rows = index[block]
        policy, reference = work.policy_rows(rows), work.reference_rows(rows)
        found.append(work.row_statistics(policy, reference, rows))
        expected[block] = times_weight(work.arithmetic.probabilities(policy, found[-1]), weight)
        if reference is not None and reference_expected is not None:
            reference_expected[block] = times_weight(
                work.arithmetic.reference_probabilities(reference, found[-1]), weight
            )
    results.put(group, joined(found))
    grads = results.token_gradients(group)
    if grads is None:
        return
    g, c = (values[:, None] for values in grads)
    total = g * (weight.detach()[work.targets[index]].to(expected.dtype) - expected)
    if reference_expected is not None:
        total += c * (expected - reference_expected)
    work.grad_hidden[index] = work.head.scale * total


def _accumulate(work: Work, index: Tensor, dz: Tensor, factor: Tensor | None) -> None:
    """Rows of ∂L/∂(W h + b), each times its factor → gradients of hidden states and head."""
    weight, total = work.head.weight, work.grad_weight
    hidden = work.hidden[index].to(dz.dtype)
    scaled = hidden if factor is None else hidden * factor[:, None]
    if work.grad_hidden is not None:
        gradient = backward_products(dz, scaled, weight, total)
        work.grad_hidden[index] = gradient if factor is None else gradient * factor[:, None]
    elif total is not None:
        add_outer(total, dz, scaled, weight)
    if work.grad_bias is not None:
        work.grad_bias += dz.sum(0) if factor is None else factor @ dz
