"""The arithmetic on rows of logits as Triton kernels, one read of each row; same meaning as :mod:`sparsepo.scoring.rows`.

Unlike the torch functions these leave the logits in the buffers until the gradient (or probabilities) overwrite them.
Used on CUDA where triton works; under ``TRITON_INTERPRET=1`` also on a CPU, for tests. The module imports without triton.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .head import LMHead
from .rows import RowStatistics, TorchRows

logger = logging.getLogger(__name__)

SWITCH = "SPARSEPO_ROWS"
BLOCK = 2048  # logits of a row that a program holds at a time
WARPS = 8
_checked: dict[str, str] = {}  # device → why its kernels cannot be used, or nothing


@dataclass
class TritonStatistics(RowStatistics):
    """Adds what float32 lost of the log-normalisers, (n,): :func:`triton_logit_gradient` is less exact without it."""

    rest: Tensor | None = None
    ref_rest: Tensor | None = None


def triton_is_available() -> bool:
    """Whether triton is installed. It may still not run on a given device; :func:`row_backend` tries that."""
    return importlib.util.find_spec("triton") is not None


def triton_is_interpreted() -> bool:
    """Whether the environment asks for kernels on the CPU, slow and for tests. Read by triton when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def _kernels() -> ModuleType:
    return importlib.import_module(".triton_kernels", __package__)


def triton_row_statistics(
    policy: Tensor,
    reference: Tensor | None,
    targets: Tensor,
    need_kl: bool,
    statistics: bool,
    *,
    block: int = BLOCK,
    warps: int = WARPS,
) -> TritonStatistics:
    """Values of n rows of logits, which stay as they are.

    Args:
        policy, reference: logits, float32 or float64, (n, V); rows may be strided.
        targets: token ids, (n,).
        need_kl: form KL(reference‖policy).
        statistics: form entropy, mean logit and top-1 hits of the policy. Of equal largest logits the lowest index is the
            top; ``torch.argmax`` may choose any of them.
        block, warps: shape of a program.

    Raises:
        ValueError: other types, or elements of a row that do not lie side by side.
    """
    kernels = _kernels()
    _check_rows(policy, reference)
    count, vocabulary = policy.shape
    values = policy.new_empty(kernels.OUTPUTS, count)
    if count:
        with _on(policy):
            kernels.row_statistics_kernel[(count,)](
                policy,
                policy if reference is None else reference,
                targets.contiguous(),
                values,
                policy.stride(0),
                0 if reference is None else reference.stride(0),
                count,
                vocabulary,
                HAS_REFERENCE=reference is not None,
                NEED_KL=need_kl,
                STATISTICS=statistics,
                BLOCK=_block(block, vocabulary),
                num_warps=warps,
            )
    found: dict[str, Tensor] = {
        "logps": values[kernels.LOGP],
        "log_normaliser": values[kernels.NORMALISER],
        "rest": values[kernels.REST],
    }
    if reference is not None:
        found["ref_logps"] = values[kernels.REF_LOGP]
        found["ref_log_normaliser"] = values[kernels.REF_NORMALISER]
        found["ref_rest"] = values[kernels.REF_REST]
        if need_kl:
            found["kl"] = values[kernels.KL]
    if statistics:
        found["entropy"] = values[kernels.ENTROPY]
        found["mean_logits"] = values[kernels.MEAN]
        found["is_top1"] = values[kernels.IS_TOP1]
    return TritonStatistics(**found)


