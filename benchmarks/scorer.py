"""Time and peak memory of scoring heads: ours, dense autograd, TRL's plain-DPO head and TRL's kernels composed.

    python benchmarks/scorer.py --memory --output benchmarks/results/scorer_float32

Every variant computes loss and gradients of the same pairs: P pairs of two responses of T tokens, hidden states given.
Variants take turns within each round, so that a noisy machine disturbs all alike; ratios are of medians. ``TRL DPO`` is
the head of TRL's DPOTrainer (with the statistics that it logs) given response positions only; it forms no KL. ``TRL
composed`` adds TRL's full-vocabulary divergence to it: SparsePO made of TRL's kernels. Peak memory is what a fresh
process allocates above the inputs, one process a variant (``--memory``).
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from common import machine, markdown, peak_in_fresh_process, peak_of, spread, take_turns, write_results

from sparsepo.masks.base import TokenMasks
from sparsepo.objectives import get_objective
from sparsepo.scoring import DenseScorer, FusedScorer, LMHead, ScorerInputs
from sparsepo.scoring.skipping import tokens_that_count

TRL_OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")


class Problem:
    """Hidden states, heads, targets and masks of P pairs."""

    def __init__(self, args: argparse.Namespace, device: str = "cpu") -> None:
        g = torch.Generator(device).manual_seed(0)
        dtype = getattr(torch, args.dtype)
        rows, width = 2 * args.pairs, args.tokens

        def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return torch.randn(*shape, generator=g, device=device) * scale

        weight = draw(args.vocabulary, args.hidden, scale=0.02)
        self.weight = weight.to(dtype).requires_grad_()
        self.reference_weight = (weight + draw(args.vocabulary, args.hidden, scale=0.002)).to(dtype)
        hidden = draw(rows, width, args.hidden)
        self.hidden = hidden.to(dtype).requires_grad_()
        self.reference_hidden = (hidden + draw(rows, width, args.hidden, scale=0.1)).to(dtype)
        self.targets = torch.randint(0, args.vocabulary, (rows, width), generator=g, device=device)
        self.response = torch.ones(rows, width, dtype=torch.bool, device=device)
        self.uniform = torch.rand(rows, width, generator=g, device=device)
        self.pairs, self.width = args.pairs, width

    def inputs(self, sparsity: float = 0.0, statistics: bool = False) -> ScorerInputs:
        mask = (self.uniform >= sparsity).float()
        masks = TokenMasks(mask, mask)
        return ScorerInputs(
            self.targets,
            self.response,
            self.hidden,
            LMHead(self.weight),
            self.reference_hidden,
            LMHead(self.reference_weight),
            masks,
            kept=tokens_that_count(masks, self.response, "none", True),
            statistics=statistics,
        )


def ours(problem: Problem, scorer: Any, sparsity: float = 0.0, frozen: bool = False) -> None:
    """SparsePO with the full-vocabulary KL."""
    problem.weight.requires_grad_(not frozen)
    scorer(problem.inputs(sparsity), get_objective("sparsepo"), True).loss.backward()


def trl(problem: Problem, divergence: bool, frozen: bool = False) -> None:
    """TRL's heads for DPO's loss, and with ``divergence`` for TDPO1's."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction  # our own scorers run where TRL is absent
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

    problem.weight.requires_grad_(not frozen)
    size = problem.hidden.shape[-1]
    targets = problem.targets.reshape(-1)

    def logps(hidden: torch.Tensor, weight: torch.Tensor, outputs: tuple[str, ...]) -> torch.Tensor:
        flat = hidden.reshape(-1, size)
        chunk = _CHUNKED_LOGPROB_CHUNK_SIZE
        return _ChunkedLogProbFunction.apply(flat, weight, None, targets, 1.0, chunk, None, 1.0, outputs)[0]

    with torch.no_grad():
        reference = logps(problem.reference_hidden, problem.reference_weight, ("log_probs",))
    score = logps(problem.hidden, problem.weight, TRL_OUTPUTS) - reference
    if divergence:
        score = score + ChunkedDivergenceFunction.apply(
            problem.hidden.reshape(-1, size), problem.weight, None,
            problem.reference_hidden.reshape(-1, size), problem.reference_weight, None, 0.0,
        )[0]  # fmt: skip
    sums = score.view(2 * problem.pairs, problem.width).sum(1)
    (-F.logsigmoid(0.1 * (sums[: problem.pairs] - sums[problem.pairs :])).mean()).backward()


VARIANTS: dict[str, Callable[[Problem], None]] = {
    "dense": lambda p: ours(p, DenseScorer()),
    "TRL DPO (no KL)": lambda p: trl(p, divergence=False),
    "TRL composed (with KL)": lambda p: trl(p, divergence=True),
    "fused": lambda p: ours(p, FusedScorer()),
    "fused, 160 MiB": lambda p: ours(p, FusedScorer(160)),
    "fused, 50 % zeros": lambda p: ours(p, FusedScorer(), 0.5),
    "fused, 80 % zeros": lambda p: ours(p, FusedScorer(), 0.8),
    "fused, 90 % zeros": lambda p: ours(p, FusedScorer(), 0.9),
    "dense, 80 % zeros": lambda p: ours(p, DenseScorer(), 0.8),
    "frozen head: TRL DPO": lambda p: trl(p, divergence=False, frozen=True),
    "frozen head: dense": lambda p: ours(p, DenseScorer(), frozen=True),
    "frozen head: fused": lambda p: ours(p, FusedScorer(), frozen=True),
}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown with ratio columns."""
    header = ["variant", "seconds (median)", "spread", "÷ dense", "÷ TRL DPO", "÷ TRL composed", "peak extra MiB"]
    base = {row["variant"]: row["median"] for row in rows}
    lines = []
    for row in rows:
        ratios = [row["median"] / base[name] for name in ("dense", "TRL DPO (no KL)", "TRL composed (with KL)")]
        memory = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        cells = [row["variant"], f"{row['median']:.2f}", spread(row["seconds"])]
        lines.append([*cells, *(f"{value:.2f}" for value in ratios), memory])
    return markdown(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help="also measure peak memory, a process a variant")
    parser.add_argument("--output", help="write OUTPUT.md and OUTPUT.json")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    problem = Problem(args)
    if args.only:
        print(peak_of(lambda: VARIANTS[args.only](problem)))
        return

    def forget() -> None:
        problem.weight.grad = problem.hidden.grad = None

    turns = {name: functools.partial(run, problem) for name, run in VARIANTS.items()}
    seconds = take_turns(turns, args.rounds, prepare=forget)
    arguments = [a for a in sys.argv[1:] if a != "--memory"]
    rows = [
        {
            "variant": name,
            "median": statistics.median(times),
            "seconds": times,
            "peak_mib": peak_in_fresh_process(__file__, arguments, name) if args.memory else None,
        }
        for name, times in seconds.items()
    ]
    title = (
        f"{args.pairs} pairs × 2 × {args.tokens} tokens, H {args.hidden}, V {args.vocabulary}, {args.dtype}, "
        f"{machine()}"
    )
    text = f"{title}\n\n{table(rows)}"
    print(text)
    if args.output:
        command = f"`python benchmarks/scorer.py {' '.join(sys.argv[1:])}`"
        write_results(args.output, f"{command}\n\n{text}", {"setting": title, "rows": rows})


if __name__ == "__main__":
    main()
