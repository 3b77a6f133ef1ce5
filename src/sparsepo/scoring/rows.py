"""Arithmetic on rows of logits in reused buffers: fresh vocabulary-wide allocations cost about ten plain passes on a CPU.

After :func:`row_statistics` the buffers hold probabilities, p of the policy and q of the reference; after
:func:`logit_gradient` the policy's holds the gradient of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .head import LMHead
from .products import project_into

_ELEMENTS = 1 << 20  # a block of rows that stays in a CPU's cache
# Rows of logits of a tile, where memory allows them
TILE_ROWS, TILE_ROWS_ON_GPUS = 128, 1024


@dataclass
class RowStatistics:
    """Values of n rows, (n,) each; what was not asked for is None."""

    logps: Tensor
    log_normaliser: Tensor
    ref_log_normaliser: Tensor | None = None
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

    def take(self, name: str, count: int) -> Tensor:
        """The first ``count`` rows of the named buffer, made larger where it is too small."""
        memory = self._memory.pop(name, None)
        if memory is None or len(memory) < count:
            del memory  # before the larger one is made
            memory = torch.empty(count, self.vocabulary, dtype=self.dtype, device=self.device)
        self._memory[name] = memory
        return memory[:count]

    def project(self, name: str, head: LMHead, hidden: Tensor) -> Tensor:
        """softcap(scale (W h + b)) of n hidden states into the named buffer, (n, V)."""
        out = self.take(name, len(hidden))
        project_into(out, hidden, head.weight)
        for block in blocks_of(out):
            if head.bias is not None:
                block += head.bias.detach().to(self.dtype)
            if head.scale != 1.0:
                block *= head.scale
            if head.softcap is not None:
                block.div_(head.softcap).tanh_().mul_(head.softcap)
        return out


def rows_in_block(rows: Tensor) -> int:
    """Rows that are worked on at a time: what stays in a CPU's cache; elsewhere large blocks, since launches cost more."""
    elements = _ELEMENTS if rows.device.type == "cpu" else _ELEMENTS << 7
    return max(1, elements // rows.shape[1])


def blocks_of(rows: Tensor) -> tuple[Tensor, ...]:
    """Views of consecutive rows."""
    return rows.split(rows_in_block(rows)) if len(rows) else ()


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
    size = rows_in_block(policy)
    parts: list[RowStatistics] = []
    for first in range(0, len(targets), size):
        rows = slice(first, first + size)
        found = _block_statistics(policy[rows], None if reference is None else reference[rows], targets[rows],
                                  need_kl, statistics)  # fmt: skip
        parts.append(RowStatistics(**found))
    if not parts:
        empty = policy.new_zeros(0)
        has = dict.fromkeys(("ref_log_normaliser", "ref_logps"), reference is not None)
        has |= {"kl": reference is not None and need_kl}
        has |= dict.fromkeys(("entropy", "mean_logits", "is_top1"), statistics)
        return RowStatistics(empty, empty, **{name: empty for name, wanted in has.items() if wanted})
    return joined(parts)


def joined(parts: list[RowStatistics]) -> RowStatistics:
    """Statistics of consecutive blocks of rows as one."""
    if len(parts) == 1:
        return parts[0]
    names = [field.name for field in fields(RowStatistics) if getattr(parts[0], field.name) is not None]
    return RowStatistics(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


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
        reference_peak = w.amax(-1, keepdim=True)
        w -= reference_peak
        reference_normaliser = w.logsumexp(-1, keepdim=True)
        found["ref_log_normaliser"] = (reference_normaliser + reference_peak).squeeze(1)
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
    policy: Tensor,
    reference: Tensor | None,
    statistics: RowStatistics,
    targets: Tensor,
    g: Tensor,
    c: Tensor,
    head: LMHead,
) -> Tensor:
    """g (1[v = y] − p) + c (p − q) through the head's cap and scale, written over the policy's rows, (n, V).

    Args:
        policy, reference: p and (where there is one) q, as :func:`row_statistics` left them.
        statistics: of the same rows.
        targets: token ids, (n,).
        g: ∂L/∂log π_t, (n,).
        c: ∂L/∂k_t, (n,).
        head: the policy's head, whose cap and scale the chain rule passes.
    """
    size = rows_in_block(policy)
    for first in range(0, len(targets), size):
        rows = slice(first, first + size)
        block, gb, cb = policy[rows], g[rows, None], c[rows, None]
        slope = None
        if head.softcap is not None:  # d cap·tanh(x/cap)/dx = 1 − (z/cap)², z recovered from log p
            tiny = torch.finfo(block.dtype).tiny  # a probability that underflowed must not become log 0
            z = block.clamp(min=tiny).log_() + statistics.log_normaliser[rows, None]
            slope = (1 - (z / head.softcap).square_()).clamp_(min=0)
        block *= cb - gb
        if reference is not None:
            block.addcmul_(reference[rows], cb, value=-1)
        block.scatter_add_(1, targets[rows, None], gb)
        if slope is not None:
            block *= slope
        if head.scale != 1.0:
            block *= head.scale
    return policy


class TorchRows:
    """The arithmetic on rows in plain torch. Another backend may leave other things in the buffers between its calls."""

    statistics = staticmethod(row_statistics)
    gradient = staticmethod(logit_gradient)

    @staticmethod
    def probabilities(policy: Tensor, statistics: RowStatistics) -> Tensor:
        """p of rows whose statistics were taken, in place."""
        return policy

    @staticmethod
    def reference_probabilities(reference: Tensor, statistics: RowStatistics) -> Tensor:
        """q of rows whose statistics were taken, in place."""
        return reference

    block = staticmethod(rows_in_block)
