"""Telling a mask that has failed from one that works, from sums that a training run collects anyway.

:class:`MaskHealth` is given one :class:`Reading` a log interval and says which failures have appeared or gone, each with
a sentence that names what was seen, since when, and which setting to change. It knows neither trainer nor files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .health_types import PROCESSES, Finding, HealthLimits, HealthProfile, Reading
from .moments import GROUPINGS, MaskSums
from .stability import Stability

_AT_ONCE = ("disagreement", "non_finite")  # certain when seen once


@dataclass
class _Watch:
    """How often in a row a failure was seen (positive) or not seen (negative)."""

    run: int = 0
    since: int = 0
    finding: Finding | None = None


class MaskHealth:
    """Findings of a run, from its readings.

    Args:
        profile: what the run asks of its masks.
        limits: where failures begin.
    """

    def __init__(self, profile: HealthProfile, limits: HealthLimits | None = None) -> None:
        self.profile = profile
        self.limits = limits or HealthLimits()
        self.reset()

    def reset(self) -> None:
        """Forget everything: a new run begins."""
        self.history: list[dict[str, Any]] = []  # what appeared and cleared, in order
        self._watches: dict[str, _Watch] = {}
        self._windows: dict[str, MaskSums] = {}
        self.start: dict[str, tuple[float, float]] = {}  # mask → mean mask, and mean of the kept ones, at the start
        self._moved = False  # whether the policy has left the reference

    @property
    def findings(self) -> list[Finding]:
        """Failures that are being seen now."""
        return [watch.finding for watch in self._watches.values() if watch.finding is not None]

    def flags(self) -> dict[str, float]:
        """Each signature looked for → 1 while it is being seen, else 0."""
        seen = {finding.name for finding in self.findings}
        return {name: float(name in seen) for name in self.profile.signatures}

    def effective_beta(self, sums: MaskSums) -> float:
        """β × mean reward mask."""
        return self.profile.beta * sums.mean

    # ---- readings ----

    def read(self, reading: Reading) -> list[dict[str, Any]]:
        """Take in a log interval. Returns what appeared or cleared with it."""
        before = len(self.history)
        moved_before, self._moved = self._moved, self._moved or reading.log_ratio > 0
        for mask, sums in reading.sums.items():
            self._read_mask(reading, mask, sums, moved_before)
        if "disagreement" in self.profile.signatures:
            self._note("disagreement", PROCESSES, reading.step, self._disagreement(reading))
        return self.history[before:]

    def read_stability(self, step: int, since: int, found: Mapping[str, Stability]) -> list[dict[str, Any]]:
        """Take in a comparison of held-out masks between the evaluations at ``since`` and at ``step``."""
        before = len(self.history)
        if "flicker" in self.profile.signatures:
            for mask, stability in found.items():
                self._note("flicker", mask, step, self._flicker(mask, since, step, stability))
        return self.history[before:]

    def _read_mask(self, reading: Reading, mask: str, sums: MaskSums, moved_before: bool) -> None:
        if sums.tokens == 0:
            return
        self.start.setdefault(mask, (sums.mean, sums.kept_mean))
        checks = {
            "non_finite": self._non_finite(mask, sums),
            "collapse": self._collapse(mask, sums),
            "no_gradient": self._no_gradient(reading, mask, sums, moved_before),
            "no_sparsity": self._no_sparsity(reading, mask, sums),
            "drift": self._drift(mask, sums),
            "saturated": self._saturated(reading, mask, sums),
            "position": self._position(reading, mask, sums),
        }
        for name, seen in checks.items():
            if name in self.profile.signatures:
                self._note(name, mask, reading.step, seen)

    def _note(self, name: str, mask: str, step: int, seen: str | bool | None) -> None:
        """Count a sighting (a sentence), its absence (False), or that nothing can be said (None)."""
        if seen is None:
            return
        watch = self._watches.setdefault(f"{name}/{mask}", _Watch())
        patience = 1 if name in _AT_ONCE else self.limits.patience
        if isinstance(seen, str):
            if watch.run <= 0:
                watch.run = 0
                watch.since = watch.finding.since if watch.finding is not None else step
            watch.run += 1
            if watch.run >= patience and watch.finding is None:
                message = f"{seen} (since step {watch.since}). {self.profile.advice.on(name, mask)}"
                watch.finding = Finding(name, mask, watch.since, message)
                self.history.append({"event": "appeared", "step": step, **asdict(watch.finding)})
        else:
            watch.run = min(watch.run, 0) - 1
            if watch.run <= -self.limits.patience_to_clear and watch.finding is not None:
                self.history.append({"event": "cleared", "step": step, **asdict(watch.finding)})
                watch.finding = None

    # ---- signatures: a sentence where seen, False where not, None where nothing can be said ----

    def _name(self, mask: str) -> str:
        return self.profile.masks[mask]

    def _non_finite(self, mask: str, sums: MaskSums) -> str | bool:
        share = sums.share("non_finite")
        return f"{_percent(share)} of the values of {self._name(mask)} are not finite" if share > 0 else False

    def _collapse(self, mask: str, sums: MaskSums) -> str | bool:
        zeros, dead = sums.share("zeros"), sums.share("dead")
        bound = max(self.limits.collapsed_zeros, (1 + (self.profile.target.get(mask) or 0)) / 2)
        # a long response may well have few given weights: only trained masks are judged by their zeros alone
        by_zeros = zeros >= bound and "no_gradient" in self.profile.signatures
        if not by_zeros and dead < self.limits.collapsed_responses:
            return False
        return (
            f"{self._name(mask)} has collapsed: {_percent(zeros)} of its values are zero, and {_percent(dead)} of the "
            "responses keep no token"
        )

    def _no_gradient(self, reading: Reading, mask: str, sums: MaskSums, moved_before: bool) -> str | bool | None:
        # where policy and reference agree the gradient is zero by nature, and a held mask needs none
        if reading.held or not moved_before or mask not in reading.gradient:
            return None
        if reading.gradient[mask] != 0:
            return False
        return (
            f"the gradient of the head of {self._name(mask)} is exactly zero although the policy has left the reference "
            f"(|log-ratio| up to {reading.log_ratio:.2g}; {_percent(sums.share('zeros'))} of the masks are zero): it no "
            "longer trains"
        )

    def _no_sparsity(self, reading: Reading, mask: str, sums: MaskSums) -> str | bool | None:
        if not self.profile.asks_sparsity(mask):
            return None
        if self._done(reading) < self.limits.sparsity_after:
            return None
        zeros, target = sums.share("zeros"), self.profile.target.get(mask)
        if zeros >= (self.limits.target_share * target if target else self.limits.least_sparsity):
            return False
        wish = f"a target of {_percent(target)}" if target else f"an L1 weight of {self.profile.l1[mask]:g}"
        return f"only {_percent(zeros)} of {self._name(mask)} is zero although {wish} asks for zeros"

    def _drift(self, mask: str, sums: MaskSums) -> str | bool | None:
        mean, kept = self.start[mask]
        if mean <= 0:
            return None
        low = (sums.mean / mean, sums.kept_mean / kept)[self.profile.asks_sparsity(mask)]
        if 1 / self.limits.drift <= low and sums.mean / mean <= self.limits.drift:
            return False
        if sums.mean == 0:
            return None  # collapse says it
        what = "the effective β (β × mean mask)" if mask == "reward" else "β × mean KL mask"
        beta = self.profile.beta
        return f"{what} went from {beta * mean:.3g} to {beta * sums.mean:.3g}, ×{sums.mean / mean:.2g}"

    def _done(self, reading: Reading) -> float:
        """Share of the training that is behind, without the steps in which the mask is not expected to change."""
        free = self.profile.free_steps(reading.max_steps)
        return (reading.step - free) / max(1, reading.max_steps - free)

    def _saturated(self, reading: Reading, mask: str, sums: MaskSums) -> str | bool | None:
        if reading.held or sums.mean <= 0 or sums.tokens < 2 or self._done(reading) < self.limits.saturated_after:
            return None
        at_limit, spread = sums.share("at_limit"), sums.variance**0.5 / sums.mean
        if at_limit >= self.limits.at_limit:
            return f"{_percent(at_limit)} of {self._name(mask)} is at the gate's upper limit, {self.profile.limit:g}"
        if spread <= self.limits.no_spread:
            return f"{self._name(mask)} is the same for every token ({sums.mean:.3g} ± {spread * sums.mean:.1g})"
        return False

    def _position(self, reading: Reading, mask: str, sums: MaskSums) -> str | bool | None:
        window = self._windows[mask] + sums if mask in self._windows else sums
        self._windows[mask] = window
        if window.tokens < self.limits.least_tokens:
            return None
        del self._windows[mask]
        if window.mean <= 0 or window.variance**0.5 < self.limits.least_spread * window.mean:
            return False
        found = window.explained()
        name = max(GROUPINGS, key=lambda group: (found[group], group == "length"))
        if found[name] < self.limits.explained:
            if found["response"] < self.limits.explained:
                return False
            return f"{_percent(found['response'])} of the variance of {self._name(mask)} lies between responses, not tokens"
        return (
            f"{_percent(found[name])} of the variance of {self._name(mask)} over {window.tokens:.0f} tokens is explained by "
            f"{GROUPINGS[name]}, whatever the words"
        )

    def _disagreement(self, reading: Reading) -> str | bool:
        if not reading.differing:
            return False
        which = ", ".join(str(process) for process in reading.differing)
        return f"the mask heads of the processes differ: those of {which} are not that of process 0"

    def _flicker(self, mask: str, since: int, step: int, found: Stability) -> str | bool | None:
        correlation, overlap = found.rank_correlation, found.kept_overlap
        if correlation is None and overlap is None:
            return None
        by_order = correlation is not None and correlation < self.limits.rank_correlation
        by_zeros = overlap is not None and overlap < self.limits.kept_overlap
        if not by_order and not by_zeros:
            return False
        numbers = [] if correlation is None else [f"rank correlation {correlation:.2f}"]
        numbers += [] if overlap is None else [f"overlap of the kept tokens beyond chance {overlap:.2f}"]
        return (
            f"{self._name(mask)} of the same {found.tokens} held-out tokens changed between the evaluations at steps "
            f"{since} and {step} ({', '.join(numbers)})"
        )

    # ---- resuming ----

    def state(self) -> dict[str, Any]:
        """All that a resumed run must know, JSON types only."""
        return {
            "history": self.history,
            "watches": {name: asdict(watch) for name, watch in self._watches.items()},
            "windows": {name: sums.vector.tolist() for name, sums in self._windows.items()},
            "start": {name: list(value) for name, value in self.start.items()},
            "moved": self._moved,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state`."""
        self.history = list(state["history"])
        self._watches = {
            name: _Watch(watch["run"], watch["since"], Finding(**watch["finding"]) if watch["finding"] else None)
            for name, watch in state["watches"].items()
        }
        vectors = {name: torch.tensor(value, dtype=torch.float64) for name, value in state["windows"].items()}
        self._windows = {name: MaskSums(vector) for name, vector in vectors.items()}
        self.start = {name: (value[0], value[1]) for name, value in state["start"].items()}
        self._moved = bool(state["moved"])


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
