"""Time of the arithmetic on rows of logits: torch as it stands, compiled by torch.compile, and Triton.

    python benchmarks/rows.py --output benchmarks/results/rows

Each backend turns rows of logits of policy and reference into statistics and then into the gradient of the policy's
logits, block by block as the scorer does (a block stays in a CPU's cache; on CUDA it is all rows). Logits are written
anew, untimed, before every call. Backends take turns within each round.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from common import markdown, ratio, spread, take_turns, write_results
from machines import machine_with_what_is_there
from torch import Tensor

from sparsepo.scoring import LMHead, fused
from sparsepo.scoring.rows import RowStatistics, TorchRows, joined
from sparsepo.scoring.triton_rows import (
    TritonRows,
    triton_is_available,
    triton_is_interpreted,
    triton_row_statistics,
)

SHAPES = ((1024, 4), (4096, 8), (4096, 16))  # of Triton's programs, beside the default


def _values(z: Tensor, w: Tensor | None, y: Tensor, need_kl: bool, statistics: bool) -> dict[str, Tensor]:
    """The formulas of ``sparsepo.scoring.rows``, out of place: the compiler fuses them."""
    found: dict[str, Tensor] = {}
    peak = z.amax(-1, keepdim=True)
    low = z - peak
    log_sum = low.exp().sum(-1, keepdim=True).log()
    found["logps"] = (low.gather(1, y[:, None]) - log_sum).squeeze(1)
    found["log_normaliser"] = (peak + log_sum).squeeze(1)
    if w is not None:
        ref_peak = w.amax(-1, keepdim=True)
        ref_low = w - ref_peak
        ref_log_sum = ref_low.exp().sum(-1, keepdim=True).log()
        found["ref_logps"] = (ref_low.gather(1, y[:, None]) - ref_log_sum).squeeze(1)
        found["ref_log_normaliser"] = (ref_peak + ref_log_sum).squeeze(1)
        if need_kl:
            cross = ((ref_low - ref_log_sum).exp() * (ref_low - low)).sum(-1)
            found["kl"] = cross - (ref_log_sum - log_sum).squeeze(1)
    if statistics:
        found["mean_logits"] = z.mean(-1)
        found["is_top1"] = (z.argmax(-1) == y).to(z.dtype)
        logs = low - log_sum
        found["entropy"] = -(logs.exp() * logs).sum(-1)
    return found


def _gradient(z: Tensor, w: Tensor | None, normalisers: tuple[Tensor, Tensor | None], y: Tensor, g: Tensor, c: Tensor,
              scale: float, softcap: float | None) -> None:  # fmt: skip
    """Written over ``z``."""
    p = (z - normalisers[0][:, None]).exp()
    hit = torch.arange(z.shape[1], device=z.device)[None] == y[:, None]
    dz = g[:, None] * (hit.to(z.dtype) - p)
    if w is not None and normalisers[1] is not None:
        dz = dz + c[:, None] * (p - (w - normalisers[1][:, None]).exp())
    if softcap is not None:
        dz = dz * (1 - (z / softcap) ** 2).clamp(min=0)
    z.copy_(dz * scale)


_compiled_values = torch.compile(_values)
_compiled_gradient = torch.compile(_gradient)


class CompiledRows(TorchRows):
    """The same arithmetic through torch.compile; like Triton's it leaves logits in the buffers between its calls."""

    @staticmethod
    def statistics(
        policy: Tensor, reference: Tensor | None, targets: Tensor, need_kl: bool, statistics: bool
    ) -> RowStatistics:
        size = TorchRows.block(policy)
        parts = []
        for first in range(0, max(len(targets), 1), size):
            rows = slice(first, first + size)
            w = None if reference is None else reference[rows]
            parts.append(RowStatistics(**_compiled_values(policy[rows], w, targets[rows], need_kl, statistics)))
        return joined(parts)

    @staticmethod
    def gradient(policy: Tensor, reference: Tensor | None, statistics: RowStatistics, targets: Tensor,
                 g: Tensor, c: Tensor, head: LMHead) -> Tensor:  # fmt: skip
        size = TorchRows.block(policy)
        for first in range(0, len(targets), size):
            rows = slice(first, first + size)
            w, ref = None, None
            if reference is not None and statistics.ref_log_normaliser is not None:
                w, ref = reference[rows], statistics.ref_log_normaliser[rows]
            normalisers = (statistics.log_normaliser[rows], ref)
            _compiled_gradient(policy[rows], w, normalisers, targets[rows], g[rows], c[rows], head.scale, head.softcap)
        return policy

    @staticmethod
    def probabilities(policy: Tensor, statistics: RowStatistics) -> Tensor:
        return policy.sub_(statistics.log_normaliser[:, None]).exp_()

    @staticmethod
    def reference_probabilities(reference: Tensor, statistics: RowStatistics) -> Tensor:
        assert statistics.ref_log_normaliser is not None
        return reference.sub_(statistics.ref_log_normaliser[:, None]).exp_()


