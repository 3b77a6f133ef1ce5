"""pass@k (Chen et al. 2021, Evaluating Large Language Models Trained on Code, equation 1)."""

from __future__ import annotations

from collections.abc import Sequence


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimate, without bias, of the probability that one of k samples passes, from n samples of which c passed.

    1 − C(n − c, k) / C(n, k), as a product of n − (n − c) factors below 1: no large number appears.

    Raises:
        ValueError: not 0 ≤ c ≤ n, or not 1 ≤ k ≤ n.
    """
    if not 0 <= c <= n:
        raise ValueError(f"{c} of {n} samples cannot have passed.")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} samples: k must be at least 1 and at most n.")
    if n - c < k:
        return 1.0
    none_passes = 1.0
    for size in range(n - c + 1, n + 1):
        none_passes *= 1.0 - k / size
    return 1.0 - none_passes


def check_ks(ks: Sequence[int], n: int) -> None:
    """Refuse k that n samples cannot give, before any work.

    Raises:
        ValueError: names the first.
    """
    for k in ks:
        if not 1 <= k <= n:
            raise ValueError(
                f"pass@{k} needs at least {max(k, 1)} samples of each problem, and k at least 1; there are {n}."
            )
