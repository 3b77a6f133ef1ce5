"""What is known of one preference pair, token by token: everything that a page, a table or a plot shows.

A record holds the response tokens that were scored, in order, as the model saw them. What an objective does not read is
None, not zeros: DPO has no masks, SimPO no reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

SIDES = ("chosen", "rejected")
# What a token has, in the order in which it is shown. The last three follow from the others.
QUANTITIES = {
    "reward_mask": "reward mask m_u",
    "kl_mask": "KL mask m_d",
    "log_ratio": "log-ratio log π − log π_ref (nats)",
    "kl": "KL(π_ref ‖ π) (nats)",
    "reward_part": "reward mask × log-ratio (nats)",
    "kl_part": "KL mask × KL (nats)",
    "running": "β × sum of both so far",
}


@dataclass(frozen=True, eq=False)
class SideRecord:
    """The response tokens of one side, n of them.

    Args:
        token_ids: (n,).
        pieces: the text of each token, n strings. Joined they are the response's text as the model saw it (with special
            tokens); bytes that form no character alone are given to the token that completes it.
        reward_mask, kl_mask: m_u and m_d, (n,); None where the objective reads no mask.
        log_ratio: log π − log π_ref, nats, (n,); None without a reference.
        kl: KL(π_ref ‖ π) over the vocabulary, ≥ 0, nats, (n,); None where it was not computed.
        reward: implicit reward of the response as the loss uses it.
    """

    token_ids: Integers
    pieces: tuple[str, ...]
    reward_mask: Floats | None
    kl_mask: Floats | None
    log_ratio: Floats | None
    kl: Floats | None
    reward: float

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def text(self) -> str:
        """The response."""
        return "".join(self.pieces)

    @property
    def reward_part(self) -> Floats | None:
        """What each token adds to the score S through its log-ratio: m_u r (r itself without masks), (n,)."""
        return _product(self.reward_mask, self.log_ratio)

    @property
    def kl_part(self) -> Floats | None:
        """What each token adds to S through its KL, m_d k, (n,); None unless there is a KL mask."""
        return None if self.kl_mask is None else _product(self.kl_mask, self.kl)

    def offsets(self) -> Integers:
        """Where each token stands in :attr:`text`: first character and the one behind the last, (n, 2)."""
        ends = np.cumsum([len(piece) for piece in self.pieces], dtype=np.int64)
        return (
            np.stack([ends - [len(piece) for piece in self.pieces], ends], axis=1)
            if len(ends)
            else np.zeros((0, 2), np.int64)
        )


@dataclass(frozen=True, eq=False)
class PairRecord:
    """One pair.

    Args:
        number: its row in the data, from 0.
        group: what it is counted under: a task, a data set, a model; "" where there is one only.
        prompt: as the model saw it.
        prompt_ids: (m,).
        chosen, rejected: the two sides.
        loss: of this pair.
        beta: β of the objective.
    """

    number: int
    group: str
    prompt: str
    prompt_ids: Integers
    chosen: SideRecord
    rejected: SideRecord
    loss: float
    beta: float
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def margin(self) -> float:
        """Chosen minus rejected implicit reward."""
        return self.chosen.reward - self.rejected.reward

    def sides(self) -> dict[str, SideRecord]:
        """By name, chosen first."""
        return {"chosen": self.chosen, "rejected": self.rejected}

    def values(self, side: str, quantity: str) -> Floats | None:
        """A quantity of :data:`QUANTITIES` of one side's tokens, (n,); None where the record does not have it."""
        own = self.sides()[side]
        if quantity != "running":
            found: Floats | None = getattr(own, quantity)
            return found
        parts = [part for part in (own.reward_part, own.kl_part) if part is not None]
        return None if not parts else np.cumsum(self.beta * sum(parts), dtype=np.float64).astype(np.float32)


def _product(mask: Floats | None, values: Floats | None) -> Floats | None:
    if values is None:
        return None
    return values if mask is None else mask * values
