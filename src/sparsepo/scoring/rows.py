"""Arithmetic on rows of logits in reused buffers: fresh vocabulary-wide allocations cost about ten plain passes on a CPU.

After :func:`row_statistics` the buffers hold probabilities, p of the policy and q of the reference; after
:func:`logit_gradient` the policy's holds the gradient of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .head import LMHead

_ELEMENTS = 1 << 20  # a block of rows that stays in a CPU's cache


@dataclass
class RowStatistics:
    """Values of n rows, (n,) each; what was not asked for is None."""

    logps: Tensor
    log_normaliser: Tensor
    ref_logps: Tensor | None = None
    kl: Tensor | None = None
    entropy: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None


class RowBuffers:
    """Two reused buffers of logits and the projections into them, in float32 (float64 for float64 models)."""

    def __init__(self, vocabulary: int, dtype: torch.dtype, device: torch.device) -> None:
        self.vocabulary, self.dtype, self.device = vocabulary, dtype, device
        self._memory: dict[str, Tensor] = {}
        self.rows: dict[str, Tensor] = {}

    def _take(self, name: str, count: int) -> Tensor:
        memory = self._memory.get(name)
        if memory is None or len(memory) < count:
            memory = torch.empty(count, self.vocabulary, dtype=self.dtype, device=self.device)
            self._memory[name] = memory
        self.rows[name] = memory[:count]
        return self.rows[name]

    def project(self, name: str, head: LMHead, hidden: Tensor) -> Tensor:
        """softcap(scale (W h + b)) of n hidden states into the named buffer, (n, V)."""
        out = self._take(name, len(hidden))
        hidden = hidden.to(self.dtype)
        for columns in self._tiles(head.weight):
            weight = head.weight[columns].detach().to(self.dtype)
            if columns == slice(None):
                torch.mm(hidden, weight.T, out=out)
            else:
                out[:, columns] = hidden @ weight.T
        for block in blocks_of(out):
            if head.bias is not None:
                block += head.bias.detach().to(self.dtype)
            if head.scale != 1.0:
                block *= head.scale
            if head.softcap is not None:
                block.div_(head.softcap).tanh_().mul_(head.softcap)
        return out

    def times_weight(self, rows: Tensor, weight: Tensor) -> Tensor:
        """rows (n, V) @ W (V, H) → (n, H)."""
        if weight.dtype == self.dtype:
            return rows @ weight.detach()
        total = torch.zeros(len(rows), weight.shape[1], dtype=self.dtype, device=rows.device)
        for columns in self._tiles(weight):
            total.addmm_(rows[:, columns], weight[columns].detach().to(self.dtype))
        return total

    def _tiles(self, weight: Tensor) -> Iterator[slice]:
        """The whole vocabulary, or tiles of it where the weight must be cast to the buffers' type first."""
        if weight.dtype == self.dtype:
            yield slice(None)
            return
        size = max(1, (8 << 20) // weight.shape[1])
        for first in range(0, len(weight), size):
            yield slice(first, min(first + size, len(weight)))


def blocks_of(rows: Tensor) -> tuple[Tensor, ...]:
    """Views of consecutive rows of about a million elements."""
    return rows.split(max(1, _ELEMENTS // rows.shape[1])) if len(rows) else ()


def row_statistics(
    policy: Tensor, reference: Tensor | None, targets: Tensor, need_kl: bool, statistics: bool
) -> RowStatistics:
    """Values of n rows of logits; both buffers are overwritten with probabilities.

    Args:
        policy, reference: logits, (n, V).
        targets: token ids, (n,).
        need_kl: form KL(reference‖policy).
        statistics: form entropy, mean logit and top-1 hits of the policy.
    """
    size = max(1, _ELEMENTS // policy.shape[1])
    parts: list[dict[str, Tensor]] = []
    for first in range(0, len(targets), size):
        rows = slice(first, first + size)
        parts.append(_block_statistics(policy[rows], None if reference is None else reference[rows], targets[rows],
                                       need_kl, statistics))  # fmt: skip
    if not parts:
        empty = policy.new_zeros(0)
        has = {"ref_logps": reference is not None, "kl": reference is not None and need_kl}
        has |= dict.fromkeys(("entropy", "mean_logits", "is_top1"), statistics)
        return RowStatistics(empty, empty, **{name: empty for name, wanted in has.items() if wanted})
    return RowStatistics(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def _block_statistics(
    z: Tensor, w: Tensor | None, targets: Tensor, need_kl: bool, statistics: bool
) -> dict[str, Tensor]:
    """``z`` policy and ``w`` reference logits of a few rows, overwritten with their probabilities."""
    found: dict[str, Tensor] = {}
    column = targets[:, None]
    peak = z.amax(-1, keepdim=True)
    if statistics:
        found["mean_logits"] = z.mean(-1)
        found["is_top1"] = (z.argmax(-1) == targets).to(z.dtype)
    z -= peak  # small numbers keep their digits
    normaliser = z.logsumexp(-1, keepdim=True)
    found["logps"] = (z.gather(1, column) - normaliser).squeeze(1)
    found["log_normaliser"] = (normaliser + peak).squeeze(1)
    if w is not None:
        w -= w.amax(-1, keepdim=True)
        reference_normaliser = w.logsumexp(-1, keepdim=True)
        found["ref_logps"] = (w.gather(1, column) - reference_normaliser).squeeze(1)
        difference = w - z if need_kl else None
        w.sub_(reference_normaliser).exp_()
        if difference is not None:
            # KL = Σ q (w − z) − (log Σe^w − log Σe^z)
            cross = torch.linalg.vecdot(w, difference)
            found["kl"] = cross - (reference_normaliser - normaliser).squeeze(1)
    z -= normaliser
    if statistics:
        logs = z.clone()
        z.exp_()
        found["entropy"] = -torch.linalg.vecdot(z, logs)
    else:
        z.exp_()
    return found


def logit_gradient(
    buffers: RowBuffers, statistics: RowStatistics, targets: Tensor, g: Tensor, c: Tensor, head: LMHead
) -> Tensor:
    """∂L/∂(W h + b) from the probabilities in the buffers, written over the policy's, (n, V).

    Args:
        buffers: hold p and (where there is one) q.
        statistics: of the same rows.
        targets: token ids, (n,).
        g: ∂L/∂log π_t, (n,).
        c: ∂L/∂k_t, (n,).
        head: the policy's head, whose cap and scale the chain rule passes.
    """
    p, q = buffers.rows["policy"], buffers.rows.get("reference")
    size = max(1, _ELEMENTS // p.shape[1])
    for first in range(0, len(targets), size):
        rows = slice(first, first + size)
        block, gb, cb = p[rows], g[rows, None], c[rows, None]
        slope = None
        if head.softcap is not None:  # d cap·tanh(x/cap)/dx = 1 − (z/cap)², z recovered from log p
            tiny = torch.finfo(block.dtype).tiny  # a probability that underflowed must not become log 0
            z = block.clamp(min=tiny).log_() + statistics.log_normaliser[rows, None]
            slope = (1 - (z / head.softcap).square_()).clamp_(min=0)
        block *= cb - gb
        if q is not None:
            block.addcmul_(q[rows], cb, value=-1)
        block.scatter_add_(1, targets[rows, None], gb)
        if slope is not None:
            block *= slope
        if head.scale != 1.0:
            block *= head.scale
    return p
