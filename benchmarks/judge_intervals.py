"""Do the intervals and the test of `sparsepo judge` keep their word? Simulated judges whose true rates are known.

    python benchmarks/judge_intervals.py --trials 1000

A judge prefers the candidate with probability σ(θ + φ · tanh(Δ / 100)), the candidate 60 characters longer on average: its
rate at equal length is σ(θ). Printed are the shares of trials whose 95 % interval holds the truth, and the share of sign
tests of a fair coin with p < 0.05.
"""

from __future__ import annotations

import argparse

import numpy as np

from sparsepo.evaluation.judge.statistics import Clusters, length_controlled, mean_with_interval, sign_test

THETA, PHI, LONGER, SPREAD = 0.5, 1.0, 60.0, 100.0


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def chances(lengths):
    """Of a win, by the difference of the lengths."""
    return sigmoid(THETA + PHI * np.tanh(lengths / SPREAD))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--prompts", type=int, nargs="+", default=[50, 200, 500])
    args = parser.parse_args()
    true_rate = float(chances(np.random.default_rng(0).normal(LONGER, SPREAD, 1_000_000)).mean())
    print(f"true win rate {true_rate:.3f}, at equal length {sigmoid(THETA):.3f}, {args.trials} trials")
    print("| prompts | win rate | at equal length | sign test, p < 0.05 |\n|---|---|---|---|")
    for prompts in args.prompts:
        generator, clusters = np.random.default_rng(prompts), Clusters([str(i) for i in range(prompts)])
        held = np.zeros(3)
        for trial in range(args.trials):
            lengths = generator.normal(LONGER, SPREAD, prompts).round()
            scores = (generator.uniform(size=prompts) < chances(lengths)).astype(float)
            rate = mean_with_interval(scores, clusters, 1000, trial)
            controlled = length_controlled(scores, lengths, clusters, 400, trial)
            coin = (generator.uniform(size=prompts) < 0.5).astype(float)
            held += (
                rate["low"] <= true_rate <= rate["high"],
                controlled["low"] <= sigmoid(THETA) <= controlled["high"],
                sign_test(coin, clusters)["p"] < 0.05,
            )
        cells = " | ".join(f"{100 * share:.1f} %" for share in held / args.trials)
        print(f"| {prompts} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
