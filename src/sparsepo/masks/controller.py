"""The sparsity controller: moves a head's offset (and scale) so that a requested share of response tokens is exactly zero.

Why not a penalty or an integral law: from a start at ones a head's numbers lie close together around 1, so how far a
threshold must move depends on the model, the data and the step, and a law with a fixed gain is too slow here and unstable
there. The share of zeros at a threshold is known, though: it is the distribution function of the head's numbers. So the
controller tracks the quantile itself, under the weights that each step leaves behind. It needs no gain, and it cannot
close every token.

A threshold near the upper end of a narrow distribution would leave masks that are tiny, and with them β. For gates that
are not of mean 1 by themselves the head's numbers are therefore rescaled, so that the tokens that are kept have x = 1 on
average, as at the start from ones.

Offset and scale are buffers of the head: what acts in evaluation, and after loading, is what was trained.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .gates import Gate
from .head import MaskHead

SAMPLE_TOKENS = 512  # response tokens that a controller looks at in a step, of all processes together
MEMORY_TOKENS = 1024  # about as many of them as the running estimates remember …
MEMORY_STEPS = 10  # … but not more steps than this, however small the batches: the head moves on
_TIES = 0.05  # overshoot from which on equal numbers may stay open instead
_LEAST_SPREAD = 1e-3  # of the kept tokens above the threshold, relative to it: bounds the scale


@dataclass(frozen=True)
class SparsityController:
    """Moves one head's buffers to a target.

    Args:
        target: share of response tokens with mask exactly zero in evaluation, in (0, 1).
        closes_at: the gate's: x at or below which the mask is zero.
        rescales: whether kept tokens are brought to x = 1 on average (no need where the gate has mean 1).
    """

    target: float
    closes_at: float
    rescales: bool

    @classmethod
    def for_gate(cls, gate: Gate, target: float) -> SparsityController:
        """The controller that suits a gate. Raises ``ValueError`` where no offset can set the gate's sparsity."""
        if gate.closes_at is None:
            mend = {
                "sigmoid": "it has no exact zeros; choose another gate",
                "topk": "it keeps mask_topk_share of every response; set that to 1 − the sparsity",
            }.get(gate.name, "it shifts its own threshold; set its sparsity by mask_gate_temperature")
            raise ValueError(f"A target sparsity has no effect with mask_gate={gate.name!r}: {mend}.")
        return cls(target, gate.closes_at, not gate.mean_one)

    def update(self, head: MaskHead, before: Tensor, after: Tensor, progress: float) -> float:
        """Follow one optimiser step: bring the head's offset and scale to where its new weights need them.

        The same tokens under the old and the new weights tell how far the step has moved the distribution; that much the
        threshold moves with it at once. What is left, the estimate's error, is averaged over steps.

        Args:
            head: its buffers are changed in place.
            before: mixed values Σ_l v_l a_l of a sample of the step's response tokens (of all micro-batches and
                processes) under the weights before the step, in any order, (N,).
            after: of the same tokens under the weights after it, (N,).
            progress: how much of the warm-up has passed, [0, 1]: the share asked for rises linearly from the start's.

        Returns:
            The share of zeros asked for at this step.
        """
        offset, scale, start = (float(buffer) for buffer in (head.offset, head.scale, head.start_sparsity))
        old, new = (values.detach().cpu().double().sort().values for values in (before, after))
        if len(new) == 0:
            return max(start, 0.0)
        threshold = offset + self.closes_at / scale  # mixed values at or below it are shut
        is_first = start < 0
        if is_first:
            head.start_sparsity.fill_(float((old <= threshold).double().mean()))
            start = float(head.start_sparsity)
        wanted = start + (self.target - start) * min(max(progress, 0.0), 1.0)
        left = 0.0 if is_first else 1 - min(max(len(new) / MEMORY_TOKENS, 1 / MEMORY_STEPS), 1.0)
        (was, was_spread), (now, spread) = (threshold_for(values, wanted) for values in (old, new))
        threshold = now + left * (threshold - was)
        if self.rescales and spread is not None:
            error = 1.0 if was_spread is None else (1 - self.closes_at) / scale / was_spread
            scale = (1 - self.closes_at) / (spread * error**left)
        head.scale.fill_(scale)
        head.offset.fill_(threshold - self.closes_at / scale)
        return wanted


def threshold_for(ordered: Tensor, share: float) -> tuple[float, float | None]:
    """The threshold that closes a share of the numbers, and the mean distance of those above it.

    Args:
        ordered: numbers in ascending order, float64, (N,), N ≥ 1.
        share: share that should lie at or below the threshold, [0, 1).

    Returns:
        the threshold, between two neighbouring numbers; where many are equal, on the side that comes nearer to the share,
        and never above all where the largest are equal.
        And the mean of (number − threshold) over the numbers above, bounded from below; None where
        none is above.
    """
    count = len(ordered)
    place = min(max(share * count - 0.5, 0.0), count - 1.0)
    low = int(place)
    high = min(low + 1, count - 1)
    threshold = float(ordered[low] + (place - low) * (ordered[high] - ordered[low]))
    closed, shut_below = float((ordered <= threshold).double().mean()), float((ordered < threshold).double().mean())
    tied = closed - shut_below > 1 / count
    too_many = closed > share + max(_TIES, 1 / count) and (closed == 1 or share - shut_below < closed - share)
    if too_many or (tied and closed == 1):
        below = ordered[ordered < threshold]
        # under the tied numbers: in the middle of the gap to the next ones, or (there are none) a little lower
        next_lower = float(below[-1]) if len(below) else threshold - 2 * _LEAST_SPREAD * max(abs(threshold), 1.0)
        threshold = (threshold + next_lower) / 2
    elif tied:
        # above the tied numbers, not on them: a threshold that is approached from below would never close them
        threshold = (threshold + float(ordered[ordered > threshold][0])) / 2
    above = ordered[ordered > threshold]
    if len(above) == 0:
        return threshold, None
    return threshold, max(float((above - threshold).mean()), _LEAST_SPREAD * max(abs(threshold), 1.0))