def row_backends(device: str) -> dict[str, Any]:
    """Backends that run on a device, by name."""
    found: dict[str, Any] = {"torch": TorchRows, "compiled": CompiledRows}
    if triton_is_available() and (device.startswith("cuda") or triton_is_interpreted()):
        found["triton"] = TritonRows
    return found


def backends_in_models(device: str) -> dict[str, Any]:
    """Those that heads and whole steps are timed with: compiling for every shape takes longer than all of their steps."""
    return {name: backend for name, backend in row_backends(device).items() if name != "compiled"}


def shaped(block: int, warps: int) -> Any:
    """Triton's rows with programs of another shape."""

    class Shaped(TritonRows):
        statistics = staticmethod(functools.partial(triton_row_statistics, block=block, warps=warps))

    return Shaped


@contextmanager
def use_rows(backend: Any) -> Iterator[None]:
    """Let the fused scorer use a backend, whatever the device and the environment say."""
    with patch.object(fused, "row_backend", lambda device: backend):
        yield


def measure(args: argparse.Namespace, count: int, vocabulary: int) -> list[list[str]]:
    """A row of the table for each backend, over the same logits."""
    g = torch.Generator(args.device).manual_seed(0)
    logits = [torch.randn(count, vocabulary, generator=g, device=args.device) * 3 for _ in range(2)]
    logits[1] = logits[0] + 0.1 * logits[1]
    buffers = [torch.empty_like(rows) for rows in logits]
    targets = torch.randint(0, vocabulary, (count,), generator=g, device=args.device)
    g_t, c_t = torch.randn(2, count, generator=g, device=args.device)
    head = LMHead(torch.zeros(1, 1, device=args.device))

    def fill() -> None:
        for buffer, source in zip(buffers, logits, strict=True):
            buffer.copy_(source)

    repeats = 20 if args.device.startswith("cuda") else 1  # launches then overlap with work, as they do in training

    def both(backend: Any) -> None:
        size = backend.block(buffers[0])
        for first in [*range(0, count, size)] * repeats:
            rows = slice(first, first + size)
            z, w = buffers[0][rows], buffers[1][rows]
            found = backend.statistics(z, w, targets[rows], True, False)
            backend.gradient(z, w, found, targets[rows], g_t[rows], c_t[rows], head)

    backends = row_backends(args.device)
    if args.device.startswith("cuda") and "triton" in backends:
        backends |= {f"triton, statistics {b} × {w} warps": shaped(b, w) for b, w in SHAPES}
    runs = {name: (lambda backend=backend: both(backend)) for name, backend in backends.items()}
    seconds = take_turns(runs, args.rounds, args.device, warmups=2, prepare=fill)
    per_logits = 1e8 / (count * vocabulary * repeats) * 1e3
    lines = []
    for name, times in seconds.items():
        scaled = [t * per_logits for t in times]
        lines.append([f"{name}, {count} rows, V {vocabulary}", f"{statistics.median(scaled):.2f}", spread(scaled),
                      ratio(times, seconds["torch"])])  # fmt: skip
    return lines


def report(args: argparse.Namespace) -> str:
    """The table for all vocabularies."""
    lines = [line for size in args.vocabularies for count in args.rows for line in measure(args, count, size)]
    header = ["backend", "ms per 10⁸ logits of each model (median)", "spread", "÷ torch"]
    left_out = "" if "triton" in row_backends(args.device) else "\n\nLeft out: triton (needs CUDA and triton)."
    where = machine_with_what_is_there(args.device)
    return f"Statistics with KL, then gradient, {where}{left_out}\n\n{markdown(header, lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[50257])
    parser.add_argument("--rows", type=int, nargs="+", default=[400])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", help="write OUTPUT.md and OUTPUT.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = report(args)
    print(text)
    if args.output:
        command = f"`python benchmarks/rows.py {' '.join(sys.argv[1:])}`"
        write_results(args.output, f"{command}\n\n{text}", {"setting": vars(args), "table": text})


if __name__ == "__main__":
    main()