def triton_logit_gradient(
    policy: Tensor,
    reference: Tensor | None,
    statistics: RowStatistics,
    targets: Tensor,
    g: Tensor,
    c: Tensor,
    scale: float = 1.0,
    softcap: float | None = None,
    out: Tensor | None = None,
    *,
    block: int = BLOCK,
    warps: int = WARPS,
) -> Tensor:
    """[g (1[v = y] − p) + c (p − q)] · (1 − (z / softcap)²) · scale, (n, V); without a reference q is 0.

    Args:
        policy, reference: the logits z and w, after scale and cap, (n, V).
        statistics: of the same rows, from :func:`triton_row_statistics`.
        targets: token ids, (n,).
        g: ∂L/∂log π_t, (n,).
        c: ∂L/∂k_t, (n,).
        scale, softcap: of the policy's head.
        out: where to write, of any floating type; None: over the policy's rows.
        block, warps: shape of a program.
    """
    kernels = _kernels()
    _check_rows(policy, reference)
    out = policy if out is None else out
    if out.shape != policy.shape or out.stride(1) != 1:
        raise ValueError(f"out must be {tuple(policy.shape)} with the elements of a row side by side.")
    if reference is not None and statistics.ref_log_normaliser is None:
        raise ValueError("A reference needs statistics that were taken with it (ref_log_normaliser).")
    count, vocabulary = policy.shape
    if count == 0:
        return out
    size = _block(block, vocabulary)
    normaliser, rest = _normaliser(statistics, "")
    ref_normaliser, ref_rest = (normaliser, rest) if reference is None else _normaliser(statistics, "ref_")
    with _on(policy):
        kernels.logit_gradient_kernel[(count, -(-vocabulary // size))](
            policy,
            policy if reference is None else reference,
            out,
            targets.contiguous(),
            normaliser,
            rest,
            ref_normaliser,
            ref_rest,
            g.to(policy.dtype).contiguous(),
            c.to(policy.dtype).contiguous(),
            policy.stride(0),
            0 if reference is None else reference.stride(0),
            out.stride(0),
            vocabulary,
            SCALE=float(scale),
            SOFTCAP=None if softcap is None else float(softcap),
            HAS_REFERENCE=reference is not None,
            BLOCK=size,
            num_warps=warps,
        )
    return out


class TritonRows:
    """The arithmetic on rows in Triton, with the names of :class:`sparsepo.scoring.rows.TorchRows`.

    Between its calls the buffers hold logits, not probabilities.
    """

    statistics = staticmethod(triton_row_statistics)

    @staticmethod
    def gradient(
        policy: Tensor,
        reference: Tensor | None,
        statistics: RowStatistics,
        targets: Tensor,
        g: Tensor,
        c: Tensor,
        head: LMHead,
    ) -> Tensor:
        """The gradient of the logits through the head's cap and scale, written over the policy's rows, (n, V)."""
        return triton_logit_gradient(policy, reference, statistics, targets, g, c, head.scale, head.softcap)

    @staticmethod
    def probabilities(policy: Tensor, statistics: RowStatistics) -> Tensor:
        """p of rows whose statistics were taken, in place."""
        return _to_probabilities(policy, *_normaliser(statistics, ""))

    @staticmethod
    def reference_probabilities(reference: Tensor, statistics: RowStatistics) -> Tensor:
        """q of rows whose statistics were taken, in place."""
        return _to_probabilities(reference, *_normaliser(statistics, "ref_"))

    @staticmethod
    def block(rows: Tensor) -> int:
        """All rows at once: a launch costs more than memory that stays in a cache saves."""
        return max(1, len(rows))


def row_backend(device: torch.device | str) -> Any:
    """The class with the arithmetic on rows for a device: :class:`TritonRows` on CUDA where triton works, else torch.

    The environment variable ``SPARSEPO_ROWS`` ('torch' or 'triton') chooses by hand, for tests and benchmarks.

    Raises:
        ValueError: another value of ``SPARSEPO_ROWS``, or 'triton' where it cannot run, with the reason.
    """
    device = torch.device(device)
    wanted = os.environ.get(SWITCH, "")
    if wanted not in ("", "torch", "triton"):
        raise ValueError(f"{SWITCH}={wanted!r} must be 'torch' or 'triton'; unset it to follow the device.")
    if wanted == "torch" or (not wanted and device.type != "cuda"):
        return TorchRows
    if str(device) not in _checked:
        with torch.autocast(device.type, enabled=False):  # which would round what the kernels are compared with
            _checked[str(device)] = _why_not(device)
        if _checked[str(device)] and not wanted:
            logger.warning("scorer: no Triton kernels on %s (%s); using torch.", device, _checked[str(device)])
    why_not = _checked[str(device)]
    if why_not and wanted:
        raise ValueError(f"{SWITCH}='triton' cannot be used on {device}: {why_not}")
    return TorchRows if why_not else TritonRows


def _why_not(device: torch.device) -> str:
    """Try the kernels on a few numbers: a reason why they cannot be used, or nothing."""
    if not triton_is_available():
        return "triton is not installed."
    if device.type != "cuda" and not triton_is_interpreted():
        return "Triton runs on CUDA; on a CPU only for tests, with TRITON_INTERPRET=1 set before Python starts."
    z = torch.linspace(-3, 4, 22, device=device).view(2, 11)
    w, targets = z.flip(1).contiguous(), torch.tensor([2, 7], device=device)
    g, c = torch.tensor([0.5, -1.0], device=device), torch.tensor([2.0, 0.25], device=device)
    try:
        found = triton_row_statistics(z, w, targets, True, False)
        dz = triton_logit_gradient(z, w, found, targets, g, c, out=torch.empty_like(z))
    except Exception as error:  # a compiler or driver that is missing or does not fit: any exception
        return f"{type(error).__name__}: {error}".strip().splitlines()[0]
    expected = TorchRows.statistics(z, w, targets, True, False)
    right = torch.allclose(found.kl, expected.kl, atol=1e-5)  # type: ignore[arg-type]
    right &= torch.allclose(dz, TorchRows.gradient(z, w, expected, targets, g, c, LMHead(z)), atol=1e-5)
    return "" if right else "the kernels gave wrong numbers."


def _to_probabilities(rows: Tensor, normaliser: Tensor, rest: Tensor) -> Tensor:
    count, vocabulary = rows.shape
    size = _block(BLOCK, vocabulary)
    if count:
        with _on(rows):
            _kernels().probabilities_kernel[(count, -(-vocabulary // size))](
                rows, normaliser, rest, rows.stride(0), vocabulary, BLOCK=size, num_warps=WARPS
            )
    return rows


def _normaliser(statistics: RowStatistics, prefix: str) -> tuple[Tensor, Tensor]:
    """A log-normaliser and its rounding error, zero where it is not known."""
    normaliser = getattr(statistics, f"{prefix}log_normaliser").contiguous()
    rest = getattr(statistics, f"{prefix}rest", None)
    return normaliser, torch.zeros_like(normaliser) if rest is None else rest.contiguous()


def _check_rows(policy: Tensor, reference: Tensor | None) -> None:
    for name, rows in (("policy", policy), ("reference", reference)):
        if rows is None:
            continue
        if rows.dtype not in (torch.float32, torch.float64) or rows.dtype != policy.dtype:
            raise ValueError(f"{name} logits are {rows.dtype}; give float32 (or float64 in both).")
        if rows.shape != policy.shape or (rows.shape[1] > 1 and rows.stride(1) != 1):
            raise ValueError(f"{name} logits {tuple(rows.shape)} must be {tuple(policy.shape)}, a row side by side.")


def _block(block: int, vocabulary: int) -> int:
    return min(block, 1 << max(vocabulary - 1, 1).bit_length())


def _on(rows: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(rows.device) if rows.device.type == "cuda" else nullcontext()
