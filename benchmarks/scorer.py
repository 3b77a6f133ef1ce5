"""Time and peak memory of scoring heads: ours, dense autograd, TRL's plain-DPO head and TRL's kernels composed.

    python benchmarks/scorer.py --memory --output benchmarks/results/scorer_float32

Every variant computes loss and gradients of the same pairs: P pairs of two responses of T tokens, hidden states given.
Variants take turns within each round, so that a noisy machine disturbs all alike; ratios are of medians. ``TRL DPO`` is
the head of TRL's DPOTrainer (with the statistics that it logs) given response positions only; it forms no KL. ``TRL
composed`` adds TRL's full-vocabulary divergence to it: SparsePO made of TRL's kernels. Peak memory is what torch allocates
above the inputs during the call, gradients included (``--memory``).
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
from common import Results, add_run_options, clock_note, machine, markdown, peak_allocated, ratio, spread, take_turns

from sparsepo.masks.base import NoiseKey, TokenMasks
from sparsepo.objectives import get_objective
from sparsepo.scoring import CachedReference, DenseScorer, FusedScorer, LMHead, ScorerInputs
from sparsepo.scoring.skipping import anchor_sample, tokens_that_count

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
        self._cached: CachedReference | None = None

    def inputs(
        self, sparsity: float = 0.0, statistics: bool = False, anchor_share: float | None = None
    ) -> ScorerInputs:
        mask = (self.uniform >= sparsity).float()
        masks = TokenMasks(mask, mask)
        kept, weight = tokens_that_count(masks, self.response, "none", True), None
        if anchor_share is not None:
            assert kept is not None
            rows = torch.arange(2 * self.pairs, device=mask.device)
            columns = torch.arange(self.width, device=mask.device).expand(len(rows), self.width)
            kept, weight = anchor_sample(kept, self.response, NoiseKey(0, 0, rows, columns), anchor_share)
        return ScorerInputs(
            self.targets,
            self.response,
            self.hidden,
            LMHead(self.weight),
            self.reference_hidden,
            LMHead(self.reference_weight),
            masks,
            kept=kept,
            statistics=statistics,
            anchor_weight=weight,
        )

    def cached(self) -> CachedReference:
        """The reference as a cache gives it, for a frozen head that policy and reference share (made once)."""
        if self._cached is None:
            head, size = LMHead(self.weight.detach()), self.reference_hidden.shape[-1]
            with torch.no_grad():
                parts = []
                for hidden, targets in zip(self.reference_hidden, self.targets, strict=True):
                    logps = head.logits(hidden)
                    normaliser = logps.logsumexp(-1)
                    logps -= normaliser[:, None]
                    expected = logps.exp() @ head.weight.float()
                    parts.append((logps.gather(-1, targets[:, None])[:, 0], normaliser, expected))
            logs, normalisers, expected = (torch.stack(part) for part in zip(*parts, strict=True))
            assert expected.shape[-1] == size
            self._cached = CachedReference(logs, normalisers, self.reference_hidden.float(), expected)
        return self._cached


def ours(
    problem: Problem,
    scorer: Any,
    sparsity: float = 0.0,
    frozen: bool = False,
    anchor_share: float | None = None,
    cached: bool = False,
) -> None:
    """SparsePO with the full-vocabulary KL; ``anchor_share``: and a KL anchor."""
    problem.weight.requires_grad_(not frozen)
    inputs = problem.inputs(sparsity, anchor_share=anchor_share)
    if cached:
        inputs.cached, inputs.reference_hidden, inputs.reference_head = problem.cached(), None, None
    anchor = 0.0 if anchor_share is None else 0.1
    scorer(inputs, get_objective("sparsepo", kl_anchor=anchor), True).loss.backward()


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
    "fused, 88 MiB": lambda p: ours(p, FusedScorer(88)),
    "fused, 50 % zeros": lambda p: ours(p, FusedScorer(), 0.5),
    "fused, 80 % zeros": lambda p: ours(p, FusedScorer(), 0.8),
    "fused, 90 % zeros": lambda p: ours(p, FusedScorer(), 0.9),
    "fused, anchor": lambda p: ours(p, FusedScorer(), anchor_share=1.0),
    "fused, 80 % zeros, anchor": lambda p: ours(p, FusedScorer(), 0.8, anchor_share=0.25),
    "fused, 90 % zeros, anchor": lambda p: ours(p, FusedScorer(), 0.9, anchor_share=0.25),
    "dense, 80 % zeros": lambda p: ours(p, DenseScorer(), 0.8),
    "frozen head: TRL DPO (no KL)": lambda p: trl(p, divergence=False, frozen=True),
    "frozen head: dense": lambda p: ours(p, DenseScorer(), frozen=True),
    "frozen head: fused": lambda p: ours(p, FusedScorer(), frozen=True),
    "frozen head: fused, 52 MiB": lambda p: ours(p, FusedScorer(52), frozen=True),
    "frozen head: cached reference": lambda p: ours(p, FusedScorer(), frozen=True, cached=True),
    "frozen head: cached reference, anchor": lambda p: ours(
        p, FusedScorer(), frozen=True, anchor_share=1.0, cached=True
    ),
}

FROZEN = "frozen head: "
BASES = ("dense", "TRL DPO (no KL)", "TRL composed (with KL)")
# what a variant with zeros is compared with beside the others
OWN = {name: name.split(",")[0] for name in VARIANTS if "zeros" in name and "anchor" not in name}
OWN |= {name: "fused, anchor" for name in VARIANTS if "zeros, anchor" in name}


def table(result: dict[str, Any]) -> str:
    """Markdown of one length, with ratio columns."""
    rows = result["rows"]
    header = ["variant", "seconds (median)", "spread", "÷ dense", "÷ TRL DPO", "÷ TRL composed", "÷ own at 0 % zeros"]
    seconds = {row["variant"]: row["seconds"] for row in rows}
    peaks = {row["variant"]: row["peak_mib"] for row in rows}
    lines = []
    for row in rows:
        name, peak, frozen = row["variant"], row["peak_mib"], row["variant"].startswith(FROZEN)
        bases = [f"{FROZEN if frozen else ''}{base}" for base in BASES]
        own = OWN.get(name)
        ratios = [ratio(row["seconds"], seconds[base]) if base in seconds else "" for base in (*bases, own)]
        dense = peaks.get(bases[0])
        memory = ["" if peak is None else f"{peak:.0f}", "" if not peak or not dense else f"{peak / dense:.2f}"]
        lines.append([name, f"{row['median']:.2f}", spread(row["seconds"]), *ratios, *memory])
    title = f"## {result['pairs']} pairs × 2 × {result['tokens']} response tokens, {result['rounds']} rounds"
    return f"{title}\n\n{markdown([*header, 'peak extra MiB', 'peak ÷ dense'], lines)}"


def measure(args: argparse.Namespace, tokens: int, runs: dict[str, Callable[[Problem], None]]) -> list[dict[str, Any]]:
    """Seconds and peaks of some runs on one problem."""
    problem = Problem(argparse.Namespace(**{**vars(args), "tokens": tokens}))

    def forget() -> None:
        problem.weight.grad = problem.hidden.grad = None

    turns = {name: functools.partial(run, problem) for name, run in runs.items()}
    seconds = take_turns(turns, args.rounds, prepare=forget, clock=args.clock)
    peaks: dict[str, float] = {}
    for name, run in turns.items() if args.memory else ():
        forget()
        peaks[name] = peak_allocated(run)
    return [
        {"variant": name, "median": statistics.median(times), "seconds": times, "peak_mib": peaks.get(name)}
        for name, times in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=[192], help="response tokens, a table each")
    add_run_options(parser)
    parser.add_argument("--filter", help="only the variants whose names contain this")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    setting = f"H {args.hidden}, V {args.vocabulary}, {args.dtype}, {machine()}{clock_note(args.clock)}"
    results = Results(args.output, setting, f"python benchmarks/scorer.py {' '.join(sys.argv[1:])}", table, args.fresh)
    for tokens in args.tokens:
        key = f"{args.pairs} pairs, {tokens} tokens"
        runs = {name: run for name, run in VARIANTS.items() if (args.filter or "") in name}
        if not results.holds(key, args.rounds, list(runs)):
            found = {"pairs": args.pairs, "tokens": tokens, "rounds": args.rounds}
            results.add(key, {**found, "rows": measure(args, tokens, runs)})
    print(results.text())


if __name__ == "__main__":
    main()
